"""What a checkpoint file says of a run's only step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olor_mm.rollback import ANCHOR_KEY

from ._steps import free_move

_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


def read(file: Path) -> dict[str, Any]:
    """A checkpoint that a test made itself a moment ago."""
    return torch.load(file, map_location='cpu', weights_only=False)


def anchors(saved: dict[str, Any]) -> dict[str, Tensor]:
    """Name to theta_0."""
    return {name: state[ANCHOR_KEY] for name, (_, state) in _states(saved).items() if ANCHOR_KEY in state}


def strengths(saved: dict[str, Any], factor: float) -> dict[str, float]:
    """Name to the share of the way to theta_0 that the step took back, of the weights that moved far enough to tell.

    Args:
        saved: A checkpoint of one step of SGD or Adam from theta_0.
        factor: The learning rate of that step, over the initial one.
    """
    found = {}
    theta_0 = anchors(saved)
    assert sorted(theta_0) == saved['optimizer']['rollback']['names']
    for name, (group, state) in _states(saved).items():
        if name not in theta_0:
            continue
        move = free_move(theta_0[name], state, group, factor * group['initial_lr'])
        gone = theta_0[name] - saved['state_dict'][name]
        if move.norm() > 1e-3 * theta_0[name].norm() and move.norm() > 0:
            found[name] = 1 - ((gone * move).sum() / move.square().sum()).item()
    assert len(found) > len(theta_0) / 4
    return found


def _states(saved: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name to the parameter's group and state; a plain constructor's groups are in the order of the parameters."""
    names = [name for name in saved['state_dict'] if not name.endswith(_BUFFERS)]
    groups = saved['optimizer']['param_groups']
    numbers = [(number, group) for group in groups for number in group['params']]
    assert len(numbers) == len(names)
    states = saved['optimizer']['state']
    return {name: (group, states.get(number, {})) for name, (number, group) in zip(names, numbers, strict=True)}
