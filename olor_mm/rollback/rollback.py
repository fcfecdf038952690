"""Rollback: weight rollback joined to any ``torch.optim.Optimizer`` through its step hooks."""

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._batches import FORMS
from ._given import read_anchor
from ._pace import Pace, pace_of
from ._ruling import Ruling
from ._shards import unwrap_zero
from ._staging import like
from ._step_hooks import hold_step, release_step
from ._steps import Steps
from .anchor import AnchorStore
from .checks import check_balls, check_keep, check_levels, check_names
from .discrepancy import relative_discrepancy
from .keeping import Keep, Keeper
from .l2_sp import L2SP, Penalty, check_l2_sp, check_penalty
from .single_pass import SinglePass, tell_refusal

__all__ = ['Rollback']

K = TypeVar('K', bound=Hashable)
_attached: 'weakref.WeakKeyDictionary[Optimizer, weakref.ref[Rollback]]' = weakref.WeakKeyDictionary()


class Rollback(Steps):
    """Pulls parameters back towards their pre-trained values after every step of an optimizer.

    After each real step theta <- (1 - a) theta + a theta_0 with a = clamp(lambda lr / initial_lr, 0, 1), lr being that
    of the parameter's group at that step (paper, equations 3 to 8; Algorithms 1 and 2 are this after SGD and Adam).
    A step that a GradScaler skips is no step, also with ``fused=True``. A parameter without gradient in a step is left
    alone in that step. ``initial_lr`` is the key that torch's and MMEngine's schedulers write into the group; without
    it the group's first learning rate above 0 takes its place and is kept with the optimizer's state: with a warm-up by
    hand, set ``group['initial_lr']`` to the peak yourself.

    theta_0 is taken just before the first step and kept in ``optimizer.state[p]``, so ``optimizer.state_dict()`` saves
    it and ``load_state_dict`` brings it back, whether that is called before or after this object is built. (An
    optimizer without state, such as SGD without momentum, cannot tell that it has been trained: there, build this
    object first.)
    Parameters in bfloat16 or float16 are pulled with stochastic rounding: see :mod:`olor_mm.rollback.rounding`.
    Sharded parameters, DTensors as torch's ``fully_shard`` makes them, are pulled where they are; each rank keeps its
    shard of theta_0, and torch's distributed checkpoints save it: build this object before
    ``set_optimizer_state_dict`` is called. With a ZeroRedundancyOptimizer each rank keeps and pulls its own share.
    A copy of the optimizer, by ``copy.deepcopy`` or pickle, has theta_0 but no hooks: give it a Rollback of its own.

    Args:
        optimizer: Any optimizer that takes dense gradients.
        levels: Parameter to lambda in [0, 1], dimensionless: the share of the distance to theta_0 that a step at the
            initial learning rate takes back. Parameters that are not named, or have level 0, cost nothing.
        anchor: theta_0. None takes the values that the parameters have just before the first step; 'current' does so
            even where the optimizer has trained them already; a mapping gives it for some or all parameters (not copied
            where dtype and device fit: do not modify); a path is a checkpoint file to read it from, by ``names``. What
            a loaded optimizer state brings goes before all of these. Defaults to None.
        names: Parameter to name, for messages and for reading a file. Defaults to None.
        form: 'foreach'; 'single_pass' for the optimizer's step and the pull in one read and write of each parameter,
            see :mod:`olor_mm.rollback.single_pass`; or 'single_tensor' for a plain loop over tensors. Defaults to
            'foreach'.
        keep: How theta_0 is kept, in memory and in checkpoints. Defaults to None, which is as the parameters are.
        rule: 'olor'; 'spd' for selective projection decay, whose weight w the levels then are; or 'projection' onto
            balls around theta_0, whose radii ``levels`` then gives, infinity being no bound. See
            :mod:`olor_mm.rollback.rules`. Defaults to 'olor'.
        balls: With 'projection', parameter to a key, such as its layer: parameters of one key share a ball. Defaults to
            None, which is a ball for each parameter.
        level_schedule: What the level is multiplied by in each step: 'lr', lr / initial_lr; 'constant', 1; or another
            schedule, see :func:`~olor_mm.rollback.level_schedule.check_schedule`, which need not follow the learning
            rate. Steps are counted from 0, in the optimizer's state. Defaults to None, which is 'lr' for 'olor' and
            'constant' for 'spd'.
        l2_sp: A penalty on the distance of all parameters that ``levels`` names, also at level 0, as a term of the
            gradient: an :class:`L2SP` or a dict of its options. Gradients are clipped outside of this object: with
            ``by_hand=True`` call :meth:`add_l2_sp` before that. Defaults to None.

    Raises:
        ValueError: If a level is not in [0, 1], a parameter is not the optimizer's, an anchor does not fit, the
            optimizer has a Rollback already, an option cannot be right, or does not go with sharded parameters.
        MissingAnchorError: At the first step, if parameters have been trained already and have no theta_0.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> rollback = Rollback(optimizer, {model.weight: 0.01})
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> rollback.num_steps, rollback.num_rolled_back
        (1, 1)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        levels: Mapping[Tensor, float],
        *,
        anchor: Mapping[Tensor, Tensor] | str | Path | None = None,
        names: Mapping[Tensor, str] | None = None,
        form: str = 'foreach',
        keep: Keep | None = None,
        rule: str = 'olor',
        balls: Mapping[Tensor, Hashable] | None = None,
        level_schedule: Any = None,
        l2_sp: L2SP | Mapping[str, Any] | None = None,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f'form={form!r} is not known: choose one of {", ".join(FORMS)}')
        self.names = check_names({} if names is None else names)
        schedule, strengths = pace_of(rule, level_schedule), check_l2_sp(l2_sp)
        if schedule is not None:
            schedule.check_is_fitted()
        self.levels = check_levels(optimizer, levels, self.names, rule, keep_off=strengths is not None)
        #: The optimizer as it was given, and the level of all of its parameters that have one.
        self.given_optimizer, self.given_levels = optimizer, self.levels
        #: What makes the steps: of a ZeroRedundancyOptimizer this rank's own, with its share of the levels; and what
        #: sums over the ranks then, else None.
        self.optimizer, self.reduce = unwrap_zero(optimizer)
        if self.optimizer is not optimizer:
            optimizer = self.optimizer
            here = {p for group in optimizer.param_groups for p in group['params']}
            self.levels = {p: level for p, level in self.levels.items() if p in here}
        sharing = self.optimizer is not self.given_optimizer
        keep = check_keep(keep, [*self.given_levels], sharing)
        check_penalty(strengths, sharing)
        balls = check_balls(balls, rule, sharing)
        super().__init__(self.optimizer, self.levels, self.names, form, rule)
        self.pace = Pace(optimizer, schedule)
        self._ruling = None if rule == 'olor' else Ruling(rule, balls)
        self._idle = bool(balls)
        self._penalty = None if strengths is None else Penalty(strengths, optimizer, levels)
        self._held: Any = None
        given = self._read_anchor(anchor)
        if not self.levels:
            return
        if _attached.get(optimizer, _nobody)() is not None:
            raise ValueError('this optimizer has a Rollback already: detach() that first, or give all levels to one')
        _attached[optimizer] = weakref.ref(self)
        on_missing = 'current' if anchor == 'current' else 'error'
        self._store = AnchorStore(optimizer, self.levels, given, self.names, on_missing, keep)
        self._store.keeper.origins.files += [str(anchor)] if given and isinstance(anchor, (str, Path)) else []
        if form == 'single_pass' and rule != 'olor':
            tell_refusal(f'rule={rule!r}')
        elif form == 'single_pass':
            self._single_pass = SinglePass(optimizer, {p.device for p in self.levels})
        self._held = hold_step(optimizer)
        self._handles = [
            # Traced with a compiled training step, they would be compiled anew at every change of the learning rate.
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),
        ]

    def _read_anchor(self, anchor: Mapping[Tensor, Tensor] | str | Path | None) -> Mapping[Tensor, Tensor]:
        owned = (p for group in self.given_optimizer.param_groups for p in group['params'])
        return read_anchor(anchor, owned, self.levels, self.names)

    def give(self, anchors: Mapping[Tensor, Tensor]) -> None:
        """Give theta_0 of some parameters, as the option ``anchor`` does; used where none is kept yet.

        Raises:
            ValueError: If the shape of one is not its parameter's.
        """
        if self._store is not None:
            self._store.given.update(self._read_anchor(anchors))

    @property
    def keeper(self) -> Keeper | None:
        """What keeps theta_0; None where nothing is pulled back here."""
        return None if self._store is None else self._store.keeper

    def anchor(self, param: Tensor) -> Tensor | None:
        """theta_0 of ``param``, the tensor itself: do not modify it. None if it is not (yet) kept.

        Where it is kept in another dtype or elsewhere it is a copy as the parameter is.
        """
        kept = None if self._store is None else self._store.get(param)
        return kept if self._store is None or self._store.keeper.is_plain or kept is None else like(kept, param)

    def detach(self) -> None:
        """Undo everything: the optimizer is as if there had been no Rollback, theta_0 is freed."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._store is not None:
            release_step(self.optimizer, self._held)
            self._store.clear()
            self._dither.clear()
            self.pace.clear()
            _attached.pop(self.optimizer, None)
        self._store = None
        self._batches = None

    @torch.no_grad()
    def discrepancy(
        self, parts: Mapping[K, Sequence[Tensor]], reduce: Callable[[Tensor], Tensor] | None = None
    ) -> dict[K, float]:
        """Relative discrepancy ||theta - theta_0|| / ||theta_0|| of each part, with one wait for the device in all.

        Of DTensors it is that of the whole tensors: every rank of their mesh must call this. With a
        ZeroRedundancyOptimizer it is that of all shares: every rank must call this, with the same keys.

        Args:
            parts: Any key to its parameters; those without theta_0 are left out.
            reduce: Sums a tensor over the ranks where each of them holds another part of the parameters, which are
                plain tensors; every rank must call this then, with the same keys. Defaults to None.

        Returns:
            Key to discrepancy, dimensionless; parts without any theta_0 are left out. 0 / 0 is 0.
        """
        reduce = reduce or self.reduce
        if self._store is None and reduce is None:
            return {}
        # With nothing to pull back here this rank is still waited for.
        return relative_discrepancy({} if self._store is None else self._store, parts, reduce)


def _nobody() -> None:
    return None
