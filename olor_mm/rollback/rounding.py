"""Rounding of the pull in bfloat16 and float16, where rounding to the nearest would lose it.

Next to theta a weight of p bits has neighbours 2^(1-p) apart, relative to the power of two below it: 2^-7 in bfloat16,
2^-10 in float16. A pull a (theta_0 - theta) of less than half of that is rounded away, at every step anew, so a weight
that is fewer than 1 / (2a) such units away from theta_0 never comes back: 50 units at a = 0.01, in bfloat16 a fifth to
two fifths of the weight itself. Stochastic rounding takes the nearer and the farther neighbour with probabilities that
make the mean exact. The pull is then kept in the mean whatever a is, needs no memory, and a weight is never
taken past theta_0 or away from it, for the result lies between the two.

The random numbers are a function of a count that is saved with the optimizer: all replicas of a model round alike, a
resumed run rounds as the uninterrupted one would have, and nobody else's random numbers change.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ['COUNT_KEY', 'LOW_PRECISION', 'Dither', 'stochastic']

#: The count of rounded steps, in the optimizer's first group.
COUNT_KEY = 'rollback_rounded_steps'

#: Dtypes whose pull is rounded stochastically.
LOW_PRECISION = (torch.bfloat16, torch.float16)

# Elements that are rounded at a time: what a CPU's cache holds, and what leaves a device's memory room.
_CHUNK, _CHUNK_ON_DEVICE = 2**18, 2**24

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

    def generator(self, device: torch.device, shard: int = 0) -> torch.Generator:
        """This step's random numbers on ``device``, from their beginning.

        Args:
            device: Where they are needed.
            shard: The number of the shard, of tensors that are cut in shards. Defaults to 0.
        """
        count = self.optimizer.param_groups[0][COUNT_KEY]
        return torch.Generator(device).manual_seed((count * _SPREAD + shard * _APART) % _SEEDS)

    def clear(self) -> None:
        """Take the count out of the optimizer."""
        for group in self.optimizer.param_groups:
            group.pop(COUNT_KEY, None)


def stochastic(
    params: Sequence[Tensor],
    anchors: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    generator: torch.Generator,
) -> None:
    """theta <- lerp(theta, theta_0, a) in float32, rounded to the parameter's dtype so that its mean is exact.

    Args:
        params: Parameters of a dtype in ``LOW_PRECISION``, modified in place.
        anchors: theta_0 of each, of the same dtype.
        weights: a of each, or a 0-dim tensor on the parameter's device.
        generator: Random numbers, on the same device.
    """
    for param, anchor, weight in zip(params, anchors, weights, strict=True):
        strength = weight.float() if isinstance(weight, Tensor) else weight
        if param.is_contiguous() and anchor.is_contiguous():
            size = _CHUNK if param.device.type == 'cpu' else _CHUNK_ON_DEVICE
            for part, target in zip(param.view(-1).split(size), anchor.view(-1).split(size), strict=True):
                _pull(part, target, strength, generator)
        else:
            _pull(param, anchor, strength, generator)


def _pull(param: Tensor, anchor: Tensor, weight: float | Tensor, generator: torch.Generator) -> None:
    theta, theta_0 = param.float(), anchor.float()
    near = torch.lerp(theta, theta_0, weight).to(param.dtype)
    nearest = near.float()
    # What the nearest value leaves out. From the pull, not from the sum, which has lost a small pull's last bits.
    rest = theta_0.sub_(theta).mul_(weight).sub_(theta.sub_(nearest).neg_())
    beside = _beside(near, nearest, rest)
    share = rest.div_(beside.float().sub_(nearest))
    chance = torch.rand(param.shape, generator=generator, device=param.device)
    param.copy_(torch.where(chance < share, beside, near))


def _beside(value: Tensor, same: Tensor, direction: Tensor) -> Tensor:
    """The next value of the same 16-bit dtype in a direction; of 0 the smallest number of that sign.

    ``same`` is the value in float32, where comparing is faster.
    """
    # Sign and magnitude: away from zero is one more whatever the sign.
    outward = (direction > 0) == (same > 0)
    beside = value.view(torch.int16) + outward.to(torch.int16).mul_(2).sub_(1)
    smallest = (direction < 0).to(torch.int16).mul_(torch.iinfo(torch.int16).min).add_(1)
    return torch.where(same == 0, smallest, beside).view(value.dtype)
