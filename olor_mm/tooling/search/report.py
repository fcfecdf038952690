"""What a search writes: a table as Markdown, JSON and CSV, and pictures of it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engine.replacing import PART, put_in_place
from ..errors import InputError, say
from ..figures import Chart, HeatMap, LineChart, Series, save_charts
from .metric import Metric
from .scores import Score, Verdict, as_dict
from .space import Space

__all__ = ['charts', 'markdown', 'write_report', 'write_text']


def write_report(
    root: Path, about: dict[str, Any], scores: Sequence[Score], verdict: Verdict, metric: Metric, space: Space
) -> list[Path]:
    """Write results.md, results.json, results.csv and the pictures.

    Args:
        root: The work dir of the search.
        about: What was searched: options and config, for results.json.
        scores: All points.
        verdict: What can be concluded.
        metric: What they were compared by.
        space: Where the search looked.

    Returns:
        The files.
    """
    content = {
        **about,
        'metric': metric.name,
        'mode': 'max' if metric.greater else 'min',
        'best': None if verdict.best is None else as_dict(verdict.best),
        'plain': None if verdict.plain is None else as_dict(verdict.plain),
        'gain': verdict.gain,
        'p': verdict.p,
        'helps': verdict.helps,
        'verdict': verdict.lines,
        'trials': [as_dict(score) for score in scores],
    }
    texts = {
        'results.md': markdown(scores, verdict, metric),
        'results.json': json.dumps(content, indent=2) + '\n',
        'results.csv': _csv(scores, metric),
    }
    written = [write_text(root / name, text) for name, text in texts.items()]
    drawn = charts(scores, verdict, metric, space)
    if drawn:
        try:
            written += save_charts(drawn, root, 'search', title=f'{root.name}: max_level and power')
        except InputError as error:
            # The tables are there, and the runs were long.
            say(f'no pictures: {error}; then give the same command again')
    return written


def markdown(scores: Sequence[Score], verdict: Verdict, metric: Metric) -> str:
    """The table, the best first, and what follows from it."""
    several = any(len(score.values) > 1 for score in scores)
    arrow = 'more is better' if metric.greater else 'less is better'
    over = ['sd', 'seeds'] if several else []
    header = ['max_level', 'power', f'{metric.name} ({arrow})', *over, 'against level 0']
    rows, digits = [header], _digits([score.mean for score in scores if score.is_complete])
    for score in ranked(scores, metric):
        best = '**' if score is verdict.best else ''
        told = f'{best}{score.mean:.{digits}f}{best}' if score.values else '-'
        if score.state != 'complete':
            told = f'{told} ({score.state})' if score.values else score.state
        spread = '-' if score.sd is None else f'{score.sd:.{digits}f}'
        more = [spread, str(len(score.values))] if several else []
        rows.append([*_pair(score), told, *more, _against(score, verdict, digits)])
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '|' + '---|' * len(header))
    return '\n\n'.join(['\n'.join(lines), *verdict.lines]) + '\n'


def ranked(scores: Sequence[Score], metric: Metric) -> list[Score]:
    """Complete ones first, the best of them at the top; then the others."""

    def key(score: Score) -> tuple[bool, float, Any]:
        return (not score.is_complete, -metric.sign * score.mean if score.values else math.inf, score.point)

    return sorted(scores, key=key)


def charts(scores: Sequence[Score], verdict: Verdict, metric: Metric, space: Space) -> list[Chart]:
    """The heat map of the paper's figure 4 where the points form a grid, and a curve over the level for each power."""
    pulled = [score for score in scores if score.is_complete and not score.point.is_plain]
    if not pulled:
        return []
    plain = verdict.plain
    drawn: list[Chart] = []
    levels = sorted({score.point.level for score in pulled})
    powers = sorted({score.point.power for score in pulled})
    cells = {(score.point.power, score.point.level): score.mean for score in pulled}
    if len(cells) * 2 > len(levels) * len(powers):
        values = [[cells.get((power, level), math.nan) for level in levels] for power in powers]
        columns = [f'{level:g}' for level in levels]
        if plain is not None:
            columns, values = ['0', *columns], [[plain.mean, *row] for row in values]
        drawn.append(
            HeatMap(
                str(metric.name),
                rows=[f'{power:g}' for power in powers],
                columns=columns,
                values=values,
                x_label='max_level (0: plain fine-tuning, the same for every power)' if plain else 'max_level',
                y_label='power',
                value_label=str(metric.name),
                caption='The best has a frame.',
                digits=_digits([value for row in values for value in row if math.isfinite(value)]),
                marked=_marked(verdict, powers, levels),
            )
        )
    drawn.append(_curves(pulled, plain, metric))
    return drawn


