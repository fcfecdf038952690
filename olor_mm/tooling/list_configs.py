"""tools/list_configs.py: which configs olor_mm ships, what the paper reports for each, and what was measured here.

Names, tasks, models, data and results are those of the metafiles that ``model-index.yml`` imports; the levels are read
from the configs themselves. Nothing is said twice.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load

from ..engine import RollbackSettings
from .errors import InputError

__all__ = ['ConfigEntry', 'list_configs', 'read_configs', 'select_configs', 'shipped_root']

#: Behind the names of the metrics that the paper reports; the others were measured with this repository.
PAPER = ' (paper)'
_INDEX = 'model-index.yml'
_BEGIN, _END = '<!-- list_configs: begin -->', '<!-- list_configs: end -->'
_COLUMNS = ('config', 'task', 'model', 'pre-training', 'data', 'method', 'iota_1, iota_2, gamma', 'paper', 'ours')


@dataclass(frozen=True)
class ConfigEntry:
    """One shipped config.

    Attributes:
        name: Its file name without ``.py``.
        file: Its path below the folder that holds ``configs/``.
        tasks: What it is for, such as 'Image Classification'.
        model: The architecture.
        pretraining: What its weights were pre-trained on.
        dataset: What it trains on.
        method: 'OLOR', or what OLOR is compared with, such as 'Full'.
        levels: (iota_1, iota_2, gamma) of the rollback; None without.
        paper: Metric -> the paper's result.
        ours: Metric -> the result that was measured with this repository.
    """

    name: str
    file: str
    tasks: tuple[str, ...]
    model: str
    pretraining: str
    dataset: str
    method: str
    levels: tuple[float, float, float] | None
    paper: dict[str, float]
    ours: dict[str, float]


def list_configs(argv: Sequence[str]) -> None:
    """Print the table as ``tools/list_configs.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If a filter fits no config, or the file of ``--markdown`` has no place for the table.
    """
    args = _parser().parse_args(argv)
    entries = read_configs(shipped_root(), args.task, args.dataset, args.method)
    if args.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
    elif args.markdown is None:
        print(_text(entries))
    elif args.markdown:
        _write_between_marks(Path(args.markdown), _markdown(entries))
    else:
        print(_markdown(entries))


def shipped_root() -> Path:
    """The folder that holds ``model-index.yml`` and ``configs/``, of a wheel or of a checkout.

    Raises:
        FileNotFoundError: If there is none.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / '.mim', package.parent):
        if (root / _INDEX).is_file():
            return root
    raise FileNotFoundError(f'{_INDEX} is neither in {package / ".mim"} nor in {package.parent}: install olor_mm anew')


def read_configs(
    root: Path, task: str | None = None, dataset: str | None = None, method: str | None = None
) -> list[ConfigEntry]:
    """The configs that the metafiles below ``root`` name, in their order.

    Args:
        root: The folder with ``model-index.yml``.
        task: See :func:`select_configs`. Defaults to None.
        dataset: See :func:`select_configs`. Defaults to None.
        method: See :func:`select_configs`. Defaults to None.

    Raises:
        InputError: If a filter is unknown or nothing fits all of them.
    """
    index = load(root / _INDEX)
    metafiles = [index, *(load(root / file) for file in index.get('Import', []))]
    entries = [_entry(model) for metafile in metafiles for model in metafile.get('Models', [])]
    # Reading a config takes longer than all else.
    chosen = select_configs(entries, task, dataset, method)
    return [replace(entry, levels=_levels(root / entry.file)) for entry in chosen]


def _entry(model: dict[str, Any]) -> ConfigEntry:
    metadata, results = model['Metadata'], model.get('Results', [])
    metrics = {name: float(value) for result in results for name, value in result['Metrics'].items()}
    return ConfigEntry(
        name=model['Name'],
        file=model['Config'],
        tasks=tuple(dict.fromkeys(result['Task'] for result in results)),
        model=metadata['Model'],
        pretraining=metadata['Pre-training Data'],
        dataset=metadata['Training Data'],
        method=model['In Collection'],
        levels=None,
        paper={name.removesuffix(PAPER): value for name, value in metrics.items() if name.endswith(PAPER)},
        ours={name: value for name, value in metrics.items() if not name.endswith(PAPER)},
    )


