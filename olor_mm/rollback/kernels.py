"""theta <- lerp(theta, theta_0, a): the paths by which one rollback is carried out, one function each.

Every function takes lists of equal length: parameters (modified in place), anchors (read only) of the same shape,
dtype and device, and the strengths a in [0, 1]. ``single_tensor`` says what is computed; the others compute the same.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

__all__ = ['foreach', 'fused', 'single_tensor', 'weighted']

#: Elements up to which a tensor is small, and of what is gathered of small ones at a time.
_SMALL, _GATHERED = 2**16, 2**22


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


def weighted(params: Sequence[Tensor], anchors: Sequence[Tensor], weights: Tensor) -> None:
    """Strengths that the device alone knows, a vector there; the host does not wait.

    torch has no kernel that takes many tensors and a number on the device for each. So large tensors have one kernel
    each, and small ones are gathered and go together: the number of kernels follows that of bytes, not of tensors.
    """
    strengths = weights.unbind()
    small: list[int] = []
    gathered = 0
    for j, param in enumerate(params):
        if param.numel() > _SMALL or param.is_complex():
            single_tensor([param], [anchors[j]], [strengths[j]])
            continue
        if gathered + param.numel() > _GATHERED:
            _gathered(params, anchors, strengths, small)
            small, gathered = [], 0
        small.append(j)
        gathered += param.numel()
    if small:
        _gathered(params, anchors, strengths, small)


def _gathered(
    params: Sequence[Tensor], anchors: Sequence[Tensor], strengths: Sequence[Tensor], chosen: list[int]
) -> None:
    some = [params[j] for j in chosen]
    sizes, device = [param.numel() for param in some], some[0].device
    theta = torch.cat([param.reshape(-1) for param in some])
    theta_0 = torch.cat([anchors[j].reshape(-1) for j in chosen])
    counts = torch.tensor(sizes, device='cpu', pin_memory=device.type == 'cuda').to(device, non_blocking=True)
    weights = torch.stack([strengths[j] for j in chosen]).to(theta.dtype)
    # With the size of what comes out the host need not ask for it.
    theta.lerp_(theta_0, torch.repeat_interleave(weights, counts, output_size=sum(sizes)))
    parts = [part.view(param.shape) for part, param in zip(theta.split(sizes), some, strict=True)]
    torch._foreach_copy_(some, parts)


def fused(
    params: list[Tensor],
    anchors: list[Tensor],
    weights: list[float],
    found_inf: Tensor | None = None,
    dense: bool = True,
) -> None:
    """The rollback by torch's fused SGD; nothing where ``found_inf`` is 1, decided on the device, without a wait.

    A step of SGD on the "gradient" theta_0 - theta, which weight decay -1 builds in the same pass, with learning rate
    -a is theta + a (theta_0 - theta): the lerp in the arithmetic that ``torch.lerp`` has below a = 0.5 too. That kernel
    takes ``found_inf``, and on the CPU it is the faster one. One call for each distinct weight. Above a = 0.5, and
    where the kernel is missing or cannot take the tensors, it is the lerp with a multiplied by 1 - found_inf.

    Args:
        params: Parameters, modified in place.
        anchors: theta_0 of each.
        weights: a of each.
        found_inf: One float32 element on the device of the parameters: 0. or 1., as GradScaler sets it. Defaults
            to None.
        dense: Whether parameters and anchors fill their memory in the same order, without gaps: the kernel walks it as
            it lies and does not ask. Defaults to True.
    """
    possible = dense and _fused_sgd_takes(params[0].device.type, params[0].dtype)
    for weight, (some_params, some_anchors) in _by_weight(params, anchors, weights).items():
        if possible and weight < 0.5:
            _fused_sgd(some_params, some_anchors, weight, found_inf)
        elif found_inf is None:
            foreach(some_params, some_anchors, [weight] * len(some_params))
        else:
            scale = (1.0 - found_inf.reshape(()).to(some_params[0].dtype)) * weight
            single_tensor(some_params, some_anchors, [scale] * len(some_params))


def _fused_sgd(params: list[Tensor], anchors: list[Tensor], weight: float, found_inf: Tensor | None) -> None:
    torch._fused_sgd_(
        params,
        anchors,
        [],
        weight_decay=-1.0,
        momentum=0.0,
        lr=-weight,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=None,
        found_inf=found_inf,
    )


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
def _fused_sgd_takes(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernel exists for this device and dtype and does what :func:`fused` needs of it."""
    if not hasattr(torch, '_fused_sgd_') or not dtype.is_floating_point:
        return False
    try:
        params = [torch.ones(1, device=device_type, dtype=dtype) for _ in range(2)]
        anchor = torch.full((1,), 2.0, device=device_type, dtype=dtype)
        for param, skip in zip(params, (0.0, 1.0), strict=True):
            _fused_sgd([param], [anchor], 0.25, torch.tensor(skip, device=device_type))
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return [param.item() for param in params] == [1.25, 1.0] and anchor.item() == 2.0
