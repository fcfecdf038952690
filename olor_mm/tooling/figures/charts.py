"""What a chart shows, as plain data: no drawing here, so that both renderings show the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ['BarSeries', 'Bars', 'Chart', 'HeatMap', 'LineChart', 'Points', 'Scatter', 'Series']

Numbers = Sequence[float]


def numbers(name: str, values: Iterable[float | None]) -> list[float]:
    """Values as floats; None is NaN. Tensors and arrays are read one by one.

    Raises:
        ValueError: If one is no number.
    """
    try:
        return [math.nan if value is None else float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name} must be numbers, but {error}') from None


def _same_length(name: str, **columns: Sequence[object] | None) -> None:
    lengths = {key: len(column) for key, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        told = ', '.join(f'{length} of {key}' for key, length in lengths.items())
        raise ValueError(f'{name!r}: there must be as many of each, but there are {told}')


def _all_different(chart: str, kind: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'chart {chart!r} has two {kind} of one name, {twice[0]!r}: give each a name of its own')


@dataclass
class Series:
    """A line.

    Args:
        name: What the legend calls it.
        x: Positions, in the order in which they are joined.
        y: Values; what is not finite is a gap.
        low: Lower edge of an error band, one for each value. Defaults to None.
        high: Its upper edge. Defaults to None.
        notes: A text for each point, shown under the pointer. Defaults to None.
        marks: Points that get a large marker, counted from 0. Defaults to ().

    Raises:
        ValueError: If there is no point, or the numbers of values differ.
    """

    name: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    notes: Sequence[str] | None = None
    marks: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.x, self.y = numbers(f'x of {self.name!r}', self.x), numbers(f'y of {self.name!r}', self.y)
        if (self.low is None) != (self.high is None):
            raise ValueError(f'{self.name!r}: a band has two edges: give low and high, or neither')
        if self.low is not None and self.high is not None:
            self.low, self.high = numbers(f'low of {self.name!r}', self.low), numbers('high', self.high)
        _same_length(self.name, x=self.x, y=self.y, low=self.low, high=self.high, notes=self.notes)
        if not self.x:
            raise ValueError(f'{self.name!r} has no point: leave it out')


@dataclass
class Points:
    """The points of a class.

    Args:
        name: What the legend calls it.
        x: Positions; points that are not finite are left out.
        y: Likewise.
        notes: A text for each point, shown under the pointer. Defaults to None.

    Raises:
        ValueError: If there is no point, or the numbers of values differ.
    """

    name: str
    x: Numbers
    y: Numbers
    notes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self.x, self.y = numbers(f'x of {self.name!r}', self.x), numbers(f'y of {self.name!r}', self.y)
        _same_length(self.name, x=self.x, y=self.y, notes=self.notes)
        if not self.x:
            raise ValueError(f'{self.name!r} has no point: leave it out')


@dataclass
class BarSeries:
    """Bars of one colour, one for each category.

    Args:
        name: What the legend calls it.
        values: Heights; what is not finite has no bar.
        errors: Half the length of the error bar, such as the standard deviation. Defaults to None.

    Raises:
        ValueError: If the numbers of values differ.
    """

    name: str
    values: Numbers
    errors: Numbers | None = None

    def __post_init__(self) -> None:
        self.values = numbers(f'values of {self.name!r}', self.values)
        if self.errors is not None:
            self.errors = numbers(f'errors of {self.name!r}', self.errors)
        _same_length(self.name, values=self.values, errors=self.errors)


@dataclass
class LineChart:
    """Lines over a common axis.

    Args:
        title: What it shows, in a few words.
        x_label: What the x axis is, with its unit.
        y_label: What the y axis is, with its unit.
        series: The lines.
        caption: A sentence or two below the title. Defaults to ''.
        log_x: Whether the x axis is logarithmic. Defaults to False.
        log_y: Whether the y axis is. Defaults to False.
        x_names: Names of the positions 0, 1, 2, ..., in the place of numbers. Defaults to None.
        ordered: Whether the order of the series means something, such as epochs: colours then go from dark to light.
            Defaults to False.
        compare: Whether the page shows the values of all lines at the pointer's x; else the nearest point alone, as it
            is better for curves that are not functions of x. Defaults to True.
        from_zero: Whether a y axis that is not logarithmic begins at 0. Defaults to False.

    Raises:
        ValueError: If there is no series, or two have the same name.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    caption: str = ''
    log_x: bool = False
    log_y: bool = False
    x_names: Sequence[str] | None = None
    ordered: bool = False
    compare: bool = True
    from_zero: bool = False

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f'chart {self.title!r} is empty: give it at least one Series')
        _all_different(self.title, 'series', self.names)

    @property
    def names(self) -> list[str]:
        """What the legend has."""
        return [each.name for each in self.series]

    def is_drawn(self, x: float, y: float) -> bool:
        """Whether a point can be drawn on these axes."""
        return _fits(x, self.log_x) and _fits(y, self.log_y)

    @property
    def left_out(self) -> int:
        """How many points cannot be drawn."""
        return sum(not self.is_drawn(x, y) for each in self.series for x, y in zip(each.x, each.y, strict=True))


