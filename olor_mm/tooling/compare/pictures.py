"""The charts of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..figures import Bars, BarSeries, Chart, LineChart, Points, Scatter, Series
from .rows import Row
from .statistics import mean_and_std

__all__ = ['charts']

#: More bands than these hide each other.
MOST_BANDS = 4


def charts(rows: Sequence[Row], metric: str, which: str) -> list[Chart]:
    """The metric, its course over the training, what was kept against it, time and memory.

    Args:
        rows: The methods.
        metric: Name of the metric.
        which: 'last' or 'best'.
    """
    done = [row for row in rows if row.mean is not None]
    found: list[Chart] = [_metric(done, metric, which)]
    found += _curves(done, metric)
    found += _trade_offs(done, metric)
    for name, label, values in (
        ('Time of an iteration', 's', [row.seconds_per_iter for row in done]),
        ('Peak memory', 'MiB', [row.memory for row in done]),
    ):
        if any(value is not None for value in values):
            numbers = [math.nan if value is None else value for value in values]
            digits = 0 if label == 'MiB' else 3
            names = [row.method for row in done]
            found.append(Bars(name, names, [BarSeries(name, numbers)], y_label=label, digits=digits))
    return found


def _metric(rows: Sequence[Row], metric: str, which: str) -> Chart:
    values = BarSeries(metric, [row.mean or 0.0 for row in rows], [row.std or 0.0 for row in rows])
    several = any(row.std is not None for row in rows)
    caption = 'Bars: mean over the seeds; lines: sample standard deviation.' if several else 'One seed.'
    return Bars(
        f'{metric}, {which} validation', [row.method for row in rows], [values], y_label=metric, caption=caption
    )


def _curves(rows: Sequence[Row], metric: str) -> list[Chart]:
    """The metric of each validation, mean over the seeds with a band of a standard deviation."""
    series = []
    for row in rows:
        runs = [cell.result.validations for cell in row.cells if cell.result is not None and cell.value is not None]
        steps = [
            step
            for step in dict.fromkeys(each['step'] for run in runs for each in run)
            if all(any(each['step'] == step and metric in each for each in run) for run in runs)
        ]
        if len(steps) < 2:
            continue
        spreads = [mean_and_std([each[metric] for run in runs for each in run if each['step'] == s]) for s in steps]
        y = [mean or 0.0 for mean, _ in spreads]
        half = [std or 0.0 for _, std in spreads]
        band = any(half)
        low = [a - b for a, b in zip(y, half, strict=True)] if band else None
        high = [a + b for a, b in zip(y, half, strict=True)] if band else None
        series.append(Series(row.method, steps, y, low, high))
    if not series:
        return []
    caption = 'Mean over the seeds; bands: sample standard deviation.'
    if len(series) > MOST_BANDS or not any(each.low for each in series):
        caption = 'Mean over the seeds.'
        series = [Series(each.name, each.x, each.y) for each in series]
    return [LineChart(f'{metric} over the training', 'step of the validation', metric, series, caption)]


def _trade_offs(rows: Sequence[Row], metric: str) -> list[Chart]:
    """Each thing that was measured of the checkpoints against the metric: a point for each run."""
    found: list[Chart] = []
    for name in dict.fromkeys(name for row in rows for name in row.kept):
        groups = []
        for row in rows:
            cells = [cell for cell in row.cells if cell.value is not None and cell.kept.get(name) is not None]
            if cells:
                notes = [f'seed {cell.seed}' for cell in cells]
                y = [cell.value for cell in cells if cell.value is not None]
                groups.append(Points(row.method, [cell.kept[name] for cell in cells], y, notes))
        if groups:
            title = f'{metric} against {name}'
            found.append(Scatter(title, groups, name, metric, 'A point for each seed.', 'method'))
    return found
