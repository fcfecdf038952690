"""What a step of torch's Adam, AdamW and SGD does to one parameter, as the numbers that a kernel needs for it.

A kernel takes one row of scalars for each tensor; the columns are given at each function. They are computed in float64
and rounded once, as torch's fused kernels do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ['WIDTHS', 'adam_scalars', 'refusal', 'refusal_of_group', 'sgd_scalars', 'state_keys']

#: Scalars in a row.
WIDTHS = {'adam': 10, 'sgd': 6}


def refusal(optimizer: Optimizer) -> str | None:
    """Why no step of ``optimizer`` can be made in a single pass; None if it can."""
    if type(optimizer) not in (Adam, AdamW, SGD):
        return f"{type(optimizer).__name__} is none of torch's Adam, AdamW and SGD"
    return None


def refusal_of_group(group: Mapping[str, Any]) -> str | None:
    """Why the parameters of ``group`` cannot be updated in a single pass; None if they can."""
    for option in ('amsgrad', 'capturable', 'differentiable'):
        if group.get(option):
            return f'{option}=True'
    if group.get('momentum', 1) == 0:
        return 'SGD without momentum'
    for option in ('lr', 'betas', 'eps', 'weight_decay', 'momentum', 'dampening'):
        value = group.get(option)
        if any(isinstance(part, Tensor) for part in (value if isinstance(value, (tuple, list)) else [value])):
            return f'{option} is a tensor'
    return None


def state_keys(optimizer: Optimizer) -> tuple[str, ...]:
    """The entries of a parameter's state that the update reads and writes, apart from the count of steps."""
    return ('momentum_buffer',) if isinstance(optimizer, SGD) else ('exp_avg', 'exp_avg_sq')


def adam_scalars(optimizer: Optimizer, groups: Sequence[int], pulls: Sequence[float], steps: Tensor) -> Tensor:
    """Rows of sign, l2, shrink, 1 - beta1, beta2, 1 - beta2, eps, lr / (1 - beta1^t), sqrt(1 - beta2^t), a.

    Args:
        optimizer: Adam or AdamW.
        groups: The index of the parameter group of each tensor.
        pulls: a of each.
        steps: t of each, counted from 1, float64 [n], on the tensors' device.

    Returns:
        float64 [n, 10] on that device.
    """
    rows = []
    for group in _used(optimizer, groups):
        (beta1, beta2), lr, decay = group['betas'], group['lr'], group['weight_decay']
        decoupled = group.get('decoupled_weight_decay', isinstance(optimizer, AdamW))
        l2, shrink = (0.0, 1 - lr * decay) if decoupled else (decay, 1.0)
        rows.append([_sign(group), l2, shrink, 1 - beta1, beta2, 1 - beta2, group['eps'], lr, beta1])
    table = _table(rows, groups, pulls, steps.device)
    beta1, beta2 = table[:, 8], table[:, 4]
    table[:, 7] /= 1 - beta1**steps
    table[:, 8] = (1 - beta2**steps).sqrt()
    return table


def sgd_scalars(optimizer: Optimizer, groups: Sequence[int], pulls: Sequence[float], device: torch.device) -> Tensor:
    """Rows of sign, l2, momentum, 1 - dampening, lr, a.

    Args:
        optimizer: SGD.
        groups: The index of the parameter group of each tensor.
        pulls: a of each.
        device: Where the rows are wanted.

    Returns:
        float64 [n, 6] on that device.
    """
    rows = [
        [_sign(group), group['weight_decay'], group['momentum'], 1 - group['dampening'], group['lr']]
        for group in _used(optimizer, groups)
    ]
    return _table(rows, groups, pulls, device)


def _sign(group: Mapping[str, Any]) -> float:
    return -1.0 if group.get('maximize') else 1.0


def _used(optimizer: Optimizer, groups: Sequence[int]) -> list[dict[str, Any]]:
    return [optimizer.param_groups[g] for g in sorted(set(groups))]


def _table(rows: list[list[float]], groups: Sequence[int], pulls: Sequence[float], device: torch.device) -> Tensor:
    """The row of each tensor's group and its a, without a wait of the host for the device."""
    place = {g: row for row, g in enumerate(sorted(set(groups)))}
    host = torch.device('cpu')
    table = torch.empty(
        len(pulls), len(rows[0]) + 1, dtype=torch.float64, device=host, pin_memory=device.type == 'cuda'
    )
    index = torch.tensor([place[g] for g in groups], device=host)
    table[:, :-1] = torch.tensor(rows, dtype=torch.float64, device=host)[index]
    table[:, -1] = torch.tensor(pulls, dtype=torch.float64, device=host)
    return table.to(device, non_blocking=True)
