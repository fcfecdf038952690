# mypy: allow-untyped-defs, allow-incomplete-defs
"""The single pass on a GPU: one Triton kernel for all tensors, which finds them by a table of their addresses.

The number of kernels does not grow with that of tensors, and the host never waits for the device.
"""

import functools
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cpu import BuildError

__all__ = ['adam', 'load', 'sgd']

_BLOCK = 2048
#: Triton 2.1, which came with torch 2.1, has only the one that it is named after there.
_TRITON_ERROR = triton.errors.TritonError if hasattr(triton, 'errors') else triton.CompilationError
#: Built here: inside a kernel Triton 2.1 cannot.
_DTYPES = {torch.float32: tl.pointer_type(tl.float32), torch.float64: tl.pointer_type(tl.float64)}


def adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    anchors: list[Tensor],
    scalars: Tensor,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """As :func:`.cpu.adam`; nothing where ``found_inf``, one float32 element on the device, is not 0."""
    _launch(_adam, (params, grads, exp_avgs, exp_avg_sqs, anchors), scalars, grad_scale, found_inf)


def sgd(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    anchors: list[Tensor],
    scalars: Tensor,
    nesterov: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """As :func:`.cpu.sgd`; nothing where ``found_inf``, one float32 element on the device, is not 0."""
    _launch(_sgd, (params, grads, buffers, anchors), scalars, grad_scale, found_inf, nesterov=nesterov)


@functools.cache
def load(device: torch.device) -> None:
    """See that kernels can be compiled and run on a device.

    Raises:
        BuildError: If they cannot.
    """
    try:
        one = [torch.ones(1, device=device)]
        skip = torch.ones(1, device=device)
        adam(one, one, one, one, one, torch.zeros(1, 10, device=device), found_inf=skip)
        sgd(one, one, one, one, torch.zeros(1, 6, device=device), False, found_inf=skip)
    except (RuntimeError, OSError, subprocess.SubprocessError, _TRITON_ERROR) as error:
        raise BuildError(f'Triton: {error}') from error


def _launch(
    kernel: Any,
    tensors: Sequence[list[Tensor]],
    scalars: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    **options: Any,
) -> None:
    params = tensors[0]
    device = params[0].device
    pieces, sizes = _pieces(tuple(p.numel() for p in params), device)
    addresses = torch.tensor([[t.data_ptr() for t in some] for some in tensors], device='cpu')
    aligned = not bool((addresses % 16).any())
    if device.type == 'cuda':
        # Without a wait of the host for the device.
        addresses = addresses.pin_memory().to(device, non_blocking=True)
    options['scaled'] = grad_scale is not None
    grad_scale = _zero(device) if grad_scale is None else grad_scale
    found_inf = _zero(device) if found_inf is None else found_inf
    with torch.cuda.device(device if device.type == 'cuda' else -1):
        kernel[(len(pieces),)](
            addresses, pieces, scalars, grad_scale, found_inf, sizes, len(params),
            **options, aligned=aligned, block=_BLOCK, dtype=_DTYPES[params[0].dtype]
        )  # fmt: skip


@functools.lru_cache(maxsize=4)
def _pieces(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Which tensor and which block of it each program of the kernel takes, [pieces, 2]; and the tensors' sizes."""
    lengths = torch.tensor(sizes, device='cpu')
    blocks = (lengths + _BLOCK - 1) // _BLOCK
    tensor = torch.repeat_interleave(torch.arange(len(sizes), device='cpu'), blocks)
    first = torch.cumsum(blocks, 0) - blocks
    block = torch.arange(len(tensor), device='cpu') - first[tensor]
    return torch.stack([tensor, block], 1).to(device), lengths.to(device)


@functools.lru_cache(maxsize=16)
def _zero(device: torch.device) -> Tensor:
    # Copied from the host, which waits for it: other streams will read it.
    return torch.tensor([0.0], device='cpu').to(device)


@triton.jit
def _pointers(addresses, tensor, aligned: tl.constexpr, dtype: tl.constexpr):
    pointer = tl.load(addresses + tensor).to(dtype)
    if aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(pointers, mask, full: tl.constexpr):
    return tl.load(pointers) if full else tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _store(pointers, values, mask, full: tl.constexpr):
    if full:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=mask)


@triton.jit
def _gradient(grad, grad_scale, mask, scaled: tl.constexpr, full: tl.constexpr):
    g = _load(grad, mask, full)
    if scaled:
        # As torch's fused kernels leave it.
        g /= tl.load(grad_scale)
        _store(grad, g, mask, full)
    return g


@triton.jit
def _adam_block(
    param, grad, exp_avg, exp_avg_sq, anchor, row, grad_scale, mask, scaled: tl.constexpr, full: tl.constexpr
):
    p = _load(param, mask, full)
    g = tl.load(row) * _gradient(grad, grad_scale, mask, scaled, full)
    # Without decay nothing of p may get into g: it may be infinite.
    g = tl.where(tl.load(row + 1) == 0, g, g + p * tl.load(row + 1))
    m = _load(exp_avg, mask, full)
    m += tl.load(row + 3) * (g - m)
    v = tl.load(row + 4) * _load(exp_avg_sq, mask, full) + tl.load(row + 5) * g * g
    updated = p * tl.load(row + 2) - tl.load(row + 7) * m / (tl.sqrt(v) / tl.load(row + 8) + tl.load(row + 6))
    _store(param, updated + tl.load(row + 9) * (_load(anchor, mask, full) - updated), mask, full)
    _store(exp_avg, m, mask, full)
    _store(exp_avg_sq, v, mask, full)


@triton.jit
def _adam(
    addresses, pieces, scalars, grad_scale, found_inf, sizes, num,
    scaled: tl.constexpr, aligned: tl.constexpr, block: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    if tl.load(found_inf) == 0:
        tensor = tl.load(pieces + 2 * tl.program_id(0))
        start = tl.load(pieces + 2 * tl.program_id(0) + 1) * block
        size = tl.load(sizes + tensor)
        offsets = tl.multiple_of(start, block) + tl.arange(0, block)
        param = _pointers(addresses, tensor, aligned, dtype) + offsets
        grad = _pointers(addresses + num, tensor, aligned, dtype) + offsets
        exp_avg = _pointers(addresses + 2 * num, tensor, aligned, dtype) + offsets
        exp_avg_sq = _pointers(addresses + 3 * num, tensor, aligned, dtype) + offsets
        anchor = _pointers(addresses + 4 * num, tensor, aligned, dtype) + offsets
        row = scalars + 10 * tensor
        if start + block <= size:
            # Without a mask four numbers are read at once.
            _adam_block(param, grad, exp_avg, exp_avg_sq, anchor, row, grad_scale, offsets < size, scaled, True)
        else:
            _adam_block(param, grad, exp_avg, exp_avg_sq, anchor, row, grad_scale, offsets < size, scaled, False)


@triton.jit
def _sgd_block(
    param, grad, buffer, anchor, row, grad_scale, mask,
    nesterov: tl.constexpr, scaled: tl.constexpr, full: tl.constexpr
):  # fmt: skip
    momentum = tl.load(row + 2)
    p = _load(param, mask, full)
    g = tl.load(row) * _gradient(grad, grad_scale, mask, scaled, full)
    # Without decay nothing of p may get into g: it may be infinite.
    g = tl.where(tl.load(row + 1) == 0, g, g + p * tl.load(row + 1))
    b = momentum * _load(buffer, mask, full) + tl.load(row + 3) * g
    updated = p - tl.load(row + 4) * ((g + momentum * b) if nesterov else b)
    _store(param, updated + tl.load(row + 5) * (_load(anchor, mask, full) - updated), mask, full)
    _store(buffer, b, mask, full)


@triton.jit
def _sgd(
    addresses, pieces, scalars, grad_scale, found_inf, sizes, num,
    nesterov: tl.constexpr, scaled: tl.constexpr, aligned: tl.constexpr, block: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    if tl.load(found_inf) == 0:
        tensor = tl.load(pieces + 2 * tl.program_id(0))
        start = tl.load(pieces + 2 * tl.program_id(0) + 1) * block
        size = tl.load(sizes + tensor)
        offsets = tl.multiple_of(start, block) + tl.arange(0, block)
        param = _pointers(addresses, tensor, aligned, dtype) + offsets
        grad = _pointers(addresses + num, tensor, aligned, dtype) + offsets
        buffer = _pointers(addresses + 2 * num, tensor, aligned, dtype) + offsets
        anchor = _pointers(addresses + 3 * num, tensor, aligned, dtype) + offsets
        row = scalars + 6 * tensor
        if start + block <= size:
            _sgd_block(param, grad, buffer, anchor, row, grad_scale, offsets < size, nesterov, scaled, True)
        else:
            _sgd_block(param, grad, buffer, anchor, row, grad_scale, offsets < size, nesterov, scaled, False)
