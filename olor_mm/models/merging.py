"""LoRA's changes put into the weights themselves, and taken out again."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .low_rank import CHILD, LowRank, LowRankOutput, LowRankWeight

__all__ = ['merge', 'unmerge']

#: Where a layer keeps what was taken out of it: (name of the weight, A and B, W).
_MERGED = 'merged_lora'


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Make W' = W + s B A the weight of every adapted layer, and take A and B out of the model.

    The model is then as it was without LoRA: nothing is added while it runs, and its state dict is an ordinary one. The
    sum is made in float32 at least and rounded to the dtype of W.

    Args:
        model: The model; every layer of it that LoRA has adapted.

    Raises:
        ValueError: If no layer of it is adapted, or all were merged before.
    """
    found = [(module, *entry) for module in model.modules() for entry in _adapted(module)]
    if not found:
        merged = any(_MERGED in vars(module) for module in model.modules())
        raise ValueError(
            'merge(model): it is merged already; unmerge(model) takes A and B back'
            if merged
            else "merge(model): no layer of it is adapted: build it with method=dict(type='LoRA', ...)"
        )
    for module, name, low_rank, weight in found:
        kept = weight.detach().clone()
        weight.copy_(_sum(weight, low_rank))
        if isinstance(low_rank, LowRankOutput):
            del module._modules[CHILD]
        else:
            _take_out(module, name)
        setattr(module, _MERGED, (*getattr(module, _MERGED, ()), (name, low_rank, kept)))


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Undo :func:`merge`: W is again what it was, bit by bit, and A and B are in the model again.

    Args:
        model: The model.

    Raises:
        ValueError: If it is not merged.
    """
    found = [module for module in model.modules() if _MERGED in vars(module)]
    if not found:
        raise ValueError('unmerge(model): it is not merged; merge(model) does that')
    for module in found:
        for name, low_rank, kept in getattr(module, _MERGED):
            weight = module.get_parameter(name)
            weight.copy_(kept)
            low_rank.to(weight)
            if isinstance(low_rank, LowRankOutput):
                module.add_module(CHILD, low_rank)
            else:
                parametrize.register_parametrization(module, name, low_rank, unsafe=True)
        delattr(module, _MERGED)


def _adapted(module: nn.Module) -> Iterator[tuple[str, LowRank, Tensor]]:
    low_rank = module._modules.get(CHILD)
    if isinstance(low_rank, LowRankOutput):
        yield 'weight', low_rank, module.get_parameter('weight')
    lists: Any = module.parametrizations if parametrize.is_parametrized(module) else nn.ModuleDict()
    for name, held in lists.items():
        if isinstance(held[0], LowRankWeight):
            yield name, held[0], held.original


def _sum(weight: Tensor, low_rank: LowRank) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    up, down = low_rank.up().to(dtype), low_rank.a.flatten(0, 1).flatten(1).to(dtype)
    return weight.to(dtype) + (low_rank.scale * (up @ down)).view_as(weight)


def _take_out(module: nn.Module, name: str) -> None:
    held: Any = module.parametrizations
    if len(held[name]) > 1:
        raise ValueError(f'merge(model): {type(module).__name__}.{name} has other parametrizations too: remove them')
    # What stays is the parameter itself, which optimizers and averages know.
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
