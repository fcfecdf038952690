"""What levels are multiplied by in each step of an optimizer: by its learning rate, or by a schedule."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .level_schedule import LevelSchedule, check_schedule
from .rules import check_rule
from .schedule import lr_ratio

__all__ = ['STEPS_KEY', 'Pace', 'pace_of']

#: The count of steps, in the optimizer's first group, where a schedule needs it.
STEPS_KEY = 'rollback_steps'


def pace_of(rule: str, level_schedule: Any) -> LevelSchedule | None:
    """The schedule of a rule; None is the learning rate's.

    Args:
        rule: One of ``RULES``.
        level_schedule: The option; None is the rule's own: 'lr' for 'olor', 'constant' for 'spd'.

    Raises:
        ValueError: If it is no schedule, or the rule has no level.
    """
    if check_rule(rule) == 'projection' and level_schedule is not None:
        raise ValueError(
            f"level_schedule={level_schedule!r:.80} is for a level, and rule='projection' has none: leave it away, or "
            'change the rule'
        )
    if level_schedule is None:
        level_schedule = 'lr' if rule == 'olor' else 'constant'
    return check_schedule(level_schedule)


class Pace:
    """What the level is multiplied by, of each parameter group.

    Args:
        optimizer: Whose steps are counted, where they must be.
        schedule: The schedule; None is lr / initial_lr.

    Attributes:
        clock: Says which step, from 0, is being made; None where they are counted here.
    """

    def __init__(self, optimizer: Optimizer, schedule: LevelSchedule | None) -> None:
        self.clock: Callable[[], int] | None = None
        self._optimizer = optimizer
        self._schedule = schedule

    def ratios(self) -> list[float | Tensor]:
        """Of each group, in this step."""
        groups = self._optimizer.param_groups
        return [lr_ratio(group) for group in groups] if self._schedule is None else [self.factor()] * len(groups)

    def factor(self) -> float:
        """The schedule's factor in this step; 1 where there is none."""
        if self._schedule is None or self._schedule.is_constant:
            return 1.0
        counted = self._optimizer.param_groups[0].get(STEPS_KEY, 0)
        return self._schedule(int(counted) if self.clock is None else self.clock())

    def next_step(self) -> None:
        """A step was made."""
        if self._schedule is not None and not self._schedule.is_constant and self.clock is None:
            group = self._optimizer.param_groups[0]
            group[STEPS_KEY] = int(group.get(STEPS_KEY, 0)) + 1

    def clear(self) -> None:
        """Take the count out of the optimizer."""
        for group in self._optimizer.param_groups:
            group.pop(STEPS_KEY, None)
