"""L2-SP: a penalty on the distance to theta_0, as a term of the gradient (Li, Grandvalet and Davoine, ICML 2018).

The loss gains alpha/2 ||theta - theta_0||^2 for what is pre-trained and beta/2 ||theta||^2 for what is new (arXiv
1802.01483), so the gradient gains alpha (theta - theta_0) and beta theta. The optimizer sees it as any
other gradient: Adam divides it by sqrt(v), which is what the rollback does not suffer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from olor_mm._options import check_known

from ._batches import Batch
from ._shards import local
from .schedule import descents

__all__ = ['L2SP', 'Penalty', 'check_l2_sp', 'check_penalty']

#: Bytes of the differences that are there at a time.
_BUCKET = 16 << 20


@dataclass(frozen=True)
class L2SP:
    """The strengths of L2-SP.

    Args:
        alpha: Of the distance to theta_0, at least 0; the loss gains alpha/2 times the sum of squares, not their mean.
            0 switches off.
        beta: Of the squares of the optimizer's other parameters, the new ones, at least 0. Defaults to 0.
        by_hand: Whether ``Rollback.add_l2_sp`` is called in every step, after the backward pass and before gradients
            are clipped. Otherwise the term is added as the optimizer's step begins, which is after any clipping.
            Defaults to False.

    Raises:
        ValueError: If a value cannot be right.
    """

    alpha: float
    beta: float = 0.0
    by_hand: bool = False

    def __post_init__(self) -> None:
        for option in ('alpha', 'beta'):
            value = getattr(self, option)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ValueError(f'l2_sp.{option}={value!r} must be a finite number from 0, such as 0.01')
        if not isinstance(self.by_hand, bool):
            raise ValueError(f'l2_sp.by_hand={self.by_hand!r} must be True or False')
        if self.beta and not self.alpha:
            raise ValueError(
                f'l2_sp.beta={self.beta!r} with alpha=0 is weight decay of the new parameters alone, which optimizers '
                'have themselves: give alpha too, or use weight_decay'
            )


def check_l2_sp(value: Any) -> L2SP | None:
    """The strengths that an option gives; None where it is off.

    Args:
        value: An :class:`L2SP`, a dict of its options, or None.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, Mapping):
        check_known('l2_sp', value, [f.name for f in fields(L2SP)])
        if 'alpha' not in value:
            raise ValueError('l2_sp.alpha is not set: give its strength, such as 0.01')
        value = L2SP(**value)
    if value is not None and not isinstance(value, L2SP):
        raise ValueError(f'l2_sp={value!r:.80} must be a dict such as dict(alpha=0.01, beta=0.01), an L2SP or None')
    return value if value is not None and value.alpha else None


def check_penalty(options: L2SP | None, sharing: bool) -> None:
    """See that L2-SP goes with the optimizer.

    Args:
        options: The strengths; None where it is off.
        sharing: Whether ranks share the parameters out among them.

    Raises:
        ValueError: If it does not.
    """
    if options is not None and sharing:
        raise ValueError(
            'l2_sp is not for a ZeroRedundancyOptimizer: a rank has theta_0 of its share alone, and gradients would be '
            "clipped by a norm that lacks the others' part of the penalty; give the optimizer itself, or use "
            'fully_shard'
        )


