"""The summary on the screen, and the file with every problem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .findings import Findings
from .specs import Spec
from .splits import write_atomically
from .tally import Tally

__all__ = ['remove_report', 'summarise', 'write_report']

_SHOWN = 8
_MARK = '# written by olor_mm, tools/prepare_data.py'


def summarise(spec: Spec, tally: Tally, findings: Findings) -> Iterator[str]:
    """What was counted, the notes, and the first problems of each kind."""
    width = max(map(len, ['in all', *spec.parts]))
    for part, expected in spec.parts.items():
        if tally.parts[part] or part not in spec.optional:
            yield f'  {part:<{width}} {tally.parts[part]:>9,} images, published {expected:>9,}'
    yield f'  {"in all":<{width}} {tally.total:>9,}'
    yield from _first('note', findings.notes)
    for kind, texts in findings.problems.items():
        yield f'{kind}: {len(texts):,}'
        yield from (f'  {line}' for line in _first('', texts))


def write_report(file: Path, spec: Spec, findings: Findings) -> str:
    """Write every problem to a file, and give the line that says where it is.

    Where it cannot be written, the line says that instead: the problems are not to hide behind it.
    """
    text = '\n'.join([f'{_MARK}: {spec.name}', *findings.lines(), ''])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode('utf-8', 'backslashreplace'))
    except OSError as error:
        return f'the full list could not be written to {file} ({error.strerror}): give another folder with --out DIR'
    return f'the full list: {file}'


def remove_report(file: Path) -> Iterator[str]:
    """Remove the report of an earlier run, now that all is well, and say so; nobody else's file."""
    if not file.is_file() or not file.read_bytes().startswith(_MARK.encode()):
        return
    try:
        file.unlink()
    except OSError as error:
        yield f'{file} is of an earlier run and out of date ({error.strerror})'
    else:
        yield f'removed {file}, the report of an earlier run'


def _first(label: str, texts: list[str]) -> Iterator[str]:
    head = f'{label}: ' if label else ''
    yield from (f'{head}{text}' for text in texts[:_SHOWN])
    if len(texts) > _SHOWN:
        yield f'{head}... and {len(texts) - _SHOWN:,} more'
