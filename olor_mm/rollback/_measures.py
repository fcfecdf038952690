"""How far tensors are from theta_0, and on which side of it their gradient points: sums over whole tensors.

On a device they stay there: memory is what a bucket takes, unless one tensor alone is larger, and the number of kernels
grows with that of buckets and not of tensors. On a CPU a tensor goes through its cache in pieces.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor

from ._batches import Batch
from ._shards import local, reduction

__all__ = ['Measured', 'measured']

#: Parameter to [||theta - theta_0||^2], or to [<g, theta - theta_0>, ||theta - theta_0||^2].
Measured = dict[Tensor, Tensor]

#: Bytes of a bucket of parameters on a device; elements of a piece on a CPU.
_BUCKET, _PIECE = 64 << 20, 2**16


@torch.no_grad()
def measured(batches: Sequence[Batch], gradients: bool = False) -> Measured:
    """Sums over each tensor; of DTensors over all their shards, and every rank of their mesh must call this.

    Args:
        batches: Parameters with their theta_0.
        gradients: Whether the inner product with the gradient is wanted too. Defaults to False.
    """
    found: Measured = {}
    for batch in batches:
        for part in batch.ready():
            on_host = local(part.params[0]).device.type == 'cpu'
            sums = _sums_on_host if on_host else _sums
            rows = torch.cat([sums(*lists) for lists in _buckets(part, gradients)])
            found.update(zip(part.params, rows.unbind(), strict=True))
    return _over_shards(found)


def _over_shards(found: Measured) -> Measured:
    """The sums over all shards: one collective for all tensors that are spread alike."""
    ways: dict[Hashable, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {}
    for param in found:
        way, reduce = reduction(param)
        if reduce is not None:
            ways.setdefault(way, (reduce, []))[1].append(param)
    for reduce, params in ways.values():
        sums = torch.stack([found[p] for p in params])
        found.update(zip(params, reduce(sums).to(sums.device).unbind(), strict=True))
    return found


def _buckets(batch: Batch, gradients: bool) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor] | None]]:
    """Some parameters, their anchors and their gradients at a time, as real numbers."""
    start, size = 0, 0
    sizes = [local(p).numel() * p.element_size() for p in batch.params]
    for stop in range(1, len(sizes) + 1):
        size += sizes[stop - 1]
        if stop < len(sizes) and size + sizes[stop] <= _BUCKET:
            continue
        grads = [_real(p.grad) for p in batch.params[start:stop]] if gradients else None
        yield [_real(p) for p in batch.params[start:stop]], [_real(a) for a in batch.anchors[start:stop]], grads
        start, size = stop, 0


def _real(tensor: Tensor | None) -> Tensor:
    here = local(tensor)
    if not here.numel():
        # What a rank holds nothing of: not all kernels take that.
        return here.new_zeros(1)
    return torch.view_as_real(here) if here.is_complex() else here


def _sums(params: list[Tensor], anchors: list[Tensor], grads: list[Tensor] | None) -> Tensor:
    """[n, 1] or [n, 2]: what :data:`Measured` says of each."""
    wide = _wide(params[0])
    offsets = torch._foreach_sub([p.to(wide) for p in params], [a.to(wide) for a in anchors])
    squares = torch.stack(torch._foreach_norm(offsets)).square()
    if grads is None:
        return squares[:, None]
    products = torch._foreach_mul(offsets, [g.to(wide) for g in grads])
    del offsets
    # The sum of the positive ones minus that of the others; there is no sum of many tensors, but there are norms.
    magnitudes = torch.stack(torch._foreach_norm(products, 1))
    torch._foreach_clamp_min_(products, 0.0)
    positive = torch.stack(torch._foreach_norm(products, 1))
    return torch.stack([2 * positive - magnitudes, squares], dim=1)


def _wide(param: Tensor) -> torch.dtype:
    """What the sums are computed in."""
    return torch.promote_types(param.dtype, torch.float32)


def _sums_on_host(params: list[Tensor], anchors: list[Tensor], grads: list[Tensor] | None) -> Tensor:
    """The same on a CPU, in float64 over pieces, where nothing is gained by many tensors at a time."""
    rows = []
    for j, (param, anchor) in enumerate(zip(params, anchors, strict=True)):
        vectors = [param.reshape(-1), anchor.reshape(-1), *([] if grads is None else [grads[j].reshape(-1)])]
        rows.append([sum(column) for column in zip(*_of_pieces(vectors, _wide(param)), strict=True)])
    return torch.tensor(rows, dtype=torch.float64, device='cpu')


def _of_pieces(vectors: list[Tensor], wide: torch.dtype) -> Iterator[list[float]]:
    for pieces in zip(*(vector.split(_PIECE) for vector in vectors), strict=True):
        theta, theta_0, *grad = (piece.to(wide) for piece in pieces)
        offset = theta - theta_0
        yield [float(torch.dot(other, offset)) for other in (*grad, offset)]
