"""Where a search looks: pairs of max_level (iota_1) and power (gamma), and plain fine-tuning beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError

__all__ = ['GRIDS', 'Point', 'Space']

#: Levels and powers. 'paper' is the OLOR paper's search range (appendix, iota_2 = 0); 'short' its middle, in ten runs.
GRIDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    'paper': ((1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1, 1.0), (1.0, 2.0, 4.0)),
    'short': ((1e-3, 1e-2, 1e-1), (1.0, 2.0, 4.0)),
}
#: What share of a continuous range's logarithm, at either end, counts as its edge.
_EDGE = 0.05


@dataclass(frozen=True, order=True)
class Point:
    """A pair that is tried.

    Args:
        level: ``max_level`` in [0, 1]; 0 is plain fine-tuning, whatever the power.
        power: ``power`` > 0.
    """

    level: float
    power: float

    @property
    def is_plain(self) -> bool:
        """Whether nothing is pulled back."""
        return self.level == 0

    @property
    def name(self) -> str:
        """As a folder is called."""
        return 'level-0' if self.is_plain else f'level-{self.level:g}_power-{self.power:g}'

    @property
    def label(self) -> str:
        """As a sentence says it."""
        return 'level 0' if self.is_plain else f'max_level={self.level:.4g}, power={self.power:g}'


@dataclass(frozen=True)
class Space:
    """The levels and powers of a search.

    Args:
        levels: Ascending, each in (0, 1]; where an Optuna sampler chooses freely, the first and the last bound it.
        powers: Ascending, each > 0.
        min_level: iota_2, the same for all points but plain fine-tuning. Defaults to 0, as in the paper.

    Raises:
        InputError: If a value cannot be right; the message names the option.
    """

    levels: tuple[float, ...]
    powers: tuple[float, ...]
    min_level: float = 0.0

    def __post_init__(self) -> None:
        for level in self.levels:
            if not 0 < level <= 1:
                raise InputError(
                    f'--levels {level:g}: a level is above 0 and at most 1',
                    'level 0, plain fine-tuning, is always among the trials',
                )
        for power in self.powers:
            if not 0 < power < math.inf:
                raise InputError(f'--powers {power:g}: a power is a number above 0; the paper has 1, 2 and 4')
        if not 0 <= self.min_level <= self.levels[0]:
            raise InputError(
                f'--min-level {self.min_level:g} must be from 0 to the smallest of the levels, {self.levels[0]:g}',
                'the paper has 0',
            )

    @classmethod
    def make(
        cls, grid: str, levels: Sequence[float] | None = None, powers: Sequence[float] | None = None, low: float = 0.0
    ) -> Space:
        """A named grid, with other levels or powers where these are given."""
        named = GRIDS[grid]
        return cls(tuple(sorted({*(levels or named[0])})), tuple(sorted({*(powers or named[1])})), low)

    @property
    def plain(self) -> Point:
        """Plain fine-tuning, through the same code."""
        return Point(0.0, self.powers[0])

    @property
    def points(self) -> list[Point]:
        """All points of the grid, plain fine-tuning first."""
        return [self.plain, *(Point(level, power) for power in self.powers for level in self.levels)]

    def settings(self, point: Point) -> dict[str, float]:
        """What a point sets in a config."""
        low = 0.0 if point.is_plain else self.min_level
        # That of plain fine-tuning is always the same, so that its runs stay when other powers are tried.
        values = {'max_level': point.level, 'min_level': low, 'power': 1.0 if point.is_plain else point.power}
        return {f'optim_wrapper.rollback.{option}': value for option, value in values.items()}

    def edges(self, point: Point, free: bool = False) -> list[str]:
        """At which ends of the space a point lies, with what lies beyond; a level cannot be above 1.

        Args:
            point: One of the space.
            free: Whether levels between those listed are tried too: then near an end counts. Defaults to False.
        """
        if point.is_plain:
            return []
        first, last = self.levels[0], self.levels[-1]
        margin = (last / first) ** _EDGE if free else 1.0
        said = []
        if len(self.levels) > 1 and point.level <= first * margin:
            said.append(f'{_level(point)} is the smallest level tried: {_widened("levels", first / 10, *self.levels)}')
        if len(self.levels) > 1 and point.level >= last / margin and last < 1:
            wider = _widened('levels', *self.levels, min(1.0, last * 10))
            said.append(f'{_level(point)} is the largest level tried: {wider}')
        if len(self.powers) > 1 and point.power == self.powers[0]:
            wider = _widened('powers', self.powers[0] / 2, *self.powers)
            said.append(f'power={point.power:g} is the smallest tried: {wider}')
        if len(self.powers) > 1 and point.power == self.powers[-1]:
            wider = _widened('powers', *self.powers, self.powers[-1] * 2)
            said.append(f'power={point.power:g} is the largest tried: {wider}')
        return said


def _level(point: Point) -> str:
    return f'max_level={point.level:.4g}'


def _widened(option: str, *values: float) -> str:
    return f'widen with --{option} {" ".join(f"{value:g}" for value in values)}'
