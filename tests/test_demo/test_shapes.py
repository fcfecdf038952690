"""The generated data: valid COCO, true masks, the same bytes from the same seed, two different domains."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')
SIZES = {domain: {'train': 12, 'val': 5} for domain in 'AB'}


def write(folder: Path, **options) -> Path:
    importlib.import_module('shapes').write_dataset(folder, SIZES, **options)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


@pytest.mark.parametrize('domain', 'AB')
@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_are_coco_and_describe_the_images(tmp_path: Path, domain: str, split: str) -> None:
    write(tmp_path)
    coco = COCO(str(tmp_path / domain / 'annotations' / f'{split}.json'))
    assert len(coco.getImgIds()) == SIZES[domain][split]
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == ['circle', 'square', 'triangle']
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(tmp_path / domain / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert annotations
        overlap = sum(coco.annToMask(annotation).astype(int) for annotation in annotations)
        assert overlap.max() == 1, 'masks show what is visible, so they never overlap'
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            y, x = np.nonzero(mask)
            assert annotation['bbox'] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert annotation['area'] == mask.sum() > 30


@pytest.mark.parametrize('image_size', [64, 96, 160])
def test_shapes_lie_within_images_of_any_size(tmp_path: Path, image_size: int) -> None:
    write(tmp_path, image_size=image_size)
    annotations = json.loads((tmp_path / 'B' / 'annotations' / 'train.json').read_text())['annotations']
    boxes = np.array([annotation['bbox'] for annotation in annotations])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= image_size).all()
    assert boxes[:, 2:].max() > image_size / 6


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first, same, other = write(tmp_path / '1', seed=3), write(tmp_path / '2', seed=3), write(tmp_path / '3', seed=4)
    assert contents(first) == contents(same)
    assert contents(first).keys() == contents(other).keys()
    assert all(contents(first)[name] != contents(other)[name] for name in contents(first))


def test_more_training_images_leave_the_others_as_they_were(tmp_path: Path) -> None:
    shapes = importlib.import_module('shapes')
    write(tmp_path / 'few')
    shapes.write_dataset(tmp_path / 'more', {'A': {'train': 20, 'val': 5}})
    few, more = contents(tmp_path / 'few' / 'A'), contents(tmp_path / 'more' / 'A')
    assert all(few[name] == more[name] for name in few if name != 'annotations/train.json')


def test_the_domains_look_different(tmp_path: Path) -> None:
    write(tmp_path)
    brightness, width = {}, {}
    for domain in 'AB':
        brightness[domain] = np.mean([cv2.imread(str(f)).mean() for f in (tmp_path / domain / 'train').glob('*.png')])
        found = json.loads((tmp_path / domain / 'annotations' / 'train.json').read_text())['annotations']
        width[domain] = np.mean([annotation['bbox'][2] for annotation in found])
    assert brightness['B'] - brightness['A'] > 40
    assert width['A'] > 1.15 * width['B']
