"""SVHN: digits from photographs of house numbers, as published for MATLAB."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from olor_mm.registry import DATASETS

from ._base import CheckedDataset
from ._errors import DatasetLayoutError
from ._files import find_root

__all__ = ['SVHN']

_SIDE = 32  # pixels


class _Images:
    """Images in one or several arrays, which are never copied as a whole.

    Joining ``train`` and ``extra`` would need their 1.9 GB twice, and so would the deep copy of a data set that
    ``get_subset`` makes: the arrays are read-only and shared instead.
    """

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        for part in parts:
            part.setflags(write=False)

    def __getitem__(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self.ends, index, side='right'))
        # A copy of 3 kB: the stored image is neither contiguous nor to be changed by a pipeline.
        return np.array(self.parts[part][index - int(self.ends[part])], order='C')

    def __deepcopy__(self, memo: dict[int, Any]) -> _Images:
        return self


@DATASETS.register_module()
class SVHN(CheckedDataset):
    """SVHN, cropped digits (Netzer and others, 2011): 32x32 images of the digits 0 to 9.

    The files are those published as format 2, in ``data_root`` itself: ::

        data/svhn
        ├── train_32x32.mat
        ├── extra_32x32.mat
        └── test_32x32.mat

    Images are handed to the pipeline as arrays, so that it starts without ``LoadImageFromFile``, and their channels are
    in the order RGB, as those of mmpretrain's CIFAR: set ``to_rgb=False`` in the ``data_preprocessor``. The published
    label 10 becomes the digit 0. ``extra`` takes 1.6 GB of memory, ``train`` 0.2 GB; worker processes share them.

    Args:
        data_root: The folder that holds the files. Defaults to ``'data/svhn'``.
        split: ``'train'`` (73,257 images), ``'extra'`` (531,131), ``'train+extra'`` or ``'test'`` (26,032). Defaults to
            ``'train'``.
        **kwargs: Arguments of :class:`CheckedDataset`.

    Raises:
        ImportError: If SciPy, which reads the files, cannot be imported.

    Example:
        >>> train = SVHN('data/svhn', 'train+extra')
    """

    METAINFO: ClassVar = {'classes': tuple('0123456789')}
    NUM_CLASSES = 10
    SPLITS = ('train', 'extra', 'train+extra', 'test')
    TRAIN_SPLITS = ('train', 'extra', 'train+extra')
    COUNTS: ClassVar = {'train': 73257, 'extra': 531131, 'test': 26032}
    LAYOUT = 'DIR\n├── train_32x32.mat\n├── extra_32x32.mat (for split extra and train+extra)\n└── test_32x32.mat'

    def __init__(self, data_root: str = 'data/svhn', split: str = 'train', **kwargs: Any) -> None:
        super().__init__(data_root, split, **kwargs)

    def read(self) -> list[dict[str, Any]]:
        """The label of every image and its number, by which :meth:`get_data_info` finds it."""
        root = find_root(self.data_root, ('',), [f'{name}_32x32.mat' for name in self.COUNTS], self.LAYOUT)
        arrays, labels = [], []
        for name in self.split.split('+'):
            file = root / f'{name}_32x32.mat'
            found = read_mat(file)
            self.warn_unless(str(file), len(found[0]), self.COUNTS[name])
            arrays.append(found[0])
            labels.append(found[1])
        self._images = _Images(arrays)
        return [{'gt_label': label, 'number': number} for number, label in enumerate(np.concatenate(labels).tolist())]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Image and label number ``idx``.

        Args:
            idx: Its number.

        Returns:
            ``img`` as an array of height, width and RGB, ``gt_label`` and ``sample_idx``.
        """
        info = super().get_data_info(idx)
        info['img'] = self._images[info.pop('number')]
        return info


def read_mat(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of SVHN.

    Args:
        file: The file, MATLAB v5 with ``X`` of 32 x 32 x 3 x N bytes and ``y`` of N labels from 1 to 10.

    Returns:
        The images as N x 32 x 32 x 3 in a view of the array read, and their digits.

    Raises:
        FileNotFoundError: If the file is missing.
        DatasetLayoutError: If it is no such file.
        ImportError: If SciPy cannot be imported.
    """
    images, labels = _variables(file)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (_SIDE, _SIDE, 3) or not images.shape[3]:
        raise DatasetLayoutError(
            f'{file}: X is {images.dtype} of shape {images.shape}, where uint8 of shape (32, 32, 3, N) was expected'
        )
    count = images.shape[3]
    if labels.size != count or max(labels.shape) != count:
        raise DatasetLayoutError(f'{file}: X holds {count:,} images, but y has the shape {labels.shape}')
    labels = labels.reshape(-1)
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
    if wrong.size:
        raise DatasetLayoutError(
            f'{file}: y[{wrong[0]}] is {labels[wrong[0]]}, where 1 to 10 was expected, 10 for the digit 0, as published'
        )
    return images.transpose(3, 0, 1, 2), labels.astype(np.int64) % 10


def _variables(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f'reading {file} takes SciPy, which cannot be imported: {error}; pip install scipy'
        ) from error
    if not file.is_file():
        raise FileNotFoundError(f'{file.absolute()} does not exist: it is published as format 2 of SVHN')
    try:
        content = loadmat(str(file), variable_names=['X', 'y'])
    except MemoryError:
        raise
    except Exception as error:  # SciPy raises anything at all at a broken file.
        raise DatasetLayoutError(
            f'{file} ({file.stat().st_size:,} bytes) cannot be read as a MATLAB v5 file: {error}\nfetch it again'
        ) from error
    missing = [name for name in ('X', 'y') if not isinstance(content.get(name), np.ndarray)]
    if missing:
        raise DatasetLayoutError(f'{file} holds no variable {" and no ".join(missing)}: expected X and y, as published')
    return content['X'], content['y']
