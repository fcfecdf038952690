"""Small copies of the data sets that tools/prepare_data.py knows, in the true formats and layouts.

Each function writes one below a folder and gives the :class:`Spec` with the counts of the copy.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy import io

from olor_mm.datasets import PACS, OfficeHome
from olor_mm.tooling import run_command
from olor_mm.tooling.prepare import prepare
from olor_mm.tooling.prepare.specs import SPECS, Spec

CLASSES = 3
COCO_CATEGORIES = 80


def image(file: Path, number: int, size: tuple[int, int] = (12, 10)) -> None:
    """A photograph of noise, another for every number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, quality=90)


def cifar100(root: Path) -> Spec:
    rng = np.random.default_rng(0)
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    for split, count in (('train', 6), ('test', 3)):
        content = dict(
            filenames=[f'{n}.png' for n in range(count)],
            batch_label='batch',
            fine_labels=[n % CLASSES for n in range(count)],
            coarse_labels=[0] * count,
            data=rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        )
        # Python 2 wrote the published ones.
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=['a', 'b', 'c']), protocol=2))
    digests = {name: hashlib.md5((root / name).read_bytes()).hexdigest() for name in SPECS['cifar100'].digests}
    minimum = dict(train=2, test=1)
    parts = dict(train=6, test=3)
    return replace(SPECS['cifar100'], parts=parts, classes=CLASSES, digests=digests, class_minimum=minimum)


def svhn(root: Path) -> Spec:
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    parts = dict(train=20, test=10, extra=30)
    for split, count in parts.items():
        content = dict(
            X=rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8),
            y=(np.arange(count, dtype=np.uint8) % 10 + 1).reshape(-1, 1),
        )
        io.savemat(root / f'{split}_32x32.mat', content, do_compression=True)
    return replace(SPECS['svhn'], parts=parts)


def cub200(root: Path) -> Spec:
    lists: dict[str, list[str]] = {'images.txt': [], 'image_class_labels.txt': [], 'train_test_split.txt': []}
    number = 0
    for label in range(1, CLASSES + 1):
        for index in range(3):
            number += 1
            name = f'{label:03d}.Some_Bird/Some_Bird_{index:04d}_{number}.jpg'
            image(root / 'images' / name, number)
            lists['images.txt'].append(f'{number} {name}')
            lists['image_class_labels.txt'].append(f'{number} {label}')
            lists['train_test_split.txt'].append(f'{number} {int(index < 2)}')
    for file, lines in lists.items():
        (root / file).write_text('\n'.join(lines) + '\n')
    return replace(SPECS['cub200'], parts=dict(train=2 * CLASSES, test=CLASSES), classes=CLASSES)


def stanford_cars(root: Path) -> Spec:
    (root / 'devkit').mkdir(parents=True)
    parts = dict(train=2 * CLASSES, test=CLASSES)
    for split, file in (('train', 'cars_train_annos.mat'), ('test', 'cars_test_annos_withlabels.mat')):
        rows = []
        for number in range(parts[split]):
            image(root / f'cars_{split}' / f'{number + 1:05d}.jpg', number)
            rows.append((1.0, 1.0, 9.0, 9.0, float(number % CLASSES + 1), f'{number + 1:05d}.jpg'))
        kind = [(name, object) for name in ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'fname')]
        io.savemat(root / 'devkit' / file, dict(annotations=np.array([rows], dtype=kind)), do_compression=True)
    return replace(SPECS['stanford_cars'], parts=parts, classes=CLASSES)


def stanford_cars_in_one(root: Path) -> Spec:
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(3 * CLASSES):
        image(root / 'car_ims' / f'{number + 1:06d}.jpg', number)
        path = f'car_ims/{number + 1:06d}.jpg'
        rows.append((path, 1.0, float(number % CLASSES + 1), float(number >= 2 * CLASSES)))
    kind = [(name, object) for name in ('relative_im_path', 'bbox_x1', 'class', 'test')]
    io.savemat(root / 'cars_annos.mat', dict(annotations=np.array([rows], dtype=kind)), do_compression=True)
    return replace(SPECS['stanford_cars'], parts=dict(train=2 * CLASSES, test=CLASSES), classes=CLASSES)


