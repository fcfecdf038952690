"""One step's pull: which tensors go through a kernel together, and through which."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import kernels
from ._lossless import is_dense
from ._numbers import Numbers
from ._shards import is_spread, local, shard_index, way_of
from .anchor import Anchors
from .keeping import Keeper
from .rounding import LOW_PRECISION, Dither, stochastic

__all__ = ['FORMS', 'Batch', 'batches_of', 'pull']

FORMS = ('foreach', 'single_tensor', 'single_pass')


class Batch:
    """Tensors of one device and dtype: what one call of a kernel takes.

    ``dense`` says that each parameter and its anchor fill their memory in the same order, without gaps; ``spread`` that
    they are DTensors; ``shard`` is the number of the part of them that is here. ``keeper`` is what keeps the anchors,
    where those are not what a kernel reads; ``ready`` gives that.
    """

    def __init__(self, dense: bool, spread: bool, shard: int, keeper: Keeper | None = None) -> None:
        self.dense = dense
        self.spread = spread
        self.shard = shard
        self.keeper = keeper
        self.params: list[Tensor] = []
        self.anchors: list[Tensor] = []
        self.levels: list[float] = []
        self.groups: list[int] = []

    def only(self, indices: Sequence[int]) -> 'Batch':
        """These tensors of it."""
        part = Batch(self.dense, self.spread, self.shard, self.keeper)
        for name in ('params', 'anchors', 'levels', 'groups'):
            mine = getattr(self, name)
            setattr(part, name, [mine[j] for j in indices])
        return part

    def of_groups(self, signs: Sequence[float], sign: float) -> 'Batch':
        """Those of the optimizer's groups with this sign; itself where that is all."""
        chosen = [j for j, group in enumerate(self.groups) if signs[group] == sign]
        return self if len(chosen) == len(self.params) else self.only(chosen)

    def ready(self) -> Iterator['Batch']:
        """The batch in parts whose anchors kernels can read, each of them only until the next one is asked for."""
        if self.keeper is None or self.keeper.stage is None:
            yield self
            return
        self.keeper.check()
        for which, anchors in self.keeper.stage.buckets(self.params, self.anchors):
            part = Batch(self.dense, self.spread, self.shard)
            part.params, part.anchors = self.params[which], anchors
            part.levels, part.groups = self.levels[which], self.groups[which]
            yield part


def batches_of(
    groups: Iterable[Mapping[str, Any]],
    levels: Mapping[Tensor, float],
    store: Anchors,
    shards: Mapping[Tensor, int],
    keeper: Keeper | None = None,
    idle: bool = False,
) -> list[Batch]:
    """The tensors with a gradient, by device and dtype.

    Args:
        groups: The optimizer's parameter groups.
        levels: Parameter to lambda, or what else its rule takes.
        store: What keeps theta_0.
        shards: Parameter to the number of its shard here, where torch does not tell.
        keeper: What keeps theta_0, where kernels cannot read it as it is. Defaults to None.
        idle: Whether those without a gradient are wanted too. Defaults to False.

    Raises:
        RuntimeError: If a parameter has another shape than its theta_0.
    """
    keeper = None if keeper is None or keeper.is_plain else keeper
    batches: dict[Hashable, Batch] = {}
    for g, group in enumerate(groups):
        for param in group['params']:
            if param not in levels or (param.grad is None and not idle) or param not in store:
                continue
            anchor, here = store[param], local(param)
            if anchor.shape != param.shape:
                raise RuntimeError(
                    f'a parameter has shape {tuple(param.shape)} now, but {tuple(anchor.shape)} when its theta_0 was '
                    'taken: change a model before its optimizer is built, or detach() and build a new Rollback'
                )
            dense = is_dense(here) and (keeper is not None or here.stride() == local(anchor).stride())
            spread, shard = is_spread(param), shards.get(param, 0) + shard_index(param)
            # A batch has its own random numbers. What other ranks hold too must not be among what they do not.
            key = (here.device, here.dtype, dense, spread, way_of(param), shard)
            batch = batches.setdefault(key, Batch(dense, spread, shard, keeper))
            batch.params.append(param)
            batch.anchors.append(anchor)
            batch.levels.append(levels[param])
            batch.groups.append(g)
    return list(batches.values())


