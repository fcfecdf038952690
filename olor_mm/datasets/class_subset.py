"""The images of some classes of a data set, under their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from olor_mm.registry import DATASETS

from ._chosen import Chosen, some

__all__ = ['ClassSubset']


@DATASETS.register_module()
class ClassSubset(Chosen):
    """A data set without the images of other classes; labels stay what they are.

    It is for any data set whose samples say ``gt_label``, and for wrappers of such. Where a pipeline of a data set to
    learn from gives nothing, another image of these classes is drawn.

    Args:
        dataset: The data set, or its config.
        classes: The labels that stay.
        test_mode: Whether a pipeline that gives nothing is an error. Defaults to None: what the data set does.
        lazy_init: Whether the samples are looked through only when they are asked for. Defaults to False.

    Raises:
        ValueError: If samples have no labels, or several, or one of the classes has no image.
        TypeError: If it is no data set.

    Example:
        >>> dataset = dict(type='olor_mm.ClassSubset', dataset=dict(type='CIFAR100', ...), classes=[3, 17, 42])
    """

    def __init__(
        self, dataset: Any, classes: Sequence[int], test_mode: bool | None = None, lazy_init: bool = False
    ) -> None:
        self.classes = _labels(classes)
        super().__init__(dataset, test_mode, lazy_init)

    def choose(self, labels: list[int]) -> list[int]:
        """Those of the classes."""
        wanted = set(self.classes)
        absent = sorted(wanted - set(labels))
        if absent:
            there = f'{min(labels)} to {max(labels)}' if labels else 'none: it is empty'
            raise ValueError(
                f'classes={some(self.classes)}: {type(self.dataset).__name__} has no image of {some(absent)}; its '
                f'labels are {there}'
            )
        return [index for index, label in enumerate(labels) if label in wanted]

    def __repr__(self) -> str:
        return f'{type(self).__name__} of {len(self.classes)} classes, {len(self)} samples of\n{self.dataset!r}'


def _labels(classes: Any) -> list[int]:
    given = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    right = all(isinstance(label, (int, np.integer)) and not isinstance(label, bool) and label >= 0 for label in given)
    if not given or not right or len(set(given)) < len(given):
        raise ValueError(f'classes={classes!r:.80} must be labels of 0 or more, each once, such as [3, 17, 42]')
    return [int(label) for label in given]
