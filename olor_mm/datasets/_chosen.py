"""Some samples of a data set: what the wrappers that choose have in common."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS as MMENGINE_DATASETS

__all__ = ['Chosen', 'labels_of', 'reach', 'some']

_MAX_REDRAWS = 1000


class Chosen:
    """A data set that shows some samples of another; labels and all else stay what they are.

    Where a pipeline of a data set to learn from gives nothing, another one of these samples is drawn.

    Args:
        dataset: The data set, or its config.
        test_mode: Whether a pipeline that gives nothing is an error. Defaults to None: what the data set does.
        lazy_init: Whether the samples are looked through only when they are asked for. Defaults to False.

    Raises:
        TypeError: If it is no data set.
    """

    def __init__(self, dataset: Any, test_mode: bool | None = None, lazy_init: bool = False) -> None:
        self.dataset: Any = MMENGINE_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        for method in ('get_data_info', '__getitem__', '__len__'):
            if not hasattr(self.dataset, method):
                raise TypeError(f'dataset={type(self.dataset).__name__} is no data set of MMEngine: it lacks {method}')
        self.test_mode = bool(getattr(self.dataset, 'test_mode', False)) if test_mode is None else test_mode
        self._fully_initialized = False
        self._indices = np.zeros(0, dtype=np.int64)
        if not lazy_init:
            self.full_init()

    def choose(self, labels: list[int]) -> list[int]:
        """Which samples stay.

        Args:
            labels: Those of all samples of the data set.

        Returns:
            Their places.
        """
        raise NotImplementedError

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
        self._indices = np.array(self.choose(labels_of(self.dataset)), dtype=np.int64)
        self._fully_initialized = True

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What the data set says of a sample."""
        info: dict[str, Any] = self.dataset.get_data_info(self.place(index))
        return info

    def get_cat_ids(self, index: int) -> list[int]:
        """The label of a sample, in a list."""
        return [_label(self.dataset, self.place(index))]

    def get_gt_labels(self) -> np.ndarray:
        """The labels of all samples."""
        self.full_init()
        return np.array([_label(self.dataset, int(index)) for index in self._indices])

    def place(self, index: int) -> int:
        """Where a sample is in the data set inside."""
        self.full_init()
        return int(self._indices[index])

    def __len__(self) -> int:
        self.full_init()
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        # A data set inside would draw another one of all of its images.
        for _ in range(1 if self.test_mode else _MAX_REDRAWS):
            leaf, where, _ = reach(self.dataset, self.place(index))
            data = leaf.prepare_data(where) if hasattr(leaf, 'prepare_data') else leaf[where]
            if data is not None:
                return data
            index = np.random.randint(len(self))
        raise RuntimeError(f'the pipeline of {type(self.dataset).__name__} gives nothing: check its images')

    def get_subset(self, indices: Any) -> Any:
        """Not there: choose in the data set itself."""
        raise NotImplementedError(f'{type(self).__name__} has no subsets: give the data set inside of it indices=...')

    get_subset_ = get_subset


def labels_of(dataset: Any) -> list[int]:
    """The label of each sample of a data set.

    Raises:
        ValueError: If one has none, or several.
    """
    return [_label(dataset, index) for index in range(len(dataset))]


def _label(dataset: Any, index: int) -> int:
    label = dataset.get_data_info(index).get('gt_label')
    if isinstance(label, np.ndarray) and label.ndim == 0:
        label = label.item()
    if not isinstance(label, (int, np.integer)):
        said = 'no gt_label' if label is None else f'gt_label={label!r:.40}'
        raise ValueError(
            f'{type(dataset).__name__}: sample {index} has {said}, where one label is needed: take a data set with '
            'labels (with_label=True), and one label for each image'
        )
    return int(label)


def reach(dataset: Any, index: int) -> tuple[Any, int, tuple[int, ...]]:
    """The innermost data set that holds a sample.

    Returns:
        It, the place of the sample in it, and what is the same for two samples only if they are of one image: a
        repeated image is.
    """
    if isinstance(dataset, ConcatDataset):
        part, index = dataset._get_ori_dataset_idx(index)
        leaf, index, path = reach(dataset.datasets[part], index)
        return leaf, index, (part, *path)
    if isinstance(dataset, (RepeatDataset, ClassBalancedDataset)):
        if not dataset._fully_initialized:
            dataset.full_init()
        return reach(dataset.dataset, int(dataset._get_ori_dataset_idx(index)))
    if isinstance(dataset, Chosen):
        return reach(dataset.dataset, dataset.place(index))
    return dataset, index, (index,)


def some(labels: list[int], count: int = 12) -> str:
    """Labels for a message, the first of many."""
    text = ', '.join(map(str, labels[:count]))
    return f'[{text}, ... ({len(labels)} in all)]' if len(labels) > count else f'[{text}]'
