"""Rounding of the pull in bfloat16 and float16, where rounding to the nearest would lose it.

Next to theta a weight of p bits has neighbours 2^(1-p) apart, relative to the power of two below it: 2^-7 in bfloat16,
2^-10 in float16. A pull a (theta_0 - theta) of less than half of that is rounded away, at every step anew, so a weight
that is fewer than 1 / (2a) such units away from theta_0 never comes back: 50 units at a = 0.01, in bfloat16 a fifth to
two fifths of the weight itself. Stochastic rounding takes the nearer and the farther neighbour with probabilities that
make the mean exact. The pull is then kept in the mean whatever a is, needs no memory, and a weight is never
taken past theta_0 or away from it, for the result lies between the two.

The random numbers are a function of a count that is saved with the optimizer: all replicas of a model round alike, a
resumed run rounds as the uninterrupted one would have, and nobody else's random numbers change.

How: in float64 the pull leaves tens of bits below those that the weight's own dtype keeps. A random number is added to
these, as integers, and what then lies below is cut off: the bits that are kept have carried one more with just the
probability that makes the mean exact. That is nine kernels for as many tensors as go through together.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import kernels
from ._numbers import Numbers

__all__ = ['COUNT_KEY', 'LOW_PRECISION', 'SPARE', 'Dither', 'stochastic']

#: The count of rounded steps, in the optimizer's first group.
COUNT_KEY = 'rollback_rounded_steps'

#: Dtypes whose pull is rounded stochastically.
LOW_PRECISION = (torch.bfloat16, torch.float16)

#: Bits of float64 below the last one that the dtype keeps.
SPARE = {torch.bfloat16: 45, torch.float16: 42}
# Below it float16 keeps fewer bits, at numbers that weights have. (Those of bfloat16 begin at 1e-38: there the mean may
# be off by less than one of the smallest units.)
_LEAST_NORMAL = torch.finfo(torch.float16).tiny

# Elements that are rounded at a time, by each thread: what a CPU's cache holds. And on a device: what leaves room.
_CHUNK, _CHUNK_ON_DEVICE = 2**15, 2**22

# Spreads consecutive counts over the seeds, away from the small ones that users choose.
_SPREAD, _SEEDS = 0x9E3779B97F4A7C15, 2**63
# And those of different shards.
_APART = 0x2545F4914F6CDD1D


class Dither:
    """Random numbers for the rounding of one optimizer's steps.

    Args:
        optimizer: The optimizer in whose first group the count of steps is kept.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def next_step(self) -> None:
        """Count a step."""
        group = self.optimizer.param_groups[0]
        group[COUNT_KEY] = int(group.get(COUNT_KEY, 0)) + 1

    def numbers(self, device: torch.device, dtype: torch.dtype, shard: int = 0) -> Numbers:
        """This step's random numbers, from their beginning.

        They are on the CPU for a device without float64, where :func:`stochastic` then computes too.

        Args:
            device: Where the parameters are.
            dtype: Theirs, one of ``LOW_PRECISION``.
            shard: The number of the shard, of tensors that are cut in shards. Defaults to 0.
        """
        count = self.optimizer.param_groups[0][COUNT_KEY]
        device = device if _has_float64(device.type) else torch.device('cpu')
        generator = torch.Generator(device).manual_seed((count * _SPREAD + shard * _APART) % _SEEDS)
        return Numbers(generator, SPARE[dtype])

    def clear(self) -> None:
        """Take the count out of the optimizer."""
        for group in self.optimizer.param_groups:
            group.pop(COUNT_KEY, None)


@cache
def _has_float64(device_type: str) -> bool:
    try:
        torch.zeros(1, dtype=torch.float64, device=device_type)
    except (RuntimeError, TypeError):
        return False
    return True


def stochastic(
    params: Sequence[Tensor],
    anchors: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    numbers: Numbers,
) -> None:
    """theta <- lerp(theta, theta_0, a) in float64, rounded to the parameter's dtype so that its mean is exact.

    The number of kernels grows with the number of elements, not of tensors, where the weights are numbers.

    Args:
        params: Parameters of one dtype in ``LOW_PRECISION`` on one device, modified in place.
        anchors: theta_0 of each, of the same dtype.
        weights: a of each, or a 0-dim tensor on the parameter's device.
        numbers: Those of ``Dither.numbers``; the result is computed on their device. The next elements get the next
            ones, so that several calls do what one would.
    """
    dtype, device = params[0].dtype, numbers.device
    size = _CHUNK * torch.get_num_threads() if device.type == 'cpu' else _CHUNK_ON_DEVICE
    size = min(size, sum(param.numel() for param in params))
    theta, theta_0 = (torch.empty(size, dtype=torch.float64, device=device) for _ in range(2))
    room = numbers.room(size)
    pairs, copies = _flat_pairs(params, anchors)
    for pieces in _chunks(pairs, weights, size):
        count = sum(piece[0].numel() for piece in pieces)
        _pull(pieces, theta[:count], theta_0[:count], numbers.take(count, room), dtype)
    for param, flat in copies:
        param.copy_(flat.view(param.shape))


