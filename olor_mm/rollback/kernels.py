"""theta <- lerp(theta, theta_0, a): the paths by which one rollback is carried out, one function each.

Every function takes lists of equal length: parameters (modified in place), anchors (read only) of the same shape,
dtype and device, and the strengths a in [0, 1]. ``single_tensor`` says what is computed; the others compute the same.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ['foreach', 'masked', 'single_tensor']


def single_tensor(params: Sequence[Tensor], anchors: Sequence[Tensor], weights: Sequence[float | Tensor]) -> None:
    """One kernel a tensor; a weight may be a 0-dim tensor on the parameter's device."""
    for param, anchor, weight in zip(params, anchors, weights, strict=True):
        param.lerp_(anchor, weight.to(param.dtype) if isinstance(weight, Tensor) else weight)


def foreach(params: list[Tensor], anchors: list[Tensor], weights: list[float]) -> None:
    """A number of kernels that does not grow with the number of tensors.

    One call for all tensors where torch takes a list of weights; else one call for each distinct weight.
    """
    if not hasattr(torch, '_foreach_lerp_'):
        single_tensor(params, anchors, weights)
        return
    if _foreach_lerp_takes_a_list():
        torch._foreach_lerp_(params, anchors, weights)
        return
    for weight, (some_params, some_anchors) in _by_weight(params, anchors, weights).items():
        torch._foreach_lerp_(some_params, some_anchors, weight)


def masked(params: list[Tensor], anchors: list[Tensor], weights: list[float], found_inf: Tensor) -> None:
    """Nothing where ``found_inf`` is 1, else the rollback, decided on the device: the host never waits.

    A step of torch's fused SGD on the "gradient" theta - theta_0, which weight decay 1 builds in the same pass, is
    theta - a (theta - theta_0), and that kernel takes ``found_inf``. It is the lerp in the arithmetic that
    ``torch.lerp`` uses below a = 0.5 too; above, and where the kernel is missing, a is multiplied by 1 - found_inf.

    Args:
        params: Parameters, modified in place.
        anchors: theta_0 of each.
        weights: a of each.
        found_inf: One float32 element on the device of the parameters: 0. or 1., as GradScaler sets it.
    """
    for weight, (some_params, some_anchors) in _by_weight(params, anchors, weights).items():
        if weight < 0.5 and _fused_sgd_takes_found_inf(some_params[0].device.type):
            torch._fused_sgd_(
                some_params,
                some_anchors,
                [],
                weight_decay=1.0,
                momentum=0.0,
                lr=weight,
                dampening=0.0,
                nesterov=False,
                maximize=True,
                is_first_step=False,
                grad_scale=None,
                found_inf=found_inf,
            )
        else:
            scale = (1.0 - found_inf.reshape(()).to(some_params[0].dtype)) * weight
            single_tensor(some_params, some_anchors, [scale] * len(some_params))


def _by_weight(
    params: Sequence[Tensor], anchors: Sequence[Tensor], weights: Sequence[float]
) -> dict[float, tuple[list[Tensor], list[Tensor]]]:
    buckets: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for param, anchor, weight in zip(params, anchors, weights, strict=True):
        some_params, some_anchors = buckets.setdefault(weight, ([], []))
        some_params.append(param)
        some_anchors.append(anchor)
    return buckets


@cache
def _foreach_lerp_takes_a_list() -> bool:
    try:
        torch._foreach_lerp_([torch.zeros(1)], [torch.zeros(1)], [0.5])
    except (RuntimeError, TypeError):
        return False
    return True


@cache
def _fused_sgd_takes_found_inf(device_type: str) -> bool:
    if not hasattr(torch, '_fused_sgd_'):
        return False
    param, anchor, no = (torch.full((1,), v, device=device_type) for v in (1.0, 2.0, 0.0))
    hyper: dict[str, Any] = {'weight_decay': 1.0, 'momentum': 0.0, 'lr': 0.25, 'dampening': 0.0}
    hyper.update(nesterov=False, maximize=True, is_first_step=False)
    try:
        torch._fused_sgd_([param], [anchor], [], **hyper, grad_scale=None, found_inf=no)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return bool(param.item() == 1.25)
