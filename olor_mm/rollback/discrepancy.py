"""How far weights are from theta_0, relative to it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ._shards import local, reduction
from .anchor import Anchors

__all__ = ['relative_discrepancy']

K = TypeVar('K', bound=Hashable)


def relative_discrepancy(
    store: Anchors, parts: Mapping[K, Sequence[Tensor]], reduce: Callable[[Tensor], Tensor] | None
) -> dict[K, float]:
    """What :meth:`~olor_mm.rollback.Rollback.discrepancy` returns, for the theta_0 that ``store`` keeps."""
    if not parts:
        return {}
    # Sums by how they are to be reduced; of each part ||theta - theta_0||^2, ||theta_0||^2, number of tensors.
    ways: dict[Hashable, Callable[[Tensor], Tensor] | None] = {None: reduce}
    sums: dict[Hashable, list[list[Tensor]]] = {None: [[] for _ in parts]}
    device = None
    for row, params in enumerate(parts.values()):
        for param in params:
            if param in store and param.numel():
                way, function = reduction(param)
                ways.setdefault(way, function)
                found = _squares(local(param), local(store[param]))
                device = found.device if device is None else device
                sums.setdefault(way, [[] for _ in parts])[row].append(found.to(device))
    total = torch.zeros(len(parts), 3, dtype=torch.float32 if _is_mps(device) else torch.float64, device=device)
    for way, rows in sums.items():
        of_way = torch.stack([torch.stack(row).sum(0) if row else torch.zeros_like(total[0]) for row in rows])
        function = ways[way]
        total += of_way if function is None else function(of_way).to(total.device)
    values = [(d**0.5, t**0.5, count) for d, t, count in total.tolist()]
    return {
        key: d / t if t else (float('inf') if d else 0.0)
        for key, (d, t, count) in zip(parts, values, strict=True)
        if count
    }


def _squares(param: Tensor, anchor: Tensor) -> Tensor:
    """(||theta - theta_0||^2, ||theta_0||^2, 1), in float32 at least."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    anchor = anchor.to(param.device, non_blocking=True).to(dtype)
    both = torch.stack([torch.linalg.vector_norm(param.to(dtype) - anchor), torch.linalg.vector_norm(anchor)])
    both = both.square() if _is_mps(both.device) else both.double().square()
    return torch.cat([both, torch.ones_like(both[:1])])


def _is_mps(device: torch.device | None) -> bool:
    """Whether the device has no float64."""
    return device is not None and device.type == 'mps'
