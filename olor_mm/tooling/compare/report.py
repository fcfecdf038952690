"""The report of a comparison: Markdown, JSON, CSV, and pictures."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from ...engine.replacing import PART, put_in_place
from ..errors import InputError
from ..figures import save_charts
from ..incremental.results import write_json
from .cells import Cell
from .kept import DISTANCE, Kept
from .methods import Variant
from .pictures import charts
from .rows import Row, rows_of
from .words import digits_of, plus_minus, probability, test_sentence, verdict

__all__ = ['markdown_table', 'write_report']

NAME = 'report'


def write_report(
    root: Path,
    args: argparse.Namespace,
    variants: Sequence[Variant],
    against: Variant,
    cells: Sequence[Cell],
    kept: Kept,
) -> str:
    """Write report.md, report.json, report.csv and the pictures.

    Args:
        root: The folder.
        args: The command line.
        variants: The methods.
        against: The reference.
        cells: All runs.
        kept: What was measured besides.

    Returns:
        The table and what it says, in Markdown.
    """
    rows = rows_of(variants, against, cells, args.test)
    metric = next(cell.metric for cell in cells if cell.metric is not None)
    rule = next(cell.rule for cell in cells if cell.metric is not None)
    said = [_table(rows, metric, args, against.label), *_sentences(rows, metric, rule, args, against.label)]
    text = '\n\n'.join(filter(None, [*said, _kept_sentence(rows, kept)]))
    pictures = _pictures(root, rows, metric, args)
    write_json(
        root / f'{NAME}.json',
        {
            'config': str(args.config),
            'metric': metric,
            'rule': rule,
            'which': args.which,
            'seeds': list(args.seeds),
            'against': against.label,
            'test': args.test,
            'pre-trained': kept.reference,
            'methods': [row.record() for row in rows],
        },
    )
    _write(root / f'{NAME}.csv', _csv(cells))
    _write(root / f'{NAME}.md', f'# {Path(args.config).stem}: {len(rows)} methods\n\n{text}\n\n{pictures}\n')
    return f'{text}\n\n{root / f"{NAME}.md"}'


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    return '\n'.join([*lines, *(f'| {" | ".join(cell.replace("|", "/") for cell in row)} |' for row in rows)])


def _table(rows: Sequence[Row], metric: str, args: argparse.Namespace, against: str) -> str:
    digits = digits_of(rows)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ('method', lambda row: row.method),
        ('seeds', lambda row: _seeds(row)),
        (f'{metric}, {args.which}', lambda row: plus_minus(row.mean, row.std, digits)),
    ]
    if args.test != 'none':
        columns.append((f'less {against}', lambda row: _less(row, digits)))
        columns.append(('p', lambda row: probability(row.difference.p_holm if row.difference else None)))
    columns += [
        ('trained', lambda row: '-' if row.trained is None else f'{row.trained:,}'),
        ('of all', lambda row: f'{row.trained / row.parameters:.2%}' if row.trained and row.parameters else '-'),
        ('s an iteration', lambda row: '-' if row.seconds_per_iter is None else f'{row.seconds_per_iter:.3g}'),
        ('peak memory, MiB', lambda row: '-' if row.memory is None else f'{row.memory:,.0f}'),
    ]
    for name in dict.fromkeys(name for row in rows for name in row.kept):
        columns.append((name, lambda row, name=name: _kept(row, name)))  # type: ignore[misc]
    return markdown_table([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def _seeds(row: Row) -> str:
    done = len(row.cells) - len(row.failed)
    return f'{done}' if not row.failed else f'{done} of {len(row.cells)} (failed: {", ".join(map(str, row.failed))})'


def _less(row: Row, digits: int) -> str:
    found = row.difference
    return '-' if found is None or found.mean is None else f'{found.mean:+.{digits}f}'


def _kept(row: Row, name: str) -> str:
    mean, std = row.kept.get(name, (None, None))
    return plus_minus(mean, std, 4 if mean is not None and abs(mean) < 1 else 2)


def _sentences(rows: Sequence[Row], metric: str, rule: str, args: argparse.Namespace, against: str) -> list[str]:
    spread = 'Mean ± sample standard deviation over the seeds' if len(args.seeds) > 1 else 'Of the one seed'
    said = [f'{spread} {", ".join(map(str, args.seeds))}; the {args.which} validation of each run.']
    if rule == 'less':
        said[0] += f' The less of {metric}, the better.'
    if args.which == 'best':
        said[0] += ' The best one was chosen on the data that it is measured on, which flatters.'
    said.append(test_sentence(rows, against, args.test, args.seeds))
    found = [said[0] + ' ' + said[1]]
    if args.test != 'none' and len(rows) > 1:
        found.append('\n'.join(verdict(row, against, rule, digits_of(rows)) for row in rows if row.method != against))
    found.append(_costs(rows))
    failed = [cell for row in rows for cell in row.cells if cell.state != 'finished']
    if failed:
        found.append('\n'.join(f'- {cell.name}: {cell.state}; {cell.log}' for cell in failed))
    return found


def _costs(rows: Sequence[Row]) -> str:
    """What time and memory are of."""
    results = [cell.result for row in rows for cell in row.cells if cell.result is not None]
    said = ['The time of an iteration is the median of each run, data loading included, then the mean over the seeds.']
    most = max(cell.side_by_side for row in rows for cell in row.cells)
    if most > 1:
        said.append(f'Up to {most} runs went on at the same time, which slows each.')
    kinds = {each.memory_of for each in results} - {None}
    if 'GPU' in kinds:
        said.append("Memory is the peak of what torch had allocated on the GPU, as MMEngine's log has it.")
    if 'process' in kinds:
        before = [each.memory_before for each in results if each.memory_before is not None]
        told = f', of which {min(before):,.0f} at least were there before the first step' if before else ''
        said.append(f'Memory is the peak of the resident memory of the training process, without data workers{told}.')
    devices = sorted({each.device for each in results if each.device})
    if devices:
        said.append(f'On: {"; ".join(devices)}.')
    return ' '.join(said)


def _kept_sentence(rows: Sequence[Row], kept: Kept) -> str:
    if kept.why:
        return f'What was kept of the pre-training was not measured: {kept.why}'
    said = []
    if any(DISTANCE in row.kept for row in rows):
        said.append(
            'The distance is ||theta - theta_0|| / ||theta_0|| of what came from the pre-trained file, at the last '
            'checkpoint. What a method added has no theta_0: 0 does not say that nothing was forgotten.'
        )
    if kept.reference:
        told = ', '.join(f'{name.removesuffix(", %")} {value:.2f}%' for name, value in kept.reference.items())
        said.append(f'The pre-trained model itself: {told}.')
    return ' '.join(said)


def _pictures(root: Path, rows: Sequence[Row], metric: str, args: argparse.Namespace) -> str:
    try:
        save_charts(charts(rows, metric, args.which), root, NAME, title=f'{Path(args.config).stem}: methods compared')
    except InputError as error:
        return f'No pictures: {error}'
    return f'![{metric} and costs of each method]({NAME}.png)\n\nThe same, to point at: [{NAME}.html]({NAME}.html).'


def _csv(cells: Sequence[Cell]) -> str:
    lines = [cell.line() for cell in cells]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for line in lines for key in line)), restval='')
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _write(file: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    part = file.with_name(f'.{file.name}{PART}')
    part.write_text(text, encoding='utf-8', newline='')
    put_in_place(part, file)
