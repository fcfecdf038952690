"""A share of the images of each class, held out of training, or the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from olor_mm.registry import DATASETS

from ._chosen import Chosen, reach, some

__all__ = ['HoldOut']


@DATASETS.register_module()
class HoldOut(Chosen):
    """A data set without a share of the images of each class, or these alone; labels stay what they are.

    What is drawn depends on the seed, the label and the order of the images alone. An image that a wrapper inside
    repeats is either held out with all of its copies or not at all.

    Args:
        dataset: The data set, or its config.
        share: How much of each class is held out, in (0, 1): at least one image, and at least one stays.
            Defaults to 0.2.
        held_out: Whether the samples are those that are held out. Defaults to False: the others.
        seed: Of the draw. Defaults to 0.
        test_mode: Whether a pipeline that gives nothing is an error. Defaults to None: what the data set does.
        lazy_init: Whether the samples are looked through only when they are asked for. Defaults to False.

    Raises:
        ValueError: If an option cannot be right, samples have no labels, or a class has one image alone.
        TypeError: If it is no data set.

    Example:
        >>> dataset = dict(type='olor_mm.HoldOut', dataset=dict(type='CIFAR100', ...), share=0.1)
    """

    def __init__(
        self,
        dataset: Any,
        share: float = 0.2,
        held_out: bool = False,
        seed: int = 0,
        test_mode: bool | None = None,
        lazy_init: bool = False,
    ) -> None:
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < 1:
            raise ValueError(f'share={share!r} must be in (0, 1), such as 0.2')
        if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f'seed={seed!r} must be a whole number of 0 or more')
        self.share, self.held_out, self.seed = share, held_out, int(seed)
        super().__init__(dataset, test_mode, lazy_init)

    def choose(self, labels: list[int]) -> list[int]:
        """Those that are held out, or the others."""
        images = [reach(self.dataset, index)[2] for index in range(len(labels))]
        by_class: dict[int, set[tuple[int, ...]]] = {}
        for image, label in zip(images, labels, strict=True):
            by_class.setdefault(label, set()).add(image)
        alone = sorted(label for label, found in by_class.items() if len(found) < 2)
        if alone:
            raise ValueError(
                f'share={self.share}: {type(self.dataset).__name__} has only one image of {some(alone)}, so that '
                'none can be held out; leave these classes out, with olor_mm.ClassSubset'
            )
        away = {image for label, found in by_class.items() for image in self._draw(label, sorted(found))}
        return [index for index, image in enumerate(images) if (image in away) == self.held_out]

    def _draw(self, label: int, images: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        # RandomState draws the same in every version of numpy.
        order = np.random.RandomState([self.seed, label]).permutation(len(images))
        count = min(max(round(self.share * len(images)), 1), len(images) - 1)
        return [images[index] for index in order[:count]]

    def __repr__(self) -> str:
        what = 'held out' if self.held_out else 'not held out'
        return f'{type(self).__name__}: {len(self)} samples, {what} (share {self.share}), of\n{self.dataset!r}'
