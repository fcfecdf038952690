"""What a Rollback does in the two hooks of each step of its optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._batches import FORMS, Batch, batches_of, pull
from ._pace import Pace
from ._ruling import Ruling
from ._step_hooks import is_innermost
from .anchor import Anchors, AnchorStore
from .checks import check_gradients
from .l2_sp import Penalty
from .rounding import LOW_PRECISION, Dither
from .rules import is_off
from .schedule import descents
from .single_pass import SinglePass

__all__ = ['Steps']


class Steps:
    """The part of a Rollback that works while an optimizer steps; :class:`~olor_mm.rollback.Rollback` builds it.

    Args:
        optimizer: What makes the steps.
        levels: Parameter to level, or to radius.
        names: Parameter to name, for messages.
        form: One of ``FORMS``.
        rule: One of ``RULES``.
    """

    def __init__(
        self, optimizer: Optimizer, levels: dict[Tensor, float], names: dict[Tensor, str], form: str, rule: str
    ) -> None:
        self.optimizer = optimizer
        self.levels = levels
        self.names = names
        self.form = form
        self.rule = rule
        #: Number of tensors that the last step rolled back.
        self.num_rolled_back = 0
        #: Parameter to the number of its shard here, where a plain tensor is one and torch does not tell.
        self.shards: Mapping[Tensor, int] = {}
        #: What the levels are multiplied by.
        self.pace = Pace(optimizer, None)
        self._ruling: Ruling | None = None
        # Whether tensors without a gradient are pulled too: those that share a ball move together.
        self._idle = False
        self._penalty: Penalty | None = None
        self._num_calls = 0
        self._num_skipped: Tensor | None = None
        self._batches: list[Batch] | None = None
        self._active: tuple[object, ...] = ()
        self._handles: list[Any] = []
        self._single_pass: SinglePass | None = None
        self._left: list[Batch] | None = None
        self._store: AnchorStore | None = None
        self._dither = Dither(optimizer)

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
    def pulled(self) -> list[Tensor]:
        """The parameters that are pulled back; of those that ``levels`` has, some may have theta_0 for L2-SP alone."""
        return [p for p, level in self.levels.items() if not is_off(self.rule, level)]

    @property
    def told(self) -> str:
        """The rule and L2-SP in words, '' where there is nothing but OLOR."""
        penalty = '' if self._penalty is None else f' {self._penalty.options}'
        return ('' if self.rule == 'olor' else f' {self.rule}') + penalty

    def capture(self, again: bool = False) -> None:
        """Take theta_0 now and not at the first step; of parameters that can be trained and have none yet.

        Args:
            again: Also of those whose theta_0 was taken before and that have made no step since. Defaults to False.

        Raises:
            MissingAnchorError: If parameters have been trained already and have no theta_0.
        """
        if self._store is not None and self._store.take(again):
            self._batches = None

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
        if self._is_reached():
            self.capture()
            self._add_penalty(self._penalty, scale)

    def _is_reached(self) -> bool:
        """Whether anything of this step is ours."""
        return any(p.grad is not None for p in (self.levels if self._penalty is None else self._penalty.reached))

    def _add_penalty(self, penalty: Penalty, scale: float | Tensor) -> None:
        penalty.prepare()
        check_gradients(penalty.new if penalty.options.beta else (), self.names)
        penalty.add(self._plan(), scale)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The arguments are those of step(), the optimizer itself the first of them.
        closure = args[1] if len(args) > 1 else kwargs.get('closure')
        self._left = None
        if self._single_pass is not None:
            # Of a step that ended in an error.
            self._single_pass.forget()
        if closure is None and not self._is_reached():
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
            self._ruling.before(self._left, descents(self.optimizer))

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
