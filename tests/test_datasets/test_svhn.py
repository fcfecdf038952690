"""SVHN: what stands in the files is what the pipeline gets, and nothing is copied as a whole."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmpretrain.registry import DATASETS
from scipy.io import savemat

from olor_mm.datasets import SVHN, DatasetLayoutError

from ._make import make_svhn

COUNTS = dict(train=23, extra=31, test=12)


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    root = tmp_path_factory.mktemp('svhn')
    return root, make_svhn(root, COUNTS)


@pytest.mark.parametrize('split', SVHN.SPLITS)
def test_images_and_digits_are_those_of_the_files(written: Any, split: str) -> None:
    root, files = written
    dataset = DATASETS.build(dict(type='olor_mm.SVHN', data_root=str(root), split=split))
    wanted = [(name, number) for name in split.split('+') for number in range(COUNTS[name])]
    assert len(dataset) == len(wanted)
    assert dataset.test_mode == (split == 'test')
    for index, (name, number) in enumerate(wanted):
        info = dataset.get_data_info(index)
        images, labels = files[name]
        # The file's axes are height, width, channel (RGB), image.
        assert np.array_equal(info['img'], images[..., number])
        assert dataset.CLASSES[info['gt_label']] == str(labels[number, 0])[-1]
        assert info['img'].flags.c_contiguous
        assert info['img'].flags.writeable
        assert set(info) == {'img', 'gt_label', 'sample_idx'}


def test_the_digit_zero_is_published_as_ten(written: Any) -> None:
    root, files = written
    tens = int((files['train'][1] == 10).sum())
    assert int((SVHN(str(root)).get_gt_labels() == 0).sum()) == tens > 0


@pytest.mark.parametrize('serialize', [True, False])
def test_subsets_and_negative_numbers(written: Any, serialize: bool) -> None:
    root, files = written
    dataset = SVHN(str(root), 'train+extra', serialize_data=serialize)
    last = files['extra'][0][..., -1]
    assert np.array_equal(dataset.get_subset([2, len(dataset) - 1]).get_data_info(1)['img'], last)
    assert np.array_equal(SVHN(str(root), 'train+extra', indices=[0, -1]).get_data_info(1)['img'], last)


def test_classes_chosen(written: Any) -> None:
    root, files = written
    dataset = SVHN(str(root), metainfo=dict(classes=('0', '7')))
    labels = files['train'][1].ravel()
    kept = np.flatnonzero(np.isin(labels, (10, 7)))
    assert len(dataset) == len(kept)
    for index, number in enumerate(kept):
        info = dataset.get_data_info(index)
        assert info['gt_label'] == (0 if labels[number] == 10 else 1)
        assert np.array_equal(info['img'], files['train'][0][..., number])


def test_arrays_are_shared_and_never_copied_or_written(written: Any) -> None:
    root, _ = written
    dataset = SVHN(str(root), 'train+extra')
    stored = dataset._images.parts
    for other in (dataset.get_subset(5), copy.deepcopy(dataset)):
        assert all(np.shares_memory(mine, theirs) for mine, theirs in zip(stored, other._images.parts, strict=True))
    # No other attribute holds them: what is serialised are numbers and labels.
    assert dataset.data_bytes.nbytes < 200 * len(dataset)
    before = dataset.get_data_info(0)['img']
    dataset.get_data_info(0)['img'][:] = 0
    assert np.array_equal(dataset.get_data_info(0)['img'], before)
    with pytest.raises(ValueError, match='read-only'):
        stored[0][0] = 0


def test_another_number_of_images_than_published_is_reported(written: Any, logged: list[str]) -> None:
    SVHN(str(written[0]), 'test')
    assert any('test_32x32.mat holds 12 images, where 26,032 were published' in line for line in logged)


IMAGES = np.zeros((32, 32, 3, 4), np.uint8)
LABELS = np.array([[1], [2], [3], [10]], np.uint8)


def text(file: Path) -> None:
    file.write_text('<html>Not found</html>')


def nothing(file: Path) -> None:
    file.write_bytes(b'')


def half(file: Path) -> None:
    savemat(file, {'X': np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8), 'y': LABELS})
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def newer(file: Path) -> None:
    """The first bytes of MATLAB v7.3, which is HDF5."""
    file.write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM' + b'\x89HDF\r\n\x1a\n'.ljust(512, b'\0'))


def holding(**variables: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        savemat(file, variables)

    write.__name__ = ','.join(f'{name}{np.shape(value)}' for name, value in variables.items())
    return write


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (text, r'cannot be read as a MATLAB v5 file'),
        (nothing, r'\(0 bytes\) cannot be read as a MATLAB v5 file'),
        (half, r'cannot be read as a MATLAB v5 file'),
        (newer, r'(?s)cannot be read as a MATLAB v5 file.*fetch it again'),
        (holding(X=IMAGES), r'holds no variable y: expected X and y'),
        (holding(images=IMAGES), r'holds no variable X and no y'),
        (holding(X=IMAGES, y=LABELS[:3]), r'X holds 4 images, but y has the shape \(3, 1\)'),
        (holding(X=IMAGES, y=LABELS.reshape(2, 2)), r'X holds 4 images, but y has the shape \(2, 2\)'),
        (holding(X=IMAGES.astype(np.float64), y=LABELS), r'X is float64 of shape .*, where uint8'),
        (
            holding(X=IMAGES.transpose(3, 0, 1, 2), y=LABELS),
            r'X is uint8 of shape \(4, 32, 32, 3\), where uint8 of shape',
        ),
        (holding(X=IMAGES[..., 0], y=LABELS[:1]), r'X is uint8 of shape \(32, 32, 3\)'),
        (holding(X=IMAGES[..., :0], y=LABELS[:0]), r'X is uint8 of shape'),
        (holding(X=IMAGES, y=LABELS % 10), r'y\[3\] is 0, where 1 to 10 was expected, 10 for the digit 0'),
        (holding(X=IMAGES, y=LABELS + 1), r'y\[3\] is 11'),
        (holding(X=IMAGES, y=LABELS + 0.5), r'y\[0\] is 1.5'),
    ],
)
def test_files_that_are_not_right(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / 'train_32x32.mat')
    with pytest.raises(DatasetLayoutError, match=rf'(?s)train_32x32\.mat.*{message.removeprefix("(?s)")}'):
        SVHN(str(tmp_path))


def test_a_file_that_is_missing(written: Any, tmp_path: Path) -> None:
    make_svhn(tmp_path, dict(train=3))
    with pytest.raises(FileNotFoundError, match=r'extra_32x32.mat does not exist: it is published as format 2'):
        SVHN(str(tmp_path), 'train+extra')
    (tmp_path / 'train_32x32.mat').unlink()
    with pytest.raises(DatasetLayoutError, match=r'(?s)holds none of train_32x32.mat.*found in it: nothing.*expected'):
        SVHN(str(tmp_path))


def test_scipy_that_is_missing(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    with pytest.raises(ImportError, match=r'train_32x32.mat takes SciPy.*pip install scipy'):
        SVHN(str(written[0]))


def test_unknown_split() -> None:
    with pytest.raises(
        ValueError, match=r"split='val' is not known: choose one of 'train', 'extra', 'train\+extra', 'test'"
    ):
        SVHN(split='val')
