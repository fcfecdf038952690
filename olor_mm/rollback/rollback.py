"""Rollback: weight rollback joined to any ``torch.optim.Optimizer`` through its step hooks."""

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._batches import FORMS, Batch, batches_of, pull
from ._given import read_anchor
from ._pace import Pace, pace_of
from ._ruling import Ruling
from ._shards import unwrap_zero
from ._staging import like
from ._step_hooks import hold_step, is_innermost, release_step
from .anchor import Anchors, AnchorStore
from .checks import check_balls, check_gradients, check_keep, check_levels, check_names
from .discrepancy import relative_discrepancy
from .keeping import Keep, Keeper
from .l2_sp import L2SP, Penalty, check_l2_sp, check_penalty
from .rounding import LOW_PRECISION, Dither
from .rules import check_rule, is_off
from .single_pass import SinglePass, tell_refusal

__all__ = ['Rollback']

K = TypeVar('K', bound=Hashable)
_attached: 'weakref.WeakKeyDictionary[Optimizer, weakref.ref[Rollback]]' = weakref.WeakKeyDictionary()


class Rollback:
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
        self.form = form
        self.rule = check_rule(rule)
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
        #: What the levels are multiplied by.
        self.pace = Pace(optimizer, schedule)
        self._ruling = None if rule == 'olor' else Ruling(rule, balls)
        #: Whether tensors without a gradient are pulled too: those that share a ball move together.
        self._idle = bool(balls)
        self._penalty = None if strengths is None else Penalty(strengths, optimizer, levels)
        self._num_calls = 0
        self._num_skipped: Tensor | None = None
        #: Number of tensors that the last step rolled back.
        self.num_rolled_back = 0
        #: Parameter to the number of its shard here, where a plain tensor is one and torch does not tell.
        self.shards: Mapping[Tensor, int] = {}
        self._batches: list[Batch] | None = None
        self._active: tuple[object, ...] = ()
        self._handles: list[Any] = []
        self._held: Any = None
        self._single_pass: SinglePass | None = None
        self._left: list[Batch] | None = None
        self._store: AnchorStore | None = None
        self._dither = Dither(optimizer)
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

    @property
    def pulled(self) -> list[Tensor]:
        """The parameters that are pulled back; of those that ``levels`` has, some may have theta_0 for L2-SP alone."""
        return [p for p, level in self.levels.items() if not is_off(self.rule, level)]

    @property
    def num_steps(self) -> int:
        """Number of steps of the optimizer that were rolled back, since this object was built.

        Steps that a GradScaler skipped do not count. With ``fused=True`` on a GPU reading it waits for the device.
        """
        return self._num_calls - (0 if self._num_skipped is None else int(self._num_skipped.to('cpu')))

    @property
    def form_in_use(self) -> str:
        """``form``, or 'foreach' where the kernels of 'single_pass' cannot be used."""
        if self._ruling is not None and self.form == 'single_pass':
            return FORMS[0]
        return self.form if self._single_pass is None or self._single_pass.refusal is None else FORMS[0]

    @property
    def told(self) -> str:
        """The rule and L2-SP in words, '' where there is nothing but OLOR."""
        penalty = '' if self._penalty is None else f' {self._penalty.options}'
        return ('' if self.rule == 'olor' else f' {self.rule}') + penalty

    def add_l2_sp(self, scale: float | Tensor = 1.0) -> None:
        """Add the term of L2-SP to the gradients, once before each step; with ``by_hand=True``.

        Call it when the gradients of a step are complete, after any accumulation and averaging over ranks, and before
        they are clipped. With a GradScaler either call it after ``unscale_``, or hand over the scale.

        Args:
            scale: What the gradients are scaled by, such as ``scaler.scale(torch.ones((), device=...))``, which does
                not wait for the device. Defaults to 1.

        Raises:
            RuntimeError: If L2-SP is not to be added by hand.
        """
        if self._penalty is None or self._store is None:
            return
        if not self._penalty.options.by_hand:
            raise RuntimeError(
                'add_l2_sp() would add the term a second time, for every step adds it by itself: give '
                'l2_sp=L2SP(..., by_hand=True)'
            )
        if any(p.grad is not None for p in self.levels):
            self.capture()
            self._add_penalty(self._penalty, scale)

    def _add_penalty(self, penalty: Penalty, scale: float | Tensor) -> None:
        penalty.prepare()
        check_gradients(penalty.new if penalty.options.beta else (), self.names)
        penalty.add(self._plan(), scale)

    def capture(self, again: bool = False) -> None:
        """Take theta_0 now and not at the first step; of parameters that can be trained and have none yet.

        Args:
            again: Also of those whose theta_0 was taken before and that have made no step since. Defaults to False.

        Raises:
            MissingAnchorError: If parameters have been trained already and have no theta_0.
        """
        if self._store is not None and self._store.take(again):
            self._batches = None

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

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The arguments are those of step(), the optimizer itself the first of them.
        closure = args[1] if len(args) > 1 else kwargs.get('closure')
        self._left = None
        if self._single_pass is not None:
            # Of a step that ended in an error.
            self._single_pass.forget()
        if closure is None and all(p.grad is None for p in self.levels):
            # A step on nothing: the weights may still be loaded after it.
            return
        if self._batches is None:
            check_gradients(self.levels, self.names)
        if closure is not None and (self._penalty is not None or self.rule == 'spd'):
            what = 'l2_sp changes' if self._penalty is not None else "rule='spd' reads"
            raise ValueError(f'step() is given a closure, but {what} gradients before the step: call backward() first')
        self.capture()
        if self._penalty is not None and self._penalty.is_due:
            scale = getattr(self.optimizer, 'grad_scale', None)
            self._add_penalty(self._penalty, 1.0 if scale is None else scale)
        if self._single_pass is not None:
            self._left = self._step_and_pull(self._single_pass, closure)
        elif self._ruling is not None and closure is None:
            self._left = self._plan()
            self._ruling.before(self._left)

    def _step_and_pull(self, single_pass: SinglePass, closure: object) -> list[Batch] | None:
        """In a single pass what can be; returns what is left to be pulled, None if that is all."""
        if closure is not None:
            single_pass.say('step() is given a closure')
        elif not is_innermost(self.optimizer, *self._handles):
            single_pass.say('another step hook lies between it and the step, and would miss the gradients')
        else:
            return single_pass.step(self._plan(), self.pace.ratios())
        return None

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._store is None:
            return
        left, self._left = self._left, None
        if self._single_pass is not None:
            self._single_pass.restore()
        self._store.commit()
        self._pull(left)
        self._store.keeper.after_step()

    def _pull(self, left: list[Batch] | None) -> None:
        ratios = self.pace.ratios()
        found_inf = getattr(self.optimizer, 'found_inf', None)
        # On the CPU reading it costs nothing; elsewhere the device must decide, or the host would wait.
        if found_inf is not None and found_inf.device.type == 'cpu':
            if found_inf.item():
                return
            found_inf = None
        # Where a part of them was pulled within the step they were planned before it.
        batches = self._plan() if left is None or self._batches is None else self._batches
        self.num_rolled_back = sum(len(batch.params) for batch in batches)
        if self._penalty is not None:
            self._penalty.after_step()
            self.num_rolled_back = sum(not is_off(self.rule, level) for batch in batches for level in batch.levels)
        # Not by what has a gradient here: all ranks of a sharded model must count alike.
        if any(p.dtype in LOW_PRECISION for p in self.levels):
            self._dither.next_step()
        left = batches if left is None else left
        strengths = [None] * len(left) if self._ruling is None else self._ruling.after(left, ratios, found_inf)
        for batch, strength in zip(left, strengths, strict=True):
            pull(batch, ratios, found_inf, self.form, self._dither, strength)
        self.pace.next_step()
        self._num_calls += 1
        if found_inf is not None:
            if self._num_skipped is None:
                self._num_skipped = torch.zeros_like(found_inf)
            self._num_skipped += found_inf

    def _plan(self) -> list[Batch]:
        """The tensors with a gradient in this step, by device and dtype; built anew only when they change."""
        # A model may change its memory format, or its shape, after some steps.
        active = tuple(None if p.grad is None else (p.shape, p.stride()) for p in self.levels)
        if self._batches is not None and active == self._active:
            return self._batches
        check_gradients(self.levels, self.names)
        store: Anchors = {} if self._store is None else self._store
        keeper = None if self._store is None else self._store.keeper
        batches = batches_of(self.optimizer.param_groups, self.levels, store, self.shards, keeper, self._idle)
        self._active = active
        self._batches = batches
        return batches

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
