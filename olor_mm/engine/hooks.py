"""ResumableRandomnessHook: the random numbers of a run as a function of seed, epoch and iteration."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from olor_mm.registry import HOOKS

__all__ = ['ResumableRandomnessHook']

_EPOCH, _ITER = 0, 1


@HOOKS.register_module()
class ResumableRandomnessHook(Hook):
    """Makes a resumed run draw the random numbers that the uninterrupted one would have drawn.

    MMEngine saves no random state, so dropout, the sampling of regions and augmentation in the main process differ
    after a resume. With this hook the generators of Python, numpy and torch are seeded anew from (seed, rank, epoch) at
    the start of each epoch and from (seed, rank, iteration) before each iteration.

    It cannot reach what is drawn elsewhere: ``randomness.seed`` must be set (the sampler draws from it), worker
    processes must not outlive an epoch (``persistent_workers=False``), and an iteration-based loop needs
    ``num_workers`` of at least 1.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Warn where the resumed run could differ all the same."""
        if runner._randomness_cfg.get('seed') is None:
            runner.logger.warning(
                'ResumableRandomnessHook: randomness.seed is not set, so a resumed run shuffles the data in another '
                'order; set randomness=dict(seed=0) for an exact resume'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed from the epoch: for what is drawn before its first iteration."""
        self._seed(runner, _EPOCH, runner.epoch)
        self._load_again(runner)

    def _load_again(self, runner: Runner) -> None:
        """Take the batches that a resumed iteration-based run has had, where MMEngine would only count them.

        The onedl-* fork advances the sampler alone, and its workers then draw other random numbers. Upstream takes the
        batches itself.
        """
        loop: Any = runner.train_loop
        if getattr(loop, 'fast_forward_on_resume', None) is not False or runner.iter == 0:
            return
        runner.logger.info(
            f'ResumableRandomnessHook: loading {runner.iter} batches that have been trained on, and dropping them: so '
            'the workers draw what they would have drawn'
        )
        for _ in range(runner.iter):
            next(loop.dataloader_iterator)
        loop.fast_forward_on_resume = True

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed from the iteration."""
        self._seed(runner, _ITER, runner.iter)

    def _seed(self, runner: Runner, kind: int, count: int) -> None:
        state = np.random.SeedSequence([int(runner.seed), get_rank(), kind, count]).generate_state(1)
        seed = int(state[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
