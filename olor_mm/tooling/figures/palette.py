"""Colours, dashes and markers: told apart by colour-blind readers too, and the same in every rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .charts import LineChart

__all__ = ['COLOURS', 'DASHES', 'EMPTY', 'GREY', 'MARKERS', 'SCALE', 'Style', 'along_scale', 'line_styles', 'styles']

#: Okabe and Ito, 'Color Universal Design' (2008), without the yellow, which is hard to see on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
#: Names of plotly.
DASHES = ('solid', 'dash', 'dot', 'dashdot')
#: Names of plotly.
MARKERS = (
    *('circle', 'square', 'triangle-up', 'diamond', 'x'),
    *('cross', 'triangle-down', 'pentagon', 'star', 'hexagon'),
)
#: Viridis, which is as light as its values are large, also in print.
SCALE = ('#440154', '#472d7b', '#3b528b', '#2c728e', '#21918c', '#28ae80', '#5ec962', '#addc30', '#fde725')
GREY = '#6b6b6b'
#: Of a cell without a number.
EMPTY = '#dddddd'
#: The yellow end is hard to see as a line on white.
_LIGHTEST = 0.85


@dataclass(frozen=True)
class Style:
    """How a series is drawn.

    Attributes:
        colour: As '#rrggbb'.
        dash: One of ``DASHES``.
        marker: One of ``MARKERS``.
    """

    colour: str
    dash: str
    marker: str


def _style(number: int) -> Style:
    row, column = divmod(number, len(COLOURS))
    return Style(COLOURS[column], DASHES[row % len(DASHES)], MARKERS[(column + row) % len(MARKERS)])


def styles(charts: Sequence[Sequence[str]]) -> dict[str, Style]:
    """A style for each name: the same in all charts of a page, and another one for each name of a chart.

    Colours are unique among the first seven names of a chart, colour and dash among 28, colour and marker among 70.

    Args:
        charts: The names of each chart, in the order of its legend.
    """
    numbers: dict[str, int] = {}
    for names in charts:
        for name in names:
            if name not in numbers:
                rivals = {other for row in charts if name in row for other in row}
                taken = {numbers[other] for other in rivals if other in numbers}
                numbers[name] = next(number for number in range(len(taken) + 1) if number not in taken)
    return {name: _style(number) for name, number in numbers.items()}


def line_styles(chart: LineChart, known: Mapping[str, Style]) -> list[Style]:
    """Of each line: that of its name, or by its place where the order means something."""
    if not chart.ordered:
        return [known[name] for name in chart.names]
    return [Style(colour, 'solid', 'circle') for colour in along_scale(len(chart.series))]


def along_scale(number: int) -> list[str]:
    """So many colours along the scale, from dark to light, for what has an order, such as epochs."""
    if number == 1:
        return [SCALE[0]]
    return [_between(_LIGHTEST * i / (number - 1)) for i in range(number)]


def _between(share: float) -> str:
    at = share * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in SCALE[low : low + 2]]
    mixed = (round(a + (at - low) * (b - a)) for a, b in zip(*ends, strict=True))
    return '#' + ''.join(f'{value:02x}' for value in mixed)
