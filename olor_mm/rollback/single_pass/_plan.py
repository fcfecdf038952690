"""What a single pass takes of a batch, found once and used until something of it changes."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from .._batches import Batch

__all__ = ['Part', 'Plan', 'wants']


class Part(NamedTuple):
    """Tensors that one call of a kernel can take: the counts of whose steps are alike and in one place."""

    batch: Batch
    nesterov: bool


def wants(batch: Batch, ratios: Sequence[float | Tensor], reasons: Sequence[str | None]) -> list[bool]:
    """Whether each tensor of a batch is pulled as a kernel can: by more than 0 and less than 1/2.

    Args:
        batch: What is to be pulled.
        ratios: lr / initial_lr of each of the optimizer's groups.
        reasons: Why the tensors of each group cannot be taken; None if they can.
    """
    able = [
        0.0 if reason or isinstance(ratio, Tensor) else ratio for ratio, reason in zip(ratios, reasons, strict=True)
    ]
    return [0.0 < able[g] * level < 0.5 for g, level in zip(batch.groups, batch.levels, strict=True)]


class Plan:
    """What is taken of a batch, and what is left.

    Args:
        optimizer: Whose steps are made.
        batch: What is to be pulled.
        wanted: What :func:`wants` says of it.
        taken: Indices of those that a kernel takes.
        keys: Entries of a parameter's state that the kernel reads and writes.
    """

    def __init__(
        self, optimizer: Optimizer, batch: Batch, wanted: list[bool], taken: Sequence[int], keys: Sequence[str]
    ) -> None:
        self.parts = _parts(optimizer, batch, taken)
        chosen = {*taken}
        #: None where it is all of the batch, which must not be held from here.
        self.left = batch.only([j for j in range(len(batch.params)) if j not in chosen]) if chosen else None
        self._keys = keys
        self._wanted = wanted
        # What was not taken for another reason than its strength is asked anew at every step.
        self._lasts = sum(wanted) == len(taken)
        self._nesterov = _nesterov(optimizer)
        self._params = [p for part in self.parts for p in part.batch.params]
        moments = _moments(optimizer, self._params, keys)
        # Not held: an optimizer may put its state elsewhere between steps, to free the memory.
        self._moments = [ref(t) for t in moments]
        self._addresses = [t.data_ptr() for t in moments]
        self._layout = _layout(self._params)

    def holds(
        self,
        optimizer: Optimizer,
        batch: Batch,
        ratios: Sequence[float | Tensor],
        reasons: Sequence[str | None],
    ) -> bool:
        """Whether it would be made so again."""
        if not self._lasts or self._wanted != wants(batch, ratios, reasons) or self._nesterov != _nesterov(optimizer):
            return False
        moments = _moments(optimizer, self._params, self._keys)
        if len(moments) != len(self._moments):
            return False
        if any(moment is not held() for moment, held in zip(moments, self._moments, strict=True)):
            return False
        # Also where what they hold was put elsewhere: the kernels walk over memory and do not ask.
        addresses = [t.data_ptr() for t in moments]
        grads: list[Any] = [p.grad for p in self._params]
        return self._addresses == addresses and self._layout == _layout(self._params) == _layout(grads)


def _parts(optimizer: Optimizer, batch: Batch, taken: Sequence[int]) -> list[Part]:
    parts: dict[Any, list[int]] = {}
    nesterov = _nesterov(optimizer)
    for j in taken:
        count = optimizer.state[batch.params[j]].get('step')
        where = (count.device, count.dtype) if isinstance(count, Tensor) else None
        parts.setdefault((nesterov[batch.groups[j]], where), []).append(j)
    return [Part(batch.only(part), key[0]) for key, part in parts.items()]


def _nesterov(optimizer: Optimizer) -> list[bool]:
    return [bool(group.get('nesterov')) for group in optimizer.param_groups]


def _moments(optimizer: Optimizer, params: Sequence[Tensor], keys: Sequence[str]) -> list[Tensor]:
    # The counts of steps too: a kernel takes those that are alike and in one place.
    states = [optimizer.state.get(p, {}) for p in params]
    return [state[key] for key in (*keys, 'step') for state in states if isinstance(state.get(key), Tensor)]


def _layout(tensors: Sequence[Any]) -> list[Any]:
    """All of it but the address."""
    return [t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors]
