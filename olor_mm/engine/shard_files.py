"""Checkpoints in shards: what each rank writes of a model, and what it takes back."""

import os.path as osp
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import without_wrappers

__all__ = ['check_count', 'check_world', 'file_of_rank', 'load_shards', 'own_tensors']

_FULL = "strategy.state_dict_cfg='full'"


def file_of_rank(folder: str, rank: int, world_size: int) -> str:
    """A rank's file in the folder of a checkpoint.

    Raises:
        ValueError: If it has none.
    """
    file = osp.join(folder, f'rank{rank}.pth')
    if not osp.isfile(file):
        raise ValueError(_other_world(folder, None, world_size))
    return file


def check_world(folder: str, checkpoint: Mapping[str, Any], world_size: int) -> None:
    """See that a rank's file is that of a run of as many processes.

    Raises:
        ValueError: If it is not.
    """
    saved = checkpoint.get('meta', {}).get('shards', {}).get('world_size')
    if saved != world_size:
        raise ValueError(_other_world(folder, saved, world_size))


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What this rank holds of a model: shards of parameters, and whole buffers. By name without wrappers."""
    found: dict[str, Tensor] = {without_wrappers(name): p for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[without_wrappers(f'{path}.{name}' if path else name)] = buffer
    return found


@torch.no_grad()
def load_shards(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a rank's tensors into a model.

    Raises:
        ValueError: If they are not those that the rank holds of it.
    """
    own = own_tensors(model)
    wrong = list(own.keys() ^ state_dict.keys())
    wrong += [name for name in own.keys() & state_dict.keys() if own[name].shape != state_dict[name].shape]
    if wrong:
        raise ValueError(
            f'the shards of the checkpoint are not those of this run: {", ".join(sorted(wrong)[:3])}; resume with '
            'the model_wrapper (auto_wrap_policy, sharding_strategy) that it was saved with, or from one that was '
            f'saved with {_FULL}'
        )
    for name, tensor in own.items():
        tensor.copy_(state_dict[name])


def check_count(state_dict: Mapping[str, Any], now: int) -> None:
    """See that an optimizer's state is of one that trains as many tensors.

    Raises:
        ValueError: If it is not.
    """
    saved = sum(len(group['params']) for group in state_dict['param_groups'])
    if saved != now:
        raise ValueError(
            f'the optimizer of the checkpoint trains {saved} tensors, that of this run {now}: resume with the '
            'model and the optim_wrapper that it was saved with'
        )


def _other_world(folder: str, saved: int | None, now: int) -> str:
    by = f'{saved} processes' if saved is not None else 'fewer processes'
    return (
        f'{folder} holds the shards of {by}, and this run has {now}: resume with as many, or from a checkpoint that '
        f'was saved with {_FULL}'
    )
