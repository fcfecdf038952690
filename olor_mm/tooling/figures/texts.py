"""What both renderings write, and which points they mark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .charts import Bars, Chart, HeatMap, LineChart, Series

__all__ = ['all_whole', 'caption_of', 'legend_names', 'marked_points', 'shortened']


def caption_of(chart: Chart) -> str:
    """The caption, with a word on what is not shown."""
    if not chart.left_out:
        return chart.caption
    is_log = isinstance(chart, LineChart) and (chart.log_x or chart.log_y)
    why = 'not finite, or not above 0 on a logarithmic axis' if is_log else 'not finite'
    what = 'cells' if isinstance(chart, HeatMap) else 'bars' if isinstance(chart, Bars) else 'points'
    note = f'{chart.left_out} {what if chart.left_out > 1 else what[:-1]} not shown: {why}.'
    return f'{chart.caption} {note}'.strip()


def shortened(name: str, length: int = 42) -> str:
    """A name of one line and no more than so many characters, without its middle if it has more."""
    name = ' '.join(name.split())
    if len(name) <= length:
        return name
    tail = (length - 1) * 2 // 3
    return f'{name[: length - 1 - tail]}…{name[-tail:]}'


def legend_names(names: Sequence[str]) -> list[str]:
    """What the legend writes: short names, as long as they stay different ones."""
    for length in (42, 64, 96):
        short = [shortened(name, length) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return [shortened(f'{i}: {name}') for i, name in enumerate(names, 1)]


def marked_points(chart: LineChart, series: Series, most: int = 40) -> list[int]:
    """Which points of a line get a marker: all of a short one; of a long one those that no line leads to."""
    drawn = [chart.is_drawn(x, y) for x, y in zip(series.x, series.y, strict=True)]
    found = [i for i, is_drawn in enumerate(drawn) if is_drawn]
    if len(found) <= most:
        return found
    return [i for i in found if not any(drawn[max(i - 1, 0) : i]) and not any(drawn[i + 1 : i + 2])]


def all_whole(values: Iterable[float]) -> bool:
    """Whether values are whole numbers, such as epochs: an axis then has no others."""
    return all(value.is_integer() for value in values if math.isfinite(value))
