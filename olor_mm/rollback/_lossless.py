"""Is a tensor's every value one of a narrower dtype? Proven, not assumed."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ['is_dense', 'narrowed', 'same_bits']

#: Dtype to what its values may be kept in, the first one that holds them all.
_NARROWER = {
    torch.float32: (torch.float16, torch.bfloat16),
    torch.float64: (torch.float16, torch.bfloat16, torch.float32),
}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20  # elements; bounds the memory that a proof takes


def narrowed(value: Tensor) -> Tensor:
    """The tensor in the narrowest dtype from which every value of it comes back bit by bit; itself where there is none.

    Signed zeros and subnormal numbers count. Complex numbers and those of 16 bits stay as they are.

    Args:
        value: Any dense tensor.

    Returns:
        A tensor of the same shape and memory layout on the same device.
    """
    for dtype in _NARROWER.get(value.dtype, ()):
        if all(same_bits(part.to(dtype).to(part.dtype), part) for part in _parts(value)):
            return value.to(dtype)
    return value


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape, one dtype and the same bits: -0.0 is not 0.0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    kind = _INTEGERS[one.element_size()]
    return torch.equal(one.view(kind), other.view(kind))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps, in whatever order of dimensions."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 == tensor.numel()


def _parts(value: Tensor) -> Iterator[Tensor]:
    flat = value.detach()
    flat = flat.as_strided((flat.numel(),), (1,)) if is_dense(flat) else flat.reshape(-1)
    return iter(flat.split(_CHUNK)) if flat.numel() else iter(())
