"""What the data sets share: options checked when built, a choice of classes, and an error that names a broken image."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

try:
    from mmpretrain.datasets import BaseDataset
except ImportError as error:
    raise ImportError(
        f"the data sets of olor_mm are built on mmpretrain's, which cannot be imported: {error}; "
        'install mmpretrain 1.2.0 and mmcv 2.1.0'
    ) from error
from mmengine.logging import print_log

from ._errors import DatasetLayoutError, UnreadableImageError
from ._files import check_choice, image_fault, some, verify_images

__all__ = ['CheckedDataset']


class CheckedDataset(BaseDataset):
    """A data set of images and labels that says what is wrong with its files.

    A subclass gives :meth:`read`, and :meth:`read_classes` where names of classes stand in a file. ``metainfo`` may
    name some of the classes, as ``metainfo=dict(classes=('dog', 'horse'))``: then only their images are read, and
    labels follow the order given.

    Args:
        data_root: The folder that holds the data set.
        split: Which part, one of :attr:`SPLITS`.
        verify: Whether to decode every image when the data set is built, which takes minutes for a large one. Without
            it, a broken image is an error, which names it, when it is its turn. Defaults to False.
        **kwargs: Arguments of mmpretrain's ``BaseDataset``, such as ``pipeline``, ``metainfo`` and ``indices``.
            ``test_mode`` is True by itself for every split but a training one.

    Raises:
        ValueError: If an option's value does not exist, or if files are not as expected (``DatasetLayoutError``).
        FileNotFoundError: If a file or folder is missing.
    """

    #: The splits that exist.
    SPLITS: ClassVar[tuple[str, ...]] = ('train', 'test')
    #: The splits to learn from: at a broken pipeline they may draw another image, the others may not.
    TRAIN_SPLITS: ClassVar[tuple[str, ...]] = ('train',)
    #: How many classes there are.
    NUM_CLASSES: ClassVar[int]

    def __init__(self, data_root: str, split: str = 'train', verify: bool = False, **kwargs: Any) -> None:
        check_choice('split', split, self.SPLITS)
        if '://' in str(data_root):
            raise ValueError(
                f'data_root={data_root!r} is an address: {type(self).__name__} is read from a local folder'
            )
        self._check_options(kwargs)
        self.split = split
        self.verify = verify
        kwargs.setdefault('test_mode', split not in self.TRAIN_SPLITS)
        super().__init__(ann_file='', data_root=str(data_root), **kwargs)

    def _check_options(self, given: Mapping[str, Any]) -> None:
        makers = [
            vars(kind)['__init__'] for kind in type(self).__mro__ if '__init__' in vars(kind) and kind is not object
        ]
        known = {name for maker in makers for name in inspect.signature(maker).parameters}
        known -= {'self', 'args', 'kwargs', 'ann_file'}
        for option in given:
            if option not in known:
                near = get_close_matches(option, known, n=1)
                hint = f'did you mean {near[0]}?' if near else f'the options are {", ".join(sorted(known))}'
                raise ValueError(f'{option}={given[option]!r} is not an option of {type(self).__name__}: {hint}')

    def read(self) -> list[dict[str, Any]]:
        """One dict for every image of the split, ``gt_label`` counted in the published order of classes."""
        raise NotImplementedError

    def read_classes(self) -> tuple[str, ...] | None:
        """The published names of classes in the order of labels, or None where they are not known."""
        return self.METAINFO.get('classes')

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the split, keep the classes chosen and number them anew.

        Returns:
            One dict for every image.

        Raises:
            ValueError: If a class is not known, or if no image is left.
        """
        labels = self._chosen_labels()
        samples = [sample for sample in self.read() if sample['gt_label'] in labels]
        for sample in samples:
            sample['gt_label'] = labels[sample['gt_label']]
        if not samples:
            raise DatasetLayoutError(f'{type(self).__name__}: split {self.split!r} of {self.data_root} holds no image')
        if self.verify:
            verify_images(sample['img_path'] for sample in samples if 'img_path' in sample)
        return samples

    def _chosen_labels(self) -> dict[int, int]:
        """From published label to label of the classes chosen; those not chosen are left out.

        Raises:
            ValueError: If a class is not known.
        """
        published, chosen = self.read_classes(), self.CLASSES
        everything = {label: label for label in range(self.NUM_CLASSES)}
        if chosen is None:
            if published is not None:
                self._metainfo['classes'] = published
            return everything
        option = f'metainfo.classes of {type(self).__name__}'
        if len(set(chosen)) < len(chosen) or not chosen:
            raise ValueError(f'{option}={tuple(chosen)!r} must name one class or more, each once')
        if published is None:
            if len(chosen) != self.NUM_CLASSES:
                raise ValueError(
                    f'{option} names {len(chosen)} classes, but which labels these are is not known: the files of this '
                    f'data set hold no names; name all {self.NUM_CLASSES} or none'
                )
            return everything
        unknown = [name for name in chosen if name not in published]
        if unknown:
            raise ValueError(f'{option} names {some(unknown)}; the classes are {some(published, self.NUM_CLASSES)}')
        return {published.index(name): label for label, name in enumerate(chosen)}

    def warn_unless(self, what: str, found: int, published: int) -> None:
        """Log a warning unless files hold as many images as published.

        Args:
            what: The file or folder.
            found: How many it holds.
            published: How many it held when published.
        """
        if found != published:
            print_log(
                f'{type(self).__name__}: {what} holds {found:,} images, where {published:,} were published: results '
                'on it do not compare with published ones',
                logger='current',
                level=logging.WARNING,
            )

    def prepare_data(self, idx: int) -> Any:
        """The image number ``idx`` after the pipeline.

        Args:
            idx: Its number.

        Raises:
            UnreadableImageError: If the pipeline failed because the image cannot be read.
        """
        try:
            return super().prepare_data(idx)
        except Exception as error:
            # What a loader raises at a broken file depends on the file and the loader; any else is not ours to explain.
            file = self.get_data_info(idx).get('img_path')
            fault = image_fault(file) if file else None
            if fault is None:
                raise
            raise UnreadableImageError(f'{fault}\nfetch it again; verify=True looks for all such images') from error

    def extra_repr(self) -> list[str]:
        """What ``repr`` says besides numbers: where the data are, and which part this is."""
        return [f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}']
