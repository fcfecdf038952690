"""What the level is multiplied by in each step, where that is not the learning rate's share of its peak."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from olor_mm._options import check_known

__all__ = ['SCHEDULES', 'LevelSchedule', 'Ramp', 'check_schedule']

#: 'lr' is lr / initial_lr: see :mod:`olor_mm.rollback.schedule`.
SCHEDULES = ('lr', 'constant', 'warmup', 'cosine')

_OPTION = 'level_schedule'
#: From which factor to which one a ramp goes.
_FACTORS = {'constant': (1.0, 1.0), 'warmup': (0.0, 1.0), 'cosine': (1.0, 0.0)}
#: The share of a run that a warm-up takes which does not say where it ends.
_WARM_UP = 0.1


@dataclass(frozen=True)
class Ramp:
    """A factor that goes from one value to another, and stays there.

    Args:
        type: 'constant', which is 1; 'warmup', in a straight line; 'cosine', along half a cosine.
        begin: The step, counted from 0, up to which the factor is the first one. Defaults to 0.
        end: The step from which on it is the second one. Defaults to None, which is the end of the run for 'cosine'
            and a tenth of it for 'warmup', where the length of the run is known.
        start_factor: The first one, in [0, 1]. Defaults to 0 for 'warmup', 1 for 'cosine'.
        end_factor: The second one, in [0, 1]. Defaults to 1 for 'warmup', 0 for 'cosine'.
        by_epoch: Whether ``begin`` and ``end`` count epochs. Defaults to False.

    Raises:
        ValueError: If an option cannot be right.
    """

    type: str
    begin: float = 0
    end: float | None = None
    start_factor: float | None = None
    end_factor: float | None = None
    by_epoch: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or self.type not in _FACTORS:
            raise ValueError(f'{_OPTION}.type={self.type!r} is not known: choose one of {", ".join(_FACTORS)}')
        for option in ('begin', 'end'):
            value = getattr(self, option)
            if not (value is None and option == 'end') and not _is_number(value, math.inf):
                raise ValueError(f'{_OPTION}.{option}={value!r} must be a number of steps, from 0')
        if self.end is not None and self.end <= self.begin:
            raise ValueError(f'{_OPTION}.end={self.end!r} must be above begin={self.begin!r}')
        for option in ('start_factor', 'end_factor'):
            value = getattr(self, option)
            if value is not None and not _is_number(value, 1.0):
                raise ValueError(f'{_OPTION}.{option}={value!r} must be a number in [0, 1], or left away')
        if not isinstance(self.by_epoch, bool):
            raise ValueError(f'{_OPTION}.by_epoch={self.by_epoch!r} must be True or False')
        given = [f.name for f in fields(self) if f.name != 'type' and getattr(self, f.name) != f.default]
        if self.type == 'constant' and given:
            raise ValueError(f"{_OPTION}.{given[0]}={getattr(self, given[0])!r} is no option of 'constant'")

    def __call__(self, step: int) -> float:
        """The factor in a step, counted from 0."""
        default = _FACTORS[self.type]
        first = default[0] if self.start_factor is None else float(self.start_factor)
        last = default[1] if self.end_factor is None else float(self.end_factor)
        if self.type == 'constant' or step <= self.begin or self.end is None:
            return first
        if step >= self.end:
            return last
        share = (step - self.begin) / (self.end - self.begin)
        if self.type == 'cosine':
            share = (1 - math.cos(math.pi * share)) / 2
        return first + share * (last - first)

    def fitted(self, total: int, epoch_length: float | None) -> 'Ramp':
        """The same in steps, for a run of ``total`` steps.

        Raises:
            ValueError: If it counts epochs and the length of one is not known.
        """
        if self.by_epoch and epoch_length is None:
            raise ValueError(
                f'{_OPTION}.by_epoch=True, but it is not known how long an epoch is, as in runs that count iterations '
                '(max_iters): give steps, with by_epoch=False'
            )
        unit = (epoch_length or 1.0) if self.by_epoch else 1.0
        begin, end = self.begin * unit, None if self.end is None else self.end * unit
        if end is None and self.type != 'constant':
            end = max(total * (_WARM_UP if self.type == 'warmup' else 1.0), begin + 1)
        return replace(self, begin=begin, end=end, by_epoch=False)


class LevelSchedule:
    """A factor in [0, 1] for each step.

    Args:
        ramps: What is multiplied with each other.
        function: Step, counted from 0, to factor; in the place of ramps. Defaults to None.
    """

    def __init__(self, ramps: Sequence[Ramp], function: Callable[[int], float] | None = None) -> None:
        self.ramps = tuple(ramps)
        self.function = function

    @property
    def is_constant(self) -> bool:
        """Whether it is 1 in every step."""
        return self.function is None and all(ramp.type == 'constant' for ramp in self.ramps)

    def __call__(self, step: int) -> float:
        """The factor.

        Raises:
            ValueError: If a function gives something else.
        """
        if self.function is None:
            return math.prod(ramp(step) for ramp in self.ramps)
        value = self.function(step)
        if not _is_number(value, 1.0):
            raise ValueError(f'{_OPTION}: the function gave {value!r} in step {step}: it must be a number in [0, 1]')
        return float(value)

    def fitted(self, total: int, epoch_length: float | None) -> 'LevelSchedule':
        """For a run of ``total`` steps; see :meth:`Ramp.fitted`."""
        return LevelSchedule([ramp.fitted(total, epoch_length) for ramp in self.ramps], self.function)

    def check_is_fitted(self) -> None:
        """See that nothing depends on the length of a run.

        Raises:
            ValueError: If something does.
        """
        for ramp in self.ramps:
            if ramp.by_epoch or (ramp.end is None and ramp.type != 'constant'):
                raise ValueError(
                    f'{_OPTION}={ramp.type!r} does not say in which step it ends, and nothing here knows how long the '
                    f'run is: give dict(type={ramp.type!r}, end=<number of steps>), without by_epoch'
                )


def check_schedule(value: Any) -> LevelSchedule | None:
    """The schedule that an option describes; None for 'lr'.

    Args:
        value: One of ``SCHEDULES``; a dict with the options of :class:`Ramp`, or a list of such, which are multiplied;
            a list of numbers, one for each step, of which the last one stays; or a function of the step, from 0.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, str):
        if value not in SCHEDULES:
            raise ValueError(f'{_OPTION}={value!r} is not known: choose one of {", ".join(SCHEDULES)}, or give a dict')
        return None if value == 'lr' else LevelSchedule([Ramp(value)])
    if isinstance(value, Mapping):
        return LevelSchedule([_ramp(value)])
    if isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
        return LevelSchedule([_ramp(item) for item in value])
    if isinstance(value, Sequence) and value and all(_is_number(item, 1.0) for item in value):
        numbers = [float(item) for item in value]
        return LevelSchedule([], lambda step: numbers[min(step, len(numbers) - 1)])
    if callable(value):
        return LevelSchedule([], value)
    raise ValueError(
        f'{_OPTION}={value!r:.80} must be one of {", ".join(SCHEDULES)}, a dict(type=..., begin=..., end=...) or a '
        'list of such, a list of numbers in [0, 1], or a function of the step'
    )


def _ramp(options: Mapping[str, Any]) -> Ramp:
    check_known(_OPTION, options, [f.name for f in fields(Ramp)])
    if 'type' not in options:
        raise ValueError(f'{_OPTION}={dict(options)!r} has no type: choose one of {", ".join(_FACTORS)}')
    return Ramp(**options)


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0.0 <= float(value) <= most
