"""lr / initial_lr of a parameter group: what the level is multiplied by at each step (paper, equation 8)."""

import warnings
from typing import Any

from torch import Tensor

from .anchor import INITIAL_LR_KEY

__all__ = ['lr_ratio']


def lr_ratio(group: dict[str, Any]) -> float | Tensor:
    """lr / initial_lr of a group; a tensor only where lr is one on a device. A group at lr 0 has ratio 0, not 0/0."""
    lr = group.get('lr')
    if lr is None:
        return 1.0
    if isinstance(lr, Tensor) and lr.device.type == 'cpu':
        lr = lr.item()
    initial = group.get('initial_lr')
    if initial is None:
        initial = group.get(INITIAL_LR_KEY, 0.0)
        if not isinstance(lr, Tensor) and not initial and lr > 0:
            initial = group[INITIAL_LR_KEY] = lr
        elif isinstance(lr, Tensor) and not isinstance(initial, Tensor):
            initial = group[INITIAL_LR_KEY] = lr.clone()
        elif not isinstance(lr, Tensor) and lr > initial * (1 + 1e-6) > 0:
            warnings.warn(
                f'the learning rate {lr:.3g} is above {initial:.3g}, that of the first step, which stands for the peak '
                'in the strength of the rollback: weights are pulled back more than their level says. Set '
                "group['initial_lr'] of every param_group to the peak before the first step, as schedulers do",
                stacklevel=2,
            )
    if isinstance(lr, Tensor):
        return lr / initial
    initial = float(initial)
    return lr / initial if initial > 0 else 0.0
