"""Parameters that are spread over a mesh of devices: torch's DTensor, as ``fully_shard`` (FSDP2) makes them.

A rank works on the part that it holds. Nothing here imports DTensor: a torch without it has no such parameters.
"""

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

__all__ = ['is_spread', 'is_zero', 'local', 'reduction', 'shard_index', 'spread_like', 'unwrap_zero', 'way_of']


def is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, 'device_mesh') and hasattr(tensor, 'placements')


def local(tensor: Any) -> Tensor:
    """The part that this rank holds, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if is_spread(tensor) else tensor


def _cut_dims(tensor: Any) -> tuple[int, ...]:
    """Dimensions of the mesh along which the ranks hold different parts."""
    return tuple(i for i, placement in enumerate(tensor.placements) if not placement.is_replicate())


def way_of(tensor: Any) -> Hashable:
    """In what way it is cut: equal for tensors that are cut alike; None where every rank has it whole."""
    dims = _cut_dims(tensor) if is_spread(tensor) else ()
    return (tensor.device_mesh, dims) if dims else None


def shard_index(tensor: Any) -> int:
    """Number of the part that this rank holds: equal for replicas, different for different parts; 0 where whole."""
    if not is_spread(tensor):
        return 0
    mesh, index = tensor.device_mesh, 0
    for dim in _cut_dims(tensor):
        index = index * mesh.size(dim) + mesh.get_local_rank(dim)
    return index


def reduction(tensor: Any) -> tuple[Hashable, Callable[[Tensor], Tensor] | None]:
    """How to sum something over all parts of a tensor.

    Returns:
        A key that is equal for tensors spread alike, and a function that every rank of the mesh must call; None where
        there is nothing to sum.
    """
    way = way_of(tensor)
    if way is None:
        return None, None
    mesh, dims = tensor.device_mesh, _cut_dims(tensor)

    def reduce(sums: Tensor) -> Tensor:
        for dim in dims:
            dist.all_reduce(sums, group=mesh.get_group(dim))
        return sums

    return way, reduce


def spread_like(value: Tensor, param: Any) -> Tensor:
    """A whole tensor, spread as ``param`` is; each rank must have it whole."""
    if not is_spread(param) or is_spread(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.detach().to(local(param).device)
    options: dict[str, Any] = {}
    if 'src_data_rank' in inspect.signature(distribute_tensor).parameters:
        # Every rank has it: no need to send it around.
        options['src_data_rank'] = None
    with torch.no_grad():
        return distribute_tensor(value, param.device_mesh, param.placements, **options)


def unwrap_zero(optimizer: Any) -> tuple[Optimizer, Callable[[Tensor], Tensor] | None]:
    """The optimizer that makes the steps of this rank, and how to sum over ranks; any other than ZeRO's as it is.

    A ZeroRedundancyOptimizer lets each rank step its share of the parameters, and then sends them round. What is done
    to them must be done before that, by the rank that keeps their state.

    Raises:
        ValueError: If the steps overlap with the backward pass.
    """
    if not is_zero(optimizer):
        return optimizer, None
    if getattr(optimizer, '_overlap_with_ddp', False):
        raise ValueError('ZeroRedundancyOptimizer(overlap_with_ddp=True) makes its steps elsewhere: leave it out')

    def reduce(sums: Tensor) -> Tensor:
        sums = sums.to(optimizer.join_device)
        dist.all_reduce(sums, group=optimizer.join_process_group)
        return sums

    return optimizer.optim, reduce


def is_zero(optimizer: object) -> bool:
    """Whether it is torch's ZeroRedundancyOptimizer, or a subclass."""
    return any(kind.__name__ == 'ZeroRedundancyOptimizer' for kind in type(optimizer).__mro__)
