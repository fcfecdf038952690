"""Losses that the toolboxes lack."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olor_mm.registry import MODELS

__all__ = ['SymmetricCrossEntropyLoss', 'symmetric_cross_entropy']

_REDUCTIONS = ('none', 'mean', 'sum')


def symmetric_cross_entropy(
    pred: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 0.1, log_floor: float = 1e-4
) -> Tensor:
    """``alpha`` CE + ``beta`` RCE of each sample (Wang 2019, eq. 7; SLCA++, eq. 6).

    With p = softmax(pred) and q the target as a distribution, CE = -sum_k q_k ln p_k is the usual cross-entropy, and
    RCE = -sum_k p_k ln q_k has q clamped to [log_floor, 1] and p to [1e-7, 1].

    Args:
        pred: Logits, (N, C).
        target: Labels, (N,), or distributions such as mixup makes them, (N, C).
        alpha: Weight of CE. Defaults to 1.
        beta: Weight of RCE. Defaults to 0.1.
        log_floor: What stands for 0 inside of the logarithm of q. Defaults to 1e-4.

    Returns:
        The losses of the samples, (N,), in single precision at least.
    """
    pred = pred.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred
    log_p = F.log_softmax(pred, dim=1)
    q = target.to(pred.dtype) if target.dim() == 2 else F.one_hot(target, pred.size(1)).to(pred.dtype)
    ce = -(q * log_p).sum(dim=1)
    rce = -(log_p.exp().clamp(1e-7, 1.0) * q.clamp(log_floor, 1.0).log()).sum(dim=1)
    return alpha * ce + beta * rce


@MODELS.register_module()
class SymmetricCrossEntropyLoss(nn.Module):
    """Symmetric cross-entropy: the cross-entropy and the reverse one; it takes what mmpretrain's losses take.

    Args:
        alpha: Weight of the cross-entropy. SLCA++ has 1 for CIFAR-100 and CUB-200, 0.5 for ImageNet-R and Cars.
            Defaults to 1.
        beta: Weight of the reverse cross-entropy; there 0.1 and 0.5. Defaults to 0.1.
        log_floor: What stands for 0 inside of a logarithm, in (0, 1). Defaults to 1e-4.
        reduction: 'mean', 'sum' or 'none'. Defaults to 'mean'.
        loss_weight: Factor of all of it. Defaults to 1.
        class_weight: None; there are no weights of classes.

    Raises:
        ValueError: If an option cannot be right.

    Example:
        >>> loss = dict(type='olor_mm.SymmetricCrossEntropyLoss', alpha=0.5, beta=0.5)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.1,
        log_floor: float = 1e-4,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        class_weight: None = None,
    ) -> None:
        super().__init__()
        for option, value in (('alpha', alpha), ('beta', beta), ('loss_weight', loss_weight)):
            if not _is_number(value) or value < 0:
                raise ValueError(f'SymmetricCrossEntropyLoss: {option}={value!r} must be a number of 0 or more')
        if not _is_number(log_floor) or not 0 < log_floor < 1:
            raise ValueError(f'SymmetricCrossEntropyLoss: log_floor={log_floor!r} must be in (0, 1), such as 1e-4')
        if class_weight is not None:
            raise ValueError(
                f'SymmetricCrossEntropyLoss: class_weight={class_weight!r} has no meaning for the reverse '
                'cross-entropy: leave it out; single samples are weighted by the argument weight of a call'
            )
        self.alpha, self.beta, self.log_floor, self.loss_weight = alpha, beta, log_floor, loss_weight
        self.reduction = _reduction(reduction, 'reduction')

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            cls_score: Logits, (N, C).
            label: Labels, (N,), or distributions over the classes, (N, C).
            weight: Of the samples, (N,). Defaults to None: 1.
            avg_factor: What the sum is divided by in the place of N, where the reduction is 'mean'. Defaults to None.
            reduction_override: A reduction for this call. Defaults to None.

        Raises:
            ValueError: If shapes do not fit, or ``avg_factor`` comes with the reduction 'sum'.
        """
        if label.shape not in (cls_score.shape, cls_score.shape[:1]):
            raise ValueError(
                f'label has the shape {tuple(label.shape)}, but cls_score {tuple(cls_score.shape)}: labels (N,) or '
                'distributions (N, C) are expected'
            )
        reduction = self.reduction
        if reduction_override is not None:
            reduction = _reduction(reduction_override, 'reduction_override')
        losses = symmetric_cross_entropy(cls_score, label, self.alpha, self.beta, self.log_floor)
        if weight is not None:
            losses = losses * weight.to(losses.dtype)
        if reduction == 'sum' and avg_factor is not None:
            raise ValueError(f"avg_factor={avg_factor!r} is for the reduction 'mean': leave it out with 'sum'")
        if reduction == 'mean':
            losses = losses.sum() / avg_factor if avg_factor is not None else losses.mean()
        elif reduction == 'sum':
            losses = losses.sum()
        return self.loss_weight * losses


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _reduction(value: Any, option: str) -> str:
    if value not in _REDUCTIONS:
        raise ValueError(
            f'SymmetricCrossEntropyLoss: {option}={value!r} is not known: choose one of {", ".join(_REDUCTIONS)}'
        )
    return str(value)