def _lists(root: Path, files: dict[str, str], name: Callable[[int, int], str], images: str) -> dict[str, int]:
    number, parts = 0, {}
    for split, file in files.items():
        lines = []
        for index in range(2 * CLASSES):
            number += 1
            path = name(index % CLASSES, number)
            image(root / images / path, number)
            lines.append(f'{path} {index % CLASSES}\n')
        (root / file).write_text(''.join(lines))
        parts[split] = len(lines)
    return parts


def places_lt(root: Path) -> Spec:
    scenes = ('a/airfield', 'a/apartment_building/outdoor', 'b/bar')
    files = {split: f'Places_LT_{split}.txt' for split in ('train', 'val', 'test')}
    parts = _lists(root, files, lambda label, number: f'data_256/{scenes[label]}/{number:08d}.jpg', '')
    # What Places365 has, and no list names.
    image(root / 'data_256/a/airfield/99999999.jpg', 0)
    return replace(SPECS['places_lt'], parts=parts, classes=CLASSES, class_minimum=dict.fromkeys(parts, 2))


def ip102(root: Path) -> Spec:
    files = {split: f'{split}.txt' for split in ('train', 'val', 'test')}
    parts = _lists(root, files, lambda label, number: f'{number:05d}.jpg', 'images')
    (root / 'classes.txt').write_text(''.join(f'{n} pest {n}\n' for n in range(1, 103)))
    return replace(SPECS['ip102'], parts=parts, classes=CLASSES)


def _domains(root: Path, kind: Any, each: int) -> dict[str, int]:
    classes = kind.METAINFO['classes']
    for domain in kind.DOMAINS:
        for label, name in enumerate(classes):
            for index in range(each):
                image(root / domain / name / f'pic_{index:03d}.jpg', label * each + index, (4, 4))
    return dict.fromkeys(kind.DOMAINS, each * len(classes))


def office_home(root: Path) -> Spec:
    return replace(SPECS['office_home'], parts=_domains(root, OfficeHome, 5))


def pacs(root: Path) -> Spec:
    return replace(SPECS['pacs'], parts=_domains(root, PACS, 6))


def coco(root: Path) -> Spec:
    (root / 'annotations').mkdir(parents=True)
    parts = dict(train2017=4, val2017=2)
    categories = [dict(id=n, name=f'thing {n}') for n in range(1, COCO_CATEGORIES + 1)]
    for split, count in parts.items():
        images = [dict(id=n, file_name=f'{n:012d}.jpg', width=12, height=10) for n in range(1, count + 1)]
        for item in images:
            image(root / split / item['file_name'], item['id'])
        annotations = [
            dict(id=n, image_id=n % count + 1, category_id=n, bbox=[0, 0, 5, 5], area=25, iscrowd=0)
            for n in range(1, COCO_CATEGORIES + 1)
        ]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return replace(SPECS['coco'], parts=parts)


def ade20k(root: Path) -> Spec:
    parts = dict(training=3, validation=2)
    for split, count in parts.items():
        for number in range(count):
            image(root / 'images' / split / f'ADE_{number:08d}.jpg', number, (16, 12))
            mask = root / 'annotations' / split / f'ADE_{number:08d}.png'
            mask.parent.mkdir(parents=True, exist_ok=True)
            values = (np.arange(16 * 12) % (SPECS['ade20k'].classes + 1)).astype(np.uint8)
            Image.fromarray(values.reshape(12, 16)).save(mask)
    return replace(SPECS['ade20k'], parts=parts)


MAKERS: dict[str, Callable[[Path], Spec]] = {
    maker.__name__: maker
    for maker in (
        cifar100, svhn, cub200, stanford_cars, stanford_cars_in_one, places_lt, ip102, office_home, pacs, coco, ade20k,
    )
}  # fmt: skip


class Outcome(NamedTuple):
    """What a run of the tool came to."""

    code: int
    out: str
    err: str


class Prepare:
    """Runs tools/prepare_data.py in this process, with the counts of the small copies in place of the published ones.

    Args:
        monkeypatch: Pytest's.
        capsys: Pytest's.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object, spec: Spec | None = None) -> Outcome:
        """Run it; ``spec`` gives the name and takes the place of the published one."""
        words = [str(argument) for argument in arguments]
        if spec is not None:
            self._monkeypatch.setitem(SPECS, spec.name, spec)
            words = [spec.name, *words]
        try:
            code = run_command(prepare, words)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = self._capsys.readouterr()
        assert 'Traceback' not in said.err
        return Outcome(code, said.out, said.err)


def digests(root: Path) -> dict[str, str]:
    """A hash of every file below a folder."""
    files = (path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