class Penalty:
    """Adds the term to the gradients of one optimizer, once for each of its steps.

    Args:
        options: The strengths.
        optimizer: The optimizer.
        pretrained: Its parameters that have a theta_0; all others are new.
    """

    def __init__(self, options: L2SP, optimizer: Optimizer, pretrained: Iterable[Tensor]) -> None:
        self.options = options
        self._optimizer = optimizer
        self._pretrained = [*pretrained]
        self._added = False

    @property
    def new(self) -> list[Tensor]:
        """The optimizer's other parameters."""
        return self._new(1.0) + self._new(-1.0)

    def _new(self, sign: float) -> list[Tensor]:
        """Those in the groups with this sign."""
        known = {*self._pretrained}
        groups = zip(self._optimizer.param_groups, descents(self._optimizer), strict=True)
        return [p for group, own in groups if own == sign for p in group['params'] if p not in known]

    @property
    def reached(self) -> list[Tensor]:
        """The parameters that it is a term of: a step in which one of them has a gradient has to add it."""
        return [*self._pretrained, *(self.new if self.options.beta else ())]

    def prepare(self) -> None:
        """Give a gradient to what has none: the penalty is part of the loss, and reaches all that is trained."""
        for param in self.reached:
            if param.grad is None and param.requires_grad:
                param.grad = torch.zeros_like(param)

    def add(self, batches: Sequence[Batch], scale: float | Tensor) -> None:
        """Add it; see :func:`_add_distance`."""
        signs = descents(self._optimizer)
        for sign in {*signs}:
            _add_distance([batch.of_groups(signs, sign) for batch in batches], sign * self.options.alpha, scale)
            if self.options.beta:
                _add_decay(self._new(sign), sign * self.options.beta, scale)
        self._added = True

    @property
    def is_due(self) -> bool:
        """Whether a step that begins now has to add it.

        Raises:
            RuntimeError: If it was to be added by hand and was not.
        """
        if self.options.by_hand and not self._added:
            if _steps_nowhere(self._optimizer):
                # So torch's distributed checkpoints make an optimizer have a state, to load another one into it.
                return False
            raise RuntimeError(
                'l2_sp.by_hand=True, but Rollback.add_l2_sp() was not called before this step: call it after the '
                'backward pass and before gradients are clipped, or leave by_hand away'
            )
        return not self.options.by_hand

    def after_step(self) -> None:
        """The next step has gradients of its own."""
        self._added = False


def _steps_nowhere(optimizer: Optimizer) -> bool:
    rates = [group.get('lr') for group in optimizer.param_groups]
    return not any(rate is None or (isinstance(rate, Tensor) and rate.device.type != 'cpu') or rate for rate in rates)


@torch.no_grad()
def _add_distance(batches: Sequence[Batch], alpha: float, scale: float | Tensor) -> None:
    """g <- g + scale alpha (theta - theta_0).

    Args:
        batches: Parameters with their theta_0.
        alpha: The strength; below 0 where the optimizer goes along the gradients.
        scale: What the gradients are scaled by: a number, or a tensor of one element.
    """
    for batch in batches:
        for part in batch.ready():
            rows = [(p, a, p.grad) for p, a in zip(part.params, part.anchors, strict=True) if p.grad is not None]
            for some in _buckets([local(p) for p, _, _ in rows]):
                params, anchors, grads = ([local(t) for t in column] for column in zip(*rows[some], strict=True))
                _add(grads, list(torch._foreach_sub(params, anchors)), alpha, scale)


@torch.no_grad()
def _add_decay(params: Sequence[Tensor], beta: float, scale: float | Tensor) -> None:
    """g <- g + scale beta theta, for what has a gradient."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            kinds.setdefault((param.device, param.dtype), []).append(param)
    for some in kinds.values():
        values = [local(p).detach() for p in some]
        terms = list(torch._foreach_mul(values, 1.0)) if isinstance(scale, Tensor) else values
        _add([local(p.grad) for p in some], terms, beta, scale)


def _add(grads: list[Tensor], terms: list[Tensor], strength: float, scale: float | Tensor) -> None:
    device = terms[0].device
    if isinstance(scale, Tensor) and device.type == 'cpu':
        scale = float(scale)
    if isinstance(scale, Tensor):
        # The device alone knows it. The terms are ours to change.
        torch._foreach_mul_(terms, scale.reshape(()).to(device, non_blocking=True))
        scale = 1.0
    torch._foreach_add_(grads, terms, alpha=strength * scale)


def _buckets(params: Sequence[Tensor]) -> list[slice]:
    found, start, size = [], 0, 0
    for stop, param in enumerate(params, 1):
        size += param.numel() * param.element_size()
        if size >= _BUCKET or stop == len(params):
            found.append(slice(start, stop))
            start, size = stop, 0
    return found
