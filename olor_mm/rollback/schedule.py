"""lr / initial_lr of a parameter group: what the level is multiplied by at each step (paper, equation 8)."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .anchor import INITIAL_LR_KEY

__all__ = ['descents', 'lr_ratio']


def lr_ratio(group: dict[str, Any]) -> float | Tensor:
    """lr / initial_lr of a group; a tensor only where lr is one on a device. A group at lr 0 has ratio 0, not 0/0."""
    lr = group.get('lr')
    if lr is None:
        return 1.0
    if isinstance(lr, Tensor):
        if lr.device.type != 'cpu':
            return _ratio_on_device(group, lr)
        lr = lr.item()
    initial = group.get('initial_lr')
    if initial is None:
        initial = group.get(INITIAL_LR_KEY, 0.0)
        if not initial and lr > 0:
            initial = group[INITIAL_LR_KEY] = lr
        elif lr > initial * (1 + 1e-6) > 0:
            # The text is the same at every step, so that Python's filter shows it once.
            warnings.warn(
                f'the learning rate is above {initial:.3g}, that of the first step, which stands for the peak in the '
                'strength of the rollback: weights are pulled back more than their level says. Set '
                "group['initial_lr'] of every param_group to the peak before the first step, as schedulers do",
                stacklevel=2,
            )
    initial = float(initial)
    return lr / initial if initial > 0 else 0.0


def descents(optimizer: Optimizer) -> list[float]:
    """Of each parameter group 1, or -1 where ``maximize=True`` lets steps go along the gradients."""
    return [-1.0 if group.get('maximize') else 1.0 for group in optimizer.param_groups]


def _ratio_on_device(group: dict[str, Any], lr: Tensor) -> Tensor:
    """The same without a wait for the device."""
    initial = group.get('initial_lr')
    if initial is None:
        initial = group.get(INITIAL_LR_KEY, 0.0)
        if isinstance(initial, Tensor):
            # The first one above 0, as the device finds it.
            initial = initial.to(lr.device)
            initial = torch.where(initial > 0, initial, lr)
        elif not initial:
            initial = lr.clone()
        group[INITIAL_LR_KEY] = initial
    if isinstance(initial, Tensor):
        return torch.where(initial > 0, lr / initial, torch.zeros_like(lr))
    return lr / initial if initial > 0 else torch.zeros_like(lr)
