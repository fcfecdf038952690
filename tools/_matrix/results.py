"""What the cells gave: the file that is kept, and the page's tables that are made from it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from .cells import ABSENT, CELLS, LEVELS, Cell

__all__ = ['BEGIN', 'END', 'load', 'page_with', 'save', 'tables']

BEGIN = '<!-- made by tools/matrix.py --markdown -->'
END = '<!-- end -->'
_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'cv2')

Results = dict[str, dict[str, Any]]


def load(file: Path) -> Results:
    """The results so far, ``'CELL LEVEL'`` to a record; empty where there is no file."""
    return json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}


def save(file: Path, cell: Cell, level: str, record: dict[str, Any]) -> None:
    """Puts a record in the place of the earlier one of this cell and level; the file is written whole or not at all."""
    results = load(file)
    results[f'{cell.name} {level}'] = record
    order = [f'{cell.name} {level}' for cell in CELLS for level in LEVELS]
    kept = {key: results[key] for key in order if key in results}
    new = file.with_name(file.name + '.new')
    new.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(new, file)


def tables(results: Results) -> str:
    """The page's tables: every cell with its result or 'unknown', the versions that were found, what cannot be."""
    head = ('cell', 'Python', 'torch', 'numpy', 'toolboxes', 'level', 'tests', 'date', 'commit')
    rows = [_row(cell, level, results) for cell in CELLS for level in _levels_of(cell, results)]
    parts = [_table(head, rows), _failures(results), _versions(results), _absent()]
    return '\n\n'.join(part for part in parts if part)


def page_with(page: str, results: Results) -> str:
    """``page`` with the part between the two marks made anew.

    Raises:
        ValueError: If the marks are not there, once each.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f'the page needs the lines {BEGIN!r} and {END!r} once each, around what is generated')
    before, rest = page.split(BEGIN)
    return f'{before}{BEGIN}\n{tables(results)}\n{END}{rest.split(END)[1]}'


def _levels_of(cell: Cell, results: Results) -> list[str]:
    """The levels that a cell was run at; where it was not, the one that it is meant for."""
    return [level for level in LEVELS if f'{cell.name} {level}' in results] or [cell.top]


def _row(cell: Cell, level: str, results: Results) -> tuple[str, ...]:
    record = results.get(f'{cell.name} {level}')
    known = (f'`{cell.name}`', cell.python, cell.torch, str(cell.numpy), cell.family_name)
    if record is None:
        return (*known, level, 'unknown: not run', '', '')
    versions = record.get('versions', {})
    found = (
        f'`{cell.name}`',
        versions.get('python', cell.python),
        versions.get('torch', cell.torch),
        versions.get('numpy', str(cell.numpy)),
        cell.family_name,
    )
    return (*found, level, outcome(record), record['date'], f'`{record["commit"]}`')


def outcome(record: dict[str, Any]) -> str:
    """``'872 passed, 3 skipped'``, or why there is no count."""
    if 'error' in record:
        return f'not set up: {record["error"]}'
    counts = [f'{record[kind]} {kind}' for kind in ('failed', 'passed', 'skipped') if record[kind]]
    return ', '.join(counts) or 'no tests were run'


def _failures(results: Results) -> str:
    lines = []
    for key, record in results.items():
        for name in record.get('failures', ()):
            lines.append(f'- {" at level ".join(f"`{part}`" for part in key.split())}: `{name}`')
    return '\n'.join(['Failed:', '', *lines]) if lines else ''


def _versions(results: Results) -> str:
    rows = []
    for cell in CELLS:
        found = [results[f'{cell.name} {level}'] for level in LEVELS if f'{cell.name} {level}' in results]
        versions: dict[str, str] = {}
        for record in found:
            versions |= record.get('versions', {})
        if versions:
            named = (versions.get(name, '-') for name in _PACKAGES)
            rows.append((f'`{cell.name}`', versions.get('torchvision', '-'), *named))
    return _table(('cell', 'torchvision', *_PACKAGES), rows) if rows else ''


def _absent() -> str:
    return '\n'.join(f'- {what}: cannot be; {why}.' for what, why in ABSENT.items())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple('---' for _ in head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def without_paths(text: str, *folders: Path) -> str:
    """One line of ``text`` that may be published: no folder of this machine, no address."""
    line = re.sub(r'\s+', ' ', text.splitlines()[0] if text else '')
    for folder in folders:
        line = line.replace(str(folder), '...')
    return re.sub(r'(https?|file)://\S+', '...', line).strip()