@dataclass
class Scatter:
    """Points of several classes in a plane.

    Args:
        title: What it shows, in a few words.
        groups: The classes.
        x_label: What the x axis is. Defaults to '': it has no unit, and no numbers are shown. Where neither axis has
            one, both are of one scale, so that distances mean something in any direction.
        y_label: Likewise. Defaults to ''.
        caption: A sentence or two below the title. Defaults to ''.
        legend_title: What the groups are, such as 'class'. Defaults to ''.

    Raises:
        ValueError: If there is no group, or two have the same name.
    """

    title: str
    groups: Sequence[Points]
    x_label: str = ''
    y_label: str = ''
    caption: str = ''
    legend_title: str = ''

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError(f'chart {self.title!r} is empty: give it at least one group of Points')
        _all_different(self.title, 'groups', self.names)

    @property
    def one_scale(self) -> bool:
        """Whether both axes are of one scale."""
        return not (self.x_label or self.y_label)

    @property
    def names(self) -> list[str]:
        """What the legend has."""
        return [each.name for each in self.groups]

    @property
    def left_out(self) -> int:
        """How many points cannot be drawn."""
        pairs = (pair for each in self.groups for pair in zip(each.x, each.y, strict=True))
        return sum(not (_fits(x) and _fits(y)) for x, y in pairs)


@dataclass
class HeatMap:
    """A table as colours, with its numbers in it.

    Args:
        title: What it shows, in a few words.
        rows: What each row is, from the top.
        columns: What each column is, from the left.
        values: One sequence of numbers for each row; what is not finite is an empty cell.
        x_label: What the columns are. Defaults to ''.
        y_label: What the rows are. Defaults to ''.
        value_label: What the values are, with their unit. Defaults to ''.
        caption: A sentence or two below the title. Defaults to ''.
        digits: Decimal places of the numbers in the cells; None writes none. Defaults to 2.
        marked: Row and column of the cell that gets a frame, such as the best one. Defaults to None.
        limits: The values at the ends of the scale of colours, for maps that are compared. Defaults to None: the
            smallest and the largest one.

    Raises:
        ValueError: If there is no cell, or the numbers of values do not fit those of rows and columns.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Numbers]
    x_label: str = ''
    y_label: str = ''
    value_label: str = ''
    caption: str = ''
    digits: int | None = 2
    marked: tuple[int, int] | None = None
    limits: tuple[float, float] | None = None
    names: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.values = [numbers(f'values of {self.title!r}', row) for row in self.values]
        if not self.rows or not self.columns:
            raise ValueError(f'chart {self.title!r} is empty: give it at least one row and one column')
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            shape = [len(row) for row in self.values]
            raise ValueError(
                f'chart {self.title!r}: values must be {len(self.rows)} rows of {len(self.columns)} numbers, but there '
                f'are rows of {shape}'
            )
        if self.marked is not None:
            row, column = self.marked
            if not (0 <= row < len(self.rows) and 0 <= column < len(self.columns)):
                raise ValueError(f'chart {self.title!r}: marked={self.marked} is no cell: give (row, column), from 0')

    @property
    def left_out(self) -> int:
        """How many cells are empty."""
        return sum(not _fits(value) for row in self.values for value in row)

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the ends of the scale of colours, the second one above the first."""
        finite = [value for row in self.values for value in row if _fits(value)]
        low, high = self.limits or ((min(finite), max(finite)) if finite else (0.0, 1.0))
        return low, high if high > low else low + 1.0

    def text(self, row: int, column: int) -> str:
        """What is written in a cell."""
        value = self.values[row][column]
        return '' if self.digits is None or not _fits(value) else f'{value:.{self.digits}f}'


@dataclass
class Bars:
    """Bars for some categories, side by side where there are several series.

    Args:
        title: What it shows, in a few words.
        categories: What each group of bars is.
        series: The bars; each has a value for each category.
        y_label: What the heights are, with their unit. Defaults to ''.
        x_label: What the categories are. Defaults to ''.
        caption: A sentence or two below the title. Defaults to ''.
        digits: Decimal places of the number at each bar; None writes none. Defaults to 2.

    Raises:
        ValueError: If there is no bar, two series have the same name, or the numbers of values do not fit.
    """

    title: str
    categories: Sequence[str]
    series: Sequence[BarSeries]
    y_label: str = ''
    x_label: str = ''
    caption: str = ''
    digits: int | None = 2

    def __post_init__(self) -> None:
        if not self.categories or not self.series:
            raise ValueError(f'chart {self.title!r} is empty: give it at least one category and one BarSeries')
        _all_different(self.title, 'series', self.names)
        _all_different(self.title, 'categories', list(self.categories))
        for each in self.series:
            _same_length(each.name, values=each.values, categories=self.categories)

    @property
    def names(self) -> list[str]:
        """What the legend has."""
        return [each.name for each in self.series]

    @property
    def left_out(self) -> int:
        """How many bars are missing."""
        return sum(not _fits(value) for each in self.series for value in each.values)


Chart = LineChart | Scatter | HeatMap | Bars


def _fits(value: float, log: bool = False) -> bool:
    return math.isfinite(value) and (value > 0 or not log)
