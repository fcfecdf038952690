"""Where a run stands and how long it is, for schedules of the level that the learning rate has no part in."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import MessageHub

from olor_mm.registry import type_name
from olor_mm.rollback.level_schedule import LevelSchedule

__all__ = ['RunPace']


class RunPace:
    """A schedule fitted to a run, whose clock is the optimizer wrapper's count of iterations: it resumes by itself.

    Args:
        schedule: The schedule as it stands in the config.
    """

    def __init__(self, schedule: LevelSchedule) -> None:
        self._schedule = schedule
        self._fitted: LevelSchedule | None = None
        #: The optimizer wrapper, which is built after this.
        self.wrapper: Any = None

    def now(self) -> int:
        """The iteration that is being made, or was made last, from 0."""
        return max(self.wrapper.inner_count - 1, 0) if self.wrapper is not None else 0

    def __call__(self, step: int) -> float:
        """The factor in an iteration, from 0.

        Raises:
            ValueError: If the schedule depends on the length of a run, or of an epoch, that is not known.
        """
        if self._fitted is None:
            total, epoch = self._lengths()
            self._fitted = self._schedule.fitted(total, epoch)
        return self._fitted(step)

    def _lengths(self) -> tuple[int, float | None]:
        """Iterations of the run and of an epoch."""
        known = MessageHub.get_current_instance().runtime_info
        total = getattr(self.wrapper, '_max_counts', -1)
        total = total if total > 0 else int(known.get('max_iters', 0))
        if total <= 0:
            self._schedule.check_is_fitted()
        epochs = known.get('max_epochs')
        return total, total / epochs if epochs and total > 0 and _has_epochs(known) else None


def _has_epochs(known: Mapping[str, Any]) -> bool:
    """Whether a run counts epochs: MMEngine takes one that counts iterations for a single epoch."""
    if known.get('max_epochs') != 1 or 'cfg' not in known:
        return True
    train_cfg = Config.fromstring(known['cfg'], '.py').get('train_cfg') or {}
    return train_cfg.get('by_epoch') is not False and 'IterBased' not in str(type_name(train_cfg.get('type')))
