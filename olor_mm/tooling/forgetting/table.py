"""``tools/forgetting.py CONFIG CHECKPOINT...``: one row for each model, the pre-trained one first."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from ..errors import InputError
from ..figures import Bars, BarSeries, Chart, LineChart, Series
from .bench import Bench, Checkpoint, file_digest
from .distance import discrepancies
from .kept import Kept
from .progress import Progress
from .start import begin
from .tables import cell, draw, markdown_table, write_all
from .upstream import Upstream
from .upstream_data import build_upstream

__all__ = ['PRETRAINED', 'table']

PRETRAINED = 'pre-trained'
Row = dict[str, Any]


def table(args: argparse.Namespace) -> None:
    """Measure the checkpoints, write table.md, table.json, table.csv and pictures, and print the table."""
    groups = _groups(args)
    checkpoints = [checkpoint for _, _, members in groups for checkpoint in members]
    _check_names(checkpoints)
    parts = 3 if args.upstream else 2
    progress = Progress(total=len(checkpoints) * parts + bool(args.upstream))
    kept = Kept(Path(args.out), progress, args.fresh)
    rows: list[Row] = []
    upstream: Upstream | None = None
    with progress.shown():
        for number, (config, pretrained, members) in enumerate(groups):
            bench = begin(args, config, progress, pretrained)
            if number == 0:
                upstream = build_upstream(args, bench) if args.upstream else None
                rows.append(_pretrained_row(bench, upstream, kept))
            rows += [_row(bench, upstream, kept, checkpoint) for checkpoint in members]
    if is_main_process():
        _write(Path(args.out), rows, upstream, args)


def _groups(args: argparse.Namespace) -> list[tuple[str, str | None, list[Checkpoint]]]:
    """(config, --pretrained, checkpoints), those of the main config first."""
    groups = [(args.config, args.pretrained, [_named(each) for each in args.checkpoints])]
    for name, config, file in args.row:
        groups.append((config, args.pretrained, [Checkpoint(name, file)]))
    if not any(members for _, _, members in groups):
        raise InputError(
            'no checkpoint is given', 'give one or many behind the config, or --row NAME CONFIG CHECKPOINT'
        )
    return groups


def _named(given: str) -> Checkpoint:
    name, equals, file = given.partition('=')
    if equals and name and not Path(given).exists():
        return Checkpoint(name, file)
    path = Path(given)
    return Checkpoint(f'{path.parent.name}/{path.stem}' if path.parent.name else path.stem, given)


def _check_names(checkpoints: Sequence[Checkpoint]) -> None:
    names = [PRETRAINED, *(each.name for each in checkpoints)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f'two models are called {twice!r}', 'give them names: NAME=CHECKPOINT')


def _pretrained_row(bench: Bench, upstream: Upstream | None, kept: Kept) -> Row:
    row: Row = {'name': PRETRAINED, 'file': bench.source, 'downstream': {}, 'discrepancy': {'overall': 0.0}}
    if upstream is not None:
        inputs = {'part': 'upstream', 'weights': None, **bench.record(), 'upstream': upstream.record}
        row['upstream'] = kept.get(f'{PRETRAINED}: upstream', inputs, lambda: upstream.measure(bench.before()))
    return row


def _row(bench: Bench, upstream: Upstream | None, kept: Kept, checkpoint: Checkpoint) -> Row:
    weights = file_digest(checkpoint.file)
    content = bench.load(checkpoint)
    common = {'weights': weights, **bench.record()}
    row: Row = {'name': checkpoint.name, 'file': checkpoint.file, 'config': str(bench.cfg.filename)}
    for key in ('epoch', 'iter'):
        if key in (content.get('meta') or {}):
            row[key] = int(content['meta'][key])
    row['discrepancy'] = kept.get(
        f'{checkpoint.name}: distance',
        {'part': 'discrepancy', **common},
        lambda: discrepancies(bench.model, bench.origin),
    )
    row['downstream'] = kept.get(
        f'{checkpoint.name}: downstream',
        {'part': 'downstream', **common, **bench.record('test')},
        bench.test,
    )
    if upstream is not None:
        row['upstream'] = kept.get(
            f'{checkpoint.name}: upstream',
            {'part': 'upstream', **common, 'upstream': upstream.record},
            lambda: upstream.measure(bench.model),
        )
    return row


# ---------------------------------------------------------------- what is written


def columns_of(upstream: Upstream | None, ks: Sequence[int]) -> list[tuple[str, tuple[str, ...]]]:
    """Header and place in a row of the upstream columns."""
    if upstream is None:
        return []
    found: list[tuple[str, tuple[str, ...]]] = []
    if upstream.bank is not None:
        found += [(f'upstream kNN (k={k}), %', ('upstream', 'knn', f'top1/k={k}')) for k in ks]
    if upstream.head is not None:
        total = upstream.head.num_classes
        found.append((f'original head over {total}, %', ('upstream', 'head', 'all/top1')))
        if len(upstream.present) < total:
            found.append(
                (f'original head over these {len(upstream.present)}, %', ('upstream', 'head', 'upstream/top1'))
            )
    return found


def value_at(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    """A value in a nested record; None where there is none."""
    found: Any = row
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _write(out: Path, rows: Sequence[Row], upstream: Upstream | None, args: argparse.Namespace) -> None:
    metrics = list(dict.fromkeys(name for row in rows for name in row['downstream']))
    columns: list[tuple[str, tuple[str, ...]]] = [(f'downstream {name}', ('downstream', name)) for name in metrics[:2]]
    columns += columns_of(upstream, args.knn_k)
    before = {header: value_at(rows[0], path) for header, path in columns}
    lines = []
    for number, row in enumerate(rows):
        told = []
        for name, path in columns:
            value, first = value_at(row, path), before[name]
            change = f' ({value - first:+.2f})' if number and value is not None and first is not None else ''
            told.append(cell(value) + change)
        lines.append([row['name'], *told, cell(row['discrepancy']['overall'], 4)])
    header = ['model', *(name for name, _ in columns), 'distance']
    notes = [] if upstream is None else upstream.notes
    text = markdown_table(header, lines)
    legend = 'In brackets: the change from the pre-trained model. Distance: ||theta - theta_0|| / ||theta_0|| of what '
    legend += 'came from the pre-trained file.'
    added = [f'{row["name"]} has {n:,} more numbers of its method.' for row in rows
             if (n := row['discrepancy'].get('added', 0))]  # fmt: skip
    whole = '\n\n'.join([text, legend, *added, *(f'{note[0].upper()}{note[1:]}.' for note in notes)])
    write_all(out, 'table', {'rows': rows, 'notes': notes}, rows, whole)
    print(whole)
    draw(_charts(rows, columns), out, 'table', 'What was kept')


def _charts(rows: Sequence[Row], columns: Sequence[tuple[str, tuple[str, ...]]]) -> list[Chart]:
    charts: list[Chart] = []
    percent = [(name, path) for name, path in columns if '%' in name or 'accuracy' in name]
    if percent:
        bars = [BarSeries(name.removesuffix(', %'), [value_at(row, path) for row in rows]) for name, path in percent]
        charts.append(Bars('What is known', [row['name'] for row in rows], bars, y_label='accuracy, %'))
    measured = [row for row in rows if row['discrepancy'].get('layers')]
    if measured:
        names = max((list(row['discrepancy']['layers']) for row in measured), key=len)
        lines = []
        for row in measured:
            layers = row['discrepancy']['layers']
            lines.append(Series(row['name'], range(len(names)), [layers.get(name) for name in names]))
        charts.append(
            LineChart(
                'Relative discrepancy of the layers', 'layer', '||theta - theta_0|| / ||theta_0||', lines, x_names=names
            )
        )
    return charts
