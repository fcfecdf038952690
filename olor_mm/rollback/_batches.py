"""One step's pull: which tensors go through a kernel together, and through which."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import kernels
from ._shards import is_spread, local, shard_index, way_of
from .anchor import Anchors
from .rounding import LOW_PRECISION, Dither, stochastic

__all__ = ['FORMS', 'Batch', 'batches_of', 'pull']

FORMS = ('foreach', 'single_tensor', 'single_pass')


class Batch:
    """Tensors of one device and dtype: what one call of a kernel takes.

    ``dense`` says that each parameter and its anchor fill their memory in the same order, without gaps; ``spread`` that
    they are DTensors; ``shard`` is the number of the part of them that is here.
    """

    def __init__(self, dense: bool, spread: bool, shard: int) -> None:
        self.dense = dense
        self.spread = spread
        self.shard = shard
        self.params: list[Tensor] = []
        self.anchors: list[Tensor] = []
        self.levels: list[float] = []
        self.groups: list[int] = []

    def only(self, indices: Sequence[int]) -> 'Batch':
        """These tensors of it."""
        part = Batch(self.dense, self.spread, self.shard)
        for name in ('params', 'anchors', 'levels', 'groups'):
            mine = getattr(self, name)
            setattr(part, name, [mine[j] for j in indices])
        return part


def batches_of(
    groups: Iterable[Mapping[str, Any]],
    levels: Mapping[Tensor, float],
    store: Anchors,
    shards: Mapping[Tensor, int],
) -> list[Batch]:
    """The tensors with a gradient, by device and dtype.

    Args:
        groups: The optimizer's parameter groups.
        levels: Parameter to lambda, above 0.
        store: What keeps theta_0.
        shards: Parameter to the number of its shard here, where torch does not tell.
    """
    batches: dict[Hashable, Batch] = {}
    for g, group in enumerate(groups):
        for param in group['params']:
            if param not in levels or param.grad is None or param not in store:
                continue
            anchor, here = store[param], local(param)
            dense = _is_dense(here) and here.stride() == local(anchor).stride()
            spread, shard = is_spread(param), shards.get(param, 0) + shard_index(param)
            # A batch has its own random numbers. What other ranks hold too must not be among what they do not.
            key = (here.device, here.dtype, dense, spread, way_of(param), shard)
            batch = batches.setdefault(key, Batch(dense, spread, shard))
            batch.params.append(param)
            batch.anchors.append(anchor)
            batch.levels.append(levels[param])
            batch.groups.append(g)
    return list(batches.values())


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps, in whatever order of dimensions."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 == tensor.numel()


def pull(batch: Batch, ratios: Sequence[float | Tensor], found_inf: Tensor | None, form: str, dither: Dither) -> None:
    """theta <- lerp(theta, theta_0, a) for a batch.

    Args:
        batch: What is pulled.
        ratios: lr / initial_lr of each of the optimizer's groups.
        found_inf: One element on a device: 1. where the step was none, else 0. None where it was one.
        form: One of ``FORMS``.
        dither: Random numbers for what is rounded.
    """
    params, anchors = batch.params, batch.anchors
    if not params:
        return
    if batch.spread:
        params, anchors = [local(p) for p in params], [local(a) for a in anchors]
        if not any(p.numel() for p in params):
            return
    rates = [ratios[g] for g in batch.groups]
    low = params[0].dtype in LOW_PRECISION
    if any(isinstance(rate, Tensor) for rate in rates) or (low and found_inf is not None):
        scale = 1.0 if found_inf is None else 1.0 - found_inf.reshape(())
        strengths = [torch.as_tensor(r * v).clamp(0, 1) * scale for r, v in zip(rates, batch.levels, strict=True)]
        _one_by_one(params, anchors, strengths, batch.shard, dither)
        return
    weights = [min(float(r) * v, 1.0) for r, v in zip(rates, batch.levels, strict=True)]
    # A pull of strength 0 must not even turn -0.0 into 0.0.
    keep = [j for j, weight in enumerate(weights) if weight > 0.0]
    if not keep:
        return
    if len(keep) < len(weights):
        params, anchors, weights = [params[j] for j in keep], [anchors[j] for j in keep], [weights[j] for j in keep]
    if found_inf is not None:
        found_inf = found_inf.to(params[0].device, non_blocking=True)
        kernels.fused(params, anchors, weights, found_inf, dense=batch.dense)
    elif low or form == 'single_tensor':
        _one_by_one(params, anchors, weights, batch.shard, dither)
    elif params[0].device.type == 'cpu':
        kernels.fused(params, anchors, weights, dense=batch.dense)
    else:
        kernels.foreach(params, anchors, weights)


def _one_by_one(
    params: list[Tensor], anchors: list[Tensor], weights: Sequence[float | Tensor], shard: int, dither: Dither
) -> None:
    if params[0].dtype in LOW_PRECISION:
        stochastic(params, anchors, weights, dither.generator(params[0].device, shard))
    else:
        kernels.single_tensor(params, anchors, weights)
