"""A run that was stopped between a checkpoint and the validation after it: the resumed one makes up for it."""

from __future__ import annotations

import bisect
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook, LoggerHook

from .runs.read import read_run

__all__ = ['MissedValidationHook']


class MissedValidationHook(Hook):
    """Validates before the first step of a resumed run where the one before it did not come to that.

    MMEngine saves a checkpoint, validates, and goes on from the checkpoint as if the validation had been made: its
    metrics, and the checkpoint of the best one, would be missing; of the last epoch too. What is missing is seen in the
    scalars of the earlier sessions, so nothing is done where a work dir has none.
    """

    # The last of all: the others have set up what they do after a validation.
    priority = 'LOWEST'

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0 or runner.val_loop is None or not self._is_due(runner):
            return
        decided = [is_main_process() and self._is_missing(runner)]
        broadcast_object_list(decided)
        if decided[0]:
            runner.logger.info('--resume: the validation after the checkpoint was not made: making it now')
            runner.val_loop.run()

    @staticmethod
    def _is_due(runner: Any) -> bool:
        """Whether the train loop validates where the checkpoint was saved."""
        loop = runner.train_loop
        by_epoch = hasattr(loop, 'run_epoch')
        now, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        interval = getattr(loop, 'val_interval', None)
        if not isinstance(interval, int):
            return False
        if getattr(loop, 'dynamic_milestones', None):
            interval = loop.dynamic_intervals[bisect.bisect(loop.dynamic_milestones, now + 1) - 1]
        return now >= getattr(loop, 'val_begin', 1) and (now % interval == 0 or now == end)

    @staticmethod
    def _is_missing(runner: Any) -> bool:
        found = read_run(runner.work_dir)
        if not found.curves:
            return False
        logger = next((hook for hook in runner.hooks if isinstance(hook, LoggerHook)), None)
        by_epoch = hasattr(runner.train_loop, 'run_epoch')
        if getattr(logger, 'log_metric_by_epoch', True) and not by_epoch:
            # The record does not say its iteration: what comes after it does.
            steps = [step for step, _ in next(iter(found.curves.values()))]
            return found.in_train and steps[-1] <= runner.iter
        step = runner.epoch if getattr(logger, 'log_metric_by_epoch', True) else runner.iter
        return all(each['step'] != step for each in found.validations)