def _flat_pairs(
    params: Sequence[Tensor], anchors: Sequence[Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Parameters and anchors as vectors, and what has to be copied back to which parameter, for it is no view."""
    pairs, copies = [], []
    for param, anchor in zip(params, anchors, strict=True):
        if param.is_contiguous() and anchor.is_contiguous():
            pairs.append((param.view(-1), anchor.view(-1)))
            continue
        # In the order in which they lie in memory, as with channels_last.
        order = sorted(range(param.dim()), key=param.stride, reverse=True)
        theta, theta_0 = param.permute(order), anchor.permute(order)
        if not (theta.is_contiguous() and theta_0.is_contiguous()):
            theta, theta_0 = param.contiguous(), anchor.contiguous()
            copies.append((param, theta))
        pairs.append((theta.view(-1), theta_0.view(-1)))
    return pairs, copies


_Piece = tuple[Tensor, Tensor, float | Tensor]


def _chunks(
    pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float | Tensor], size: int
) -> Iterator[list[_Piece]]:
    """Pieces of theta, theta_0 and their a, together of ``size`` elements; the last ones of what is left."""
    chunk: list[_Piece] = []
    room = size
    for (theta, theta_0), weight in zip(pairs, weights, strict=True):
        start, end = 0, theta.numel()
        while start < end:
            stop = min(end, start + room)
            chunk.append((theta[start:stop], theta_0[start:stop], weight))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _pull(pieces: list[_Piece], theta: Tensor, theta_0: Tensor, random: Tensor, dtype: torch.dtype) -> None:
    """Pull and round some pieces; ``theta`` and ``theta_0`` are float64 memory for them."""
    thetas, anchors, weights = (list(column) for column in zip(*pieces, strict=True))
    sizes = [piece.numel() for piece in thetas]
    parts, targets = list(theta.split(sizes)), list(theta_0.split(sizes))
    _gather(theta, parts, thetas)
    _gather(theta_0, targets, anchors)
    if any(isinstance(weight, Tensor) for weight in weights):
        for some, target, weight in zip(parts, targets, weights, strict=True):
            some.lerp_(target, torch.as_tensor(weight, dtype=theta.dtype, device=theta.device))
    elif len(set(weights)) == 1:
        theta.lerp_(theta_0, weights[0])
    else:
        kernels.foreach(parts, targets, weights)
    if dtype == torch.float16:
        # So that all of them have the same unit there: it is that of the numbers just above.
        small = theta_0.copy_(theta).abs_().lt_(_LEAST_NORMAL).mul_(_LEAST_NORMAL).copysign_(theta)
        _round(theta.add_(small), random, dtype)
        theta.sub_(small)
    else:
        _round(theta, random, dtype)
    _scatter(thetas, theta, parts)


def _gather(values: Tensor, parts: list[Tensor], pieces: list[Tensor]) -> None:
    """Copy ``pieces`` into ``parts`` of ``values``: on a device by kernels that take many of them."""
    if len(pieces) == 1 or pieces[0].device.type != 'cpu':
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        values.copy_(joined.to(values.device))
    else:
        torch._foreach_copy_(parts, pieces)


def _scatter(pieces: list[Tensor], values: Tensor, parts: list[Tensor]) -> None:
    """Copy ``parts`` of ``values`` back; exact, for they are rounded."""
    if pieces[0].device.type != 'cpu':
        parts = list(values.to(pieces[0].dtype).to(pieces[0].device).split([piece.numel() for piece in pieces]))
    torch._foreach_copy_(pieces, parts)


def _round(values: Tensor, random: Tensor, dtype: torch.dtype) -> None:
    # Sign and magnitude: more is away from zero whatever the sign.
    values.view(torch.int64).add_(random).bitwise_and_(-(2 ** SPARE[dtype]))
