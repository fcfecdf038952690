"""Nearest class mean: what features tell of classes without any classifier."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_features, check_labels, is_count

__all__ = ['class_means', 'ncm_accuracy', 'ncm_scores']

_ROWS = 1 << 14


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Means of the L2-normalised features of each class, normalised again.

    Args:
        features: (N, d), any floating point dtype.
        labels: (N,).
        num_classes: C.

    Returns:
        (C, d) in float32 on the device of the features; NaN for a class without a sample.

    Raises:
        ValueError: If what is given does not fit, or is not finite.
    """
    if not is_count(num_classes):
        raise ValueError(f'num_classes={num_classes!r} must be a whole number of 1 or more')
    check_features('the bank', features)
    labels = check_labels('labels of the bank', labels, len(features), num_classes).cpu()
    # On the CPU in float64: sums of any order are then the same to the bits of float32.
    sums = torch.zeros(num_classes, features.size(1), dtype=torch.float64)
    for part, label in zip(features.detach().split(_ROWS), labels.split(_ROWS), strict=True):
        sums.index_add_(0, label, F.normalize(part.cpu().double(), dim=1))
    means = F.normalize(sums, dim=1)
    means[torch.bincount(labels, minlength=num_classes) == 0] = float('nan')
    return means.to(features.device, torch.float32)


def ncm_scores(queries: Tensor, means: Tensor) -> Tensor:
    """Cosines to the class means; the greatest is the prediction, and of equal ones that of the lower label.

    Args:
        queries: (Q, d), any floating point dtype.
        means: (C, d) of :func:`class_means`.

    Returns:
        (Q, C) in float32 on the device of the queries; -inf for a class without a sample.

    Raises:
        ValueError: If what is given does not fit, or queries are not finite.
    """
    check_features('the queries', queries, means.size(1))
    scores = F.normalize(queries.detach().float(), dim=1) @ means.to(queries.device).nan_to_num().T
    empty = means.isnan().any(dim=1).to(queries.device)
    return scores.masked_fill(empty, float('-inf'))


def ncm_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int) -> float:
    """Accuracy of the nearest class mean, in %.

    Args:
        bank: (N, d), what the means are of.
        bank_labels: (N,).
        queries: (Q, d).
        query_labels: (Q,).
        num_classes: Labels are below it.

    Raises:
        ValueError: If what is given does not fit, is empty, or is not finite.
    """
    if not len(bank) or not len(queries):
        raise ValueError(f'{len(bank)} samples in the bank, {len(queries)} queries: an accuracy needs both')
    scores = ncm_scores(queries, class_means(bank, bank_labels, num_classes))
    labels = check_labels('labels of the queries', query_labels, len(queries), num_classes)
    right = is_right(scores, labels.to(scores.device))
    return 100 * float(right.double().mean())


def is_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the greatest score is that of the label; a score of -inf is never right."""
    best, predicted = scores.max(dim=1)
    return (predicted == labels) & (best > float('-inf'))
