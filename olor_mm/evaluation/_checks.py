"""What all figures ask of features, logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ['check_classes', 'check_features', 'check_labels', 'check_logits', 'is_count']


def is_count(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number of at least that."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_features(name: str, features: Tensor, dim: int | None = None) -> None:
    """See that features are (N, d), of floating point and finite.

    Raises:
        ValueError: If they are not; the message calls them by ``name``.
    """
    _check_matrix(name, features, 'features (N, d)')
    if dim is not None and features.size(1) != dim:
        raise ValueError(f'{name} have {features.size(1)} features each, those of the bank {dim}: take one model')
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f'{name} hold NaN or infinite features: check the weights, or extract them in float32')


def check_logits(logits: Tensor) -> None:
    """See that logits are (N, C) without NaN and +inf; -inf is a class that cannot win.

    Raises:
        ValueError: If they are not.
    """
    _check_matrix('logits', logits, 'logits (N, C)')
    if not bool((logits < float('inf')).all()):
        raise ValueError('logits hold NaN or +inf: check the weights, or compute them in float32')


def _check_matrix(name: str, values: Any, wanted: str) -> None:
    if not isinstance(values, Tensor) or values.dim() != 2 or not values.is_floating_point():
        given = f'{values.dtype} {tuple(values.shape)}' if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f'{name} must be a floating point tensor, {wanted}, but got {given}')


def check_labels(name: str, labels: Tensor, count: int, num_classes: int) -> Tensor:
    """Labels as int64, checked.

    Args:
        name: What the message calls them.
        labels: (N,) integers.
        count: N.
        num_classes: Labels are below it.

    Raises:
        ValueError: If they are of another number, or no labels.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        given = f'{labels.dtype} {tuple(labels.shape)}' if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f'{name} must be an integer tensor (N,), but got {given}')
    if len(labels) != count:
        raise ValueError(f'{name}: {len(labels)} labels for {count} samples')
    labels = labels.long()
    if count and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f'{name} are {int(labels.min())} to {int(labels.max())}, but there are {num_classes} classes, 0 to '
            f'{num_classes - 1}: set num_classes, or map the labels'
        )
    return labels


def check_classes(name: str, classes: Sequence[int] | Tensor, num_classes: int) -> Tensor:
    """A mask (C,) of the classes named.

    Args:
        name: What the message calls them.
        classes: Labels, each once.
        num_classes: C.

    Raises:
        ValueError: If these are no labels, or none, or all: then nothing is left to tell from them.
    """
    given = classes.tolist() if isinstance(classes, Tensor) else list(classes)
    right = all(is_count(label, 0) and label < num_classes for label in given)
    if not right or len(set(given)) < len(given):
        raise ValueError(f'{name}={given!r:.80} must be labels from 0 to {num_classes - 1}, each once')
    if not 0 < len(given) < num_classes:
        raise ValueError(
            f'{name} names {len(given)} of {num_classes} classes: some must be seen and some not, such as {name}=[0, 1]'
        )
    mask = torch.zeros(num_classes, dtype=torch.bool)
    mask[given] = True
    return mask
