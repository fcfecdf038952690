"""The images of some classes of a data set, under their labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.registry import DATASETS as MMENGINE_DATASETS

from olor_mm.registry import DATASETS

__all__ = ['ClassSubset']

_MAX_REDRAWS = 1000


@DATASETS.register_module()
class ClassSubset:
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
        self.dataset: Any = MMENGINE_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        for method in ('get_data_info', '__getitem__', '__len__'):
            if not hasattr(self.dataset, method):
                raise TypeError(f'dataset={type(self.dataset).__name__} is no data set of MMEngine: it lacks {method}')
        self.test_mode = bool(getattr(self.dataset, 'test_mode', False)) if test_mode is None else test_mode
        self._fully_initialized = False
        self._indices = np.zeros(0, dtype=np.int64)
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        """That of the data set, all of its classes included."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Look through the labels."""
        if self._fully_initialized:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        wanted = set(self.classes)
        labels = [self._label(index) for index in range(len(self.dataset))]
        self._indices = np.array([index for index, label in enumerate(labels) if label in wanted], dtype=np.int64)
        absent = sorted(wanted - set(labels))
        if absent:
            there = f'{min(labels)} to {max(labels)}' if labels else 'none: it is empty'
            raise ValueError(
                f'classes={_some(self.classes)}: {type(self.dataset).__name__} has no image of {_some(absent)}; its '
                f'labels are {there}'
            )
        self._fully_initialized = True

    def _label(self, index: int) -> int:
        label = self.dataset.get_data_info(index).get('gt_label')
        if isinstance(label, np.ndarray) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, (int, np.integer)):
            said = 'no gt_label' if label is None else f'gt_label={label!r:.40}'
            raise ValueError(
                f'{type(self.dataset).__name__}: sample {index} has {said}, where one label is needed: take a data set '
                'with labels (with_label=True), and one label for each image'
            )
        return int(label)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the data set says of a sample."""
        self.full_init()
        info: dict[str, Any] = self.dataset.get_data_info(int(self._indices[index]))
        return info

    def get_cat_ids(self, index: int) -> list[int]:
        """The label of a sample, in a list."""
        self.full_init()
        return [self._label(int(self._indices[index]))]

    def get_gt_labels(self) -> np.ndarray:
        """The labels of all samples."""
        self.full_init()
        return np.array([self._label(int(index)) for index in self._indices])

    def __len__(self) -> int:
        self.full_init()
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        self.full_init()
        if not hasattr(self.dataset, 'prepare_data'):
            return self.dataset[int(self._indices[index])]
        # The data set itself would draw another image of any class.
        for _ in range(1 if self.test_mode else _MAX_REDRAWS):
            data = self.dataset.prepare_data(int(self._indices[index]))
            if data is not None:
                return data
            index = np.random.randint(len(self._indices))
        raise RuntimeError(f'the pipeline of {type(self.dataset).__name__} gives nothing: check its images')

    def get_subset(self, indices: Any) -> Any:
        """Not there: choose in the data set itself."""
        raise NotImplementedError('ClassSubset has no subsets: give the data set inside of it indices=...')

    get_subset_ = get_subset

    def __repr__(self) -> str:
        return f'{type(self).__name__} of {len(self.classes)} classes, {len(self)} samples of\n{self.dataset!r}'


def _labels(classes: Any) -> list[int]:
    given = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else []
    right = all(isinstance(label, (int, np.integer)) and not isinstance(label, bool) and label >= 0 for label in given)
    if not given or not right or len(set(given)) < len(given):
        raise ValueError(f'classes={classes!r:.80} must be labels of 0 or more, each once, such as [3, 17, 42]')
    return [int(label) for label in given]


def _some(labels: Sequence[int], count: int = 12) -> str:
    text = ', '.join(map(str, labels[:count]))
    return f'[{text}, ... ({len(labels)} in all)]' if len(labels) > count else f'[{text}]'