def _levels(file: Path) -> tuple[float, float, float] | None:
    # What a config imports is for training with it, and may not be installed.
    rollback = Config.fromfile(file, import_custom_modules=False).optim_wrapper.get('rollback')
    if rollback is None:
        return None
    settings = RollbackSettings.from_cfg(rollback)
    has_levels = settings.rule == 'olor' and settings.max_level > 0
    return (settings.max_level, settings.min_level, settings.power) if has_levels else None


def select_configs(
    entries: Iterable[ConfigEntry], task: str | None = None, dataset: str | None = None, method: str | None = None
) -> list[ConfigEntry]:
    """Those of ``entries`` that fit all filters. Upper case, spaces and hyphens make no difference.

    Args:
        entries: What to choose from.
        task: A task or a part of its name, such as 'segmentation'. Defaults to None: all.
        dataset: A data set or a part of its name, such as 'cars'. Defaults to None: all.
        method: A method, such as 'olor'. Defaults to None: all.

    Raises:
        InputError: If a filter is unknown or nothing fits all of them.
    """
    filters: dict[str, tuple[str | None, Callable[[ConfigEntry], tuple[str, ...]]]] = {
        'task': (task, lambda entry: entry.tasks),
        'dataset': (dataset, lambda entry: (entry.dataset,)),
        'method': (method, lambda entry: (entry.method,)),
    }
    everything = found = list(entries)
    for option, (wanted, values_of) in filters.items():
        if wanted is not None:
            values = _matching(option, wanted, sorted({value for entry in everything for value in values_of(entry)}))
            found = [entry for entry in found if values & set(values_of(entry))]
    if not found:
        asked = ' '.join(f'--{option} {wanted}' for option, (wanted, _) in filters.items() if wanted is not None)
        raise InputError(f'no config fits {asked} together', 'take one of them away')
    return found


def _matching(option: str, wanted: str, known: list[str]) -> set[str]:
    """The values that a filter means: one that it names, or else those that it is a part of."""
    short = {_plain(value): value for value in known}
    if _plain(wanted) in short:
        return {short[_plain(wanted)]}
    found = {value for plain, value in short.items() if _plain(wanted) and _plain(wanted) in plain}
    if not found:
        near = difflib.get_close_matches(_plain(wanted), short, n=1)
        hint = [f'did you mean {short[near[0]]}?'] if near else []
        raise InputError(f'--{option} {wanted!r} fits no config', *hint, f'known are: {", ".join(known)}')
    return found


def _plain(text: str) -> str:
    return re.sub(r'[^a-z0-9]', '', text.lower())


def _cells(entry: ConfigEntry) -> tuple[str, ...]:
    levels = ', '.join(f'{level:g}' for level in entry.levels) if entry.levels else '-'
    results = (', '.join(f'{value:.2f} {name}' for name, value in part.items()) for part in (entry.paper, entry.ours))
    paper, ours = (text or '-' for text in results)
    task = ', '.join(entry.tasks) or '-'
    return entry.name, task, entry.model, entry.pretraining, entry.dataset, entry.method, levels, paper, ours


def _text(entries: Sequence[ConfigEntry]) -> str:
    rows = [_COLUMNS, *map(_cells, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple('-' * width for width in widths))
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _markdown(entries: Sequence[ConfigEntry]) -> str:
    """The table for a file in ``docs/``."""
    rows = [_COLUMNS, ('---',) * len(_COLUMNS)]
    for entry in entries:
        name, *cells = _cells(entry)
        rows.append((f'[{name}](../{entry.file})', *cells))
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _write_between_marks(file: Path, table: str) -> None:
    text = file.read_text(encoding='utf-8') if file.is_file() else ''
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise InputError(
            f'--markdown {file}: there is no place for the table',
            f'expected: a file with the lines {_BEGIN} and {_END}; what is between them is replaced',
            'without a file the table is printed',
        )
    file.write_text(f'{before}{_BEGIN}\n{table}\n{_END}{after}', encoding='utf-8')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='list_configs.py', description='List the configs of olor_mm: settings, the results of the paper, and ours.'
    )
    parser.add_argument('--task', help='only this task, such as "classification"')
    parser.add_argument('--dataset', help='only this data set, such as "cifar100" or "cars"')
    parser.add_argument('--method', help='only this method: olor, full, linear')
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        '--markdown',
        nargs='?',
        const='',
        metavar='FILE',
        help=f'print Markdown, or put it into FILE, between its lines {_BEGIN} and {_END}',
    )
    form.add_argument('--json', action='store_true', help='print JSON')
    return parser