def pull(
    batch: Batch,
    ratios: Sequence[float | Tensor],
    found_inf: Tensor | None,
    form: str,
    dither: Dither,
    strengths: Tensor | None = None,
) -> None:
    """theta <- lerp(theta, theta_0, a) for a batch.

    Args:
        batch: What is pulled.
        ratios: What the level is multiplied by, such as lr / initial_lr, of each of the optimizer's groups.
        found_inf: One element on a device: 1. where the step was none, else 0. None where it was one.
        form: One of ``FORMS``.
        dither: Random numbers for what is rounded.
        strengths: a of each tensor, by a rule that looks at weights, where the step was none 0. Defaults to None,
            which is level times ratio.
    """
    if not batch.params:
        return
    low = batch.params[0].dtype in LOW_PRECISION
    # One for all parts: in how many a batch comes must not change what is drawn.
    numbers = dither.numbers(batch.params[0].device, batch.params[0].dtype, batch.shard) if low else None
    start = 0
    for part in batch.ready():
        stop = start + len(part.params)
        if strengths is None:
            _pull(part, ratios, found_inf, form, numbers)
        else:
            _pull_by(part, strengths[start:stop], form, numbers)
        start = stop


def _here(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and anchors as far as this rank holds them."""
    if not batch.spread:
        return batch.params, batch.anchors
    return [local(p) for p in batch.params], [local(a) for a in batch.anchors]


def _pull_by(batch: Batch, strengths: Tensor, form: str, numbers: Numbers | None) -> None:
    params, anchors = _here(batch)
    if not any(p.numel() for p in params):
        return
    if params[0].device.type == 'cpu':
        _pull_by_numbers(params, anchors, strengths.tolist(), None, form, numbers, batch.dense)
    elif numbers is not None or form == 'single_tensor':
        _one_by_one(params, anchors, strengths.unbind(), numbers)
    else:
        kernels.weighted(params, anchors, strengths)


def _pull(
    batch: Batch,
    ratios: Sequence[float | Tensor],
    found_inf: Tensor | None,
    form: str,
    numbers: Numbers | None,
) -> None:
    params, anchors = _here(batch)
    if batch.spread and not any(p.numel() for p in params):
        return
    rates = [ratios[g] for g in batch.groups]
    if any(isinstance(rate, Tensor) for rate in rates) or (numbers is not None and found_inf is not None):
        scale = 1.0 if found_inf is None else 1.0 - found_inf.reshape(())
        strengths = [torch.as_tensor(r * v).clamp(0, 1) * scale for r, v in zip(rates, batch.levels, strict=True)]
        _one_by_one(params, anchors, strengths, numbers)
        return
    weights = [min(float(r) * v, 1.0) for r, v in zip(rates, batch.levels, strict=True)]
    _pull_by_numbers(params, anchors, weights, found_inf, form, numbers, batch.dense)


def _pull_by_numbers(
    params: list[Tensor],
    anchors: list[Tensor],
    weights: list[float],
    found_inf: Tensor | None,
    form: str,
    numbers: Numbers | None,
    dense: bool,
) -> None:
    # A pull of strength 0 must not even turn -0.0 into 0.0.
    keep = [j for j, weight in enumerate(weights) if weight > 0.0]
    if not keep:
        return
    if len(keep) < len(weights):
        params, anchors, weights = [params[j] for j in keep], [anchors[j] for j in keep], [weights[j] for j in keep]
    if found_inf is not None:
        found_inf = found_inf.to(params[0].device, non_blocking=True)
        kernels.fused(params, anchors, weights, found_inf, dense=dense)
    elif numbers is not None or form == 'single_tensor':
        _one_by_one(params, anchors, weights, numbers)
    elif params[0].device.type == 'cpu':
        kernels.fused(params, anchors, weights, dense=dense)
    else:
        kernels.foreach(params, anchors, weights)


def _one_by_one(
    params: list[Tensor],
    anchors: list[Tensor],
    weights: Sequence[float | Tensor],
    numbers: Numbers | None,
) -> None:
    if numbers is not None:
        stochastic(params, anchors, weights, numbers)
    else:
        kernels.single_tensor(params, anchors, weights)
