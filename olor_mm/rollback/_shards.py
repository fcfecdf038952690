"""Parameters that are spread over a mesh of devices: torch's DTensor, as ``fully_shard`` (FSDP2) makes them.

A rank works on the part that it holds. Nothing here imports DTensor: a torch without it has no such parameters.
"""

import inspect
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ['is_spread', 'local', 'reduction', 'shard_index', 'spread_like']


def is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, 'device_mesh') and hasattr(tensor, 'placements')


def local(tensor: Any) -> Tensor:
    """The part that this rank holds, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if is_spread(tensor) else tensor


def _cut_dims(tensor: Any) -> tuple[int, ...]:
    """Dimensions of the mesh along which the ranks hold different parts."""
    return tuple(i for i, placement in enumerate(tensor.placements) if not placement.is_replicate())


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
    if not is_spread(tensor) or not _cut_dims(tensor):
        return None, None
    mesh, dims = tensor.device_mesh, _cut_dims(tensor)

    def reduce(sums: Tensor) -> Tensor:
        for dim in dims:
            dist.all_reduce(sums, group=mesh.get_group(dim))
        return sums

    return (mesh, dims), reduce


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