def _digits(values: Sequence[float]) -> int:
    """Decimal places that tell the values apart: three digits of their spread, or four of a single value."""
    spread = max(values) - min(values) if values else 0.0
    size = spread or (abs(values[0]) / 10 if values else 0.0)
    return 2 if size <= 0 else min(max(2 - math.floor(math.log10(size)), 0), 6)


def _marked(verdict: Verdict, powers: list[float], levels: list[float]) -> tuple[int, int] | None:
    if verdict.best is None:
        return None
    if verdict.best.point.is_plain:
        return 0, 0
    shift = 0 if verdict.plain is None else 1
    return powers.index(verdict.best.point.power), levels.index(verdict.best.point.level) + shift


def _curves(pulled: Sequence[Score], plain: Score | None, metric: Metric) -> Chart:
    lines = []
    for power in sorted({score.point.power for score in pulled}):
        row = sorted((score for score in pulled if score.point.power == power), key=lambda score: score.point)
        lines.append(_series(f'power {power:g}', [score.point.level for score in row], row))
    if plain is not None:
        ends = [min(score.point.level for score in pulled), max(score.point.level for score in pulled)]
        lines.append(_series('level 0: plain fine-tuning', ends, [plain, plain]))
    band = any(line.low is not None for line in lines)
    caption = 'Mean over the seeds; the band is one standard deviation to either side.' if band else ''
    return LineChart(f'{metric.name} over max_level', 'max_level', str(metric.name), lines, caption=caption, log_x=True)


def _series(name: str, x: Sequence[float], row: Sequence[Score]) -> Series:
    y = [score.mean for score in row]
    if all(score.sd is not None for score in row):
        spread = [score.sd or 0.0 for score in row]
        low, high = [a - b for a, b in zip(y, spread, strict=True)], [a + b for a, b in zip(y, spread, strict=True)]
        return Series(name, x, y, low, high)
    return Series(name, x, y)


def _pair(score: Score) -> list[str]:
    return ['0', '-'] if score.point.is_plain else [f'{score.point.level:.4g}', f'{score.point.power:g}']


def _against(score: Score, verdict: Verdict, digits: int) -> str:
    if verdict.plain is None or score is verdict.plain or not score.is_complete:
        return '-'
    return f'{score.mean - verdict.plain.mean:+.{digits}f}'


def _csv(scores: Sequence[Score], metric: Metric) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator='\n')
    table.writerow(['trial', 'max_level', 'power', 'seed', str(metric.name), 'state', 'work_dir'])
    for score in scores:
        for seed in sorted({*score.folders, *score.values}):
            value = score.values.get(seed, '')
            power = '' if score.point.is_plain else score.point.power
            table.writerow(
                [score.name, score.point.level, power, seed, value, score.state, score.folders.get(seed, '')]
            )
    return out.getvalue()


def write_text(file: Path, text: str) -> Path:
    """Write a file that is whole at every moment."""
    part = file.with_name(f'.{file.name}.{os.getpid()}{PART}')
    part.write_text(text, encoding='utf-8')
    put_in_place(part, file)
    return file
