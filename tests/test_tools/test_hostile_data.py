"""Files of data sets that nobody vouches for: read as data, and nothing of them is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olor_mm.tooling.data_checks import check_coco_json
from olor_mm.tooling.errors import InputError
from olor_mm.tooling.prepare.archives import unpack
from olor_mm.tooling.prepare.arrays import broken_mat, cifar100, svhn
from olor_mm.tooling.prepare.findings import Findings
from olor_mm.tooling.prepare.records import _coco_json
from tests._attacks import Evil, _array, _dtype

IMAGES = {'data': np.zeros((2, 3072), np.uint8), 'fine_labels': [0, 1]}


def _problems(findings: Findings) -> str:
    return repr(vars(findings))


def _cifar(folder: Path, content: bytes) -> tuple[list[Any], str]:
    (folder / 'cifar-100-python').mkdir()
    (folder / 'cifar-100-python' / 'train').write_bytes(content)
    findings = Findings()
    return list(cifar100(folder, findings)), _problems(findings)


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    content = {**IMAGES, 'more': [np.float32(1), np.arange(3.0), b'bytes', 'text']}
    records, problems = _cifar(tmp_path, pickle.dumps(content, protocol=protocol))
    assert [record.label for record in records] == [0, 1], problems


@pytest.mark.parametrize(
    'value',
    [
        lambda m: Evil(os.system, f'touch "{m}"'),
        lambda m: Evil(exec, f'open({str(m)!r}, "w")'),
        lambda m: Evil(getattr, Evil(__import__, 'os'), 'system'),
        lambda _: Evil(np.dtype, 'O'),
        lambda _: _array(_dtype('f8', '|', ('a',), {'a': (np.dtype('O'), 0)})),
        lambda _: Evil(np.zeros(1).__reduce__()[0], np.matrix, (0,), b'b'),
        lambda _: np.array([os.getcwd], dtype=object),
        lambda _: Evil(np.ndarray, (1,)),
    ],
)
def test_a_pickle_of_images_runs_nothing(tmp_path: Path, value: Callable[[Path], Any]) -> None:
    marker = tmp_path / 'ran'
    records, problems = _cifar(tmp_path, pickle.dumps({**IMAGES, 'x': value(marker)}, protocol=2))
    assert not records
    assert 'unreadable files' in problems
    assert not marker.exists()


def test_a_dtype_takes_no_state_from_a_pickle(tmp_path: Path) -> None:
    # The numbers would be pointers to objects, which numpy frees.
    content = {**IMAGES, 'x': _array(_dtype('f8', '<', None, None))}
    records, problems = _cifar(tmp_path, pickle.dumps(content, protocol=2))
    assert [record.label for record in records] == [0, 1], problems


@pytest.mark.parametrize('seed', range(20))
def test_matlab_files_of_noise_are_named(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    header = b'MATLAB 5.0 MAT-file'.ljust(124) + b'\x00\x01IM'
    file = tmp_path / 'train_32x32.mat'
    file.write_bytes((header if seed % 2 else b'') + rng.integers(0, 256, 400, dtype=np.uint8).tobytes())
    findings = Findings()
    assert not list(svhn(tmp_path, findings))
    assert 'train_32x32.mat' in _problems(findings)
    assert broken_mat(file)


@pytest.mark.parametrize(
    'text',
    ['', '[', '[' * 100_000, '{"images": 1}', '{"images": {}, "annotations": [], "categories": []}', 'null', 'NaN', '3']
    + ['{"images": [], "annotations": [], "categories": [' + '[' * 100_000, '"x"', '{"images": [[]]}'],
)
def test_annotations_of_nonsense_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / 'x.json'
    file.write_text(text)
    findings = Findings()
    assert _coco_json(file, findings) is None
    assert 'x.json is no COCO json' in _problems(findings)
    with pytest.raises(InputError, match=r'x\.json is not'):
        check_coco_json(file, 'train_dataloader.dataset.ann_file')


def test_an_archive_that_lies_about_its_size_writes_no_more_than_it_says(tmp_path: Path) -> None:
    archive = tmp_path / 'x.zip'
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as stream:
        stream.writestr('bomb.jpg', bytes(50_000_000))
    data = archive.read_bytes()
    archive.write_bytes(data.replace((50_000_000).to_bytes(4, 'little'), (10).to_bytes(4, 'little')))
    folder = tmp_path / 'set'
    folder.mkdir()
    with pytest.raises(InputError, match=r'x\.zip cannot be unpacked'):
        unpack(archive, folder)
    assert not list(folder.iterdir())


def test_an_archive_of_more_than_the_disk_holds_is_not_begun(tmp_path: Path) -> None:
    archive = tmp_path / 'x.zip'
    with zipfile.ZipFile(archive, 'w') as stream:
        stream.writestr('bomb.jpg', b'x')
    claimed = 2**32 - 2
    data = archive.read_bytes()
    end = data.rindex(b'PK\x01\x02')
    archive.write_bytes(data[: end + 24] + claimed.to_bytes(4, 'little') + data[end + 28 :])
    folder = tmp_path / 'set'
    folder.mkdir()
    with pytest.raises(InputError, match=r'x\.zip (cannot be unpacked|does not fit)'):
        unpack(archive, folder)
    assert not list(folder.iterdir())
