"""Places-LT and IP102: sets that come with lists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmpretrain.registry import DATASETS

from olor_mm.datasets import IP102, DatasetLayoutError, PlacesLT
from olor_mm.datasets._lists import read_class_names, read_list
from olor_mm.datasets.places_lt import _scene

from ._make import make_ip102, make_places

NAMES = [f'pest {label}' for label in range(IP102.NUM_CLASSES)]


@pytest.fixture(scope='module')
def places_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_places(tmp_path_factory.mktemp('places'))


@pytest.fixture(scope='module')
def pests_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ip102(tmp_path_factory.mktemp('ip102'), NAMES)


def listed(dataset: Any) -> list[tuple[str, int]]:
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [(info['img_path'], info['gt_label']) for info in infos]


@pytest.mark.parametrize('split', PlacesLT.SPLITS)
def test_places_are_those_of_the_list(places_root: Path, split: str) -> None:
    dataset = DATASETS.build(dict(type='olor_mm.PlacesLT', data_root=str(places_root), split=split))
    lines = (places_root / f'Places_LT_{split}.txt').read_text().splitlines()
    assert listed(dataset) == [(str(places_root / line.split()[0]), int(line.split()[1])) for line in lines]
    assert all(Path(path).is_file() for path, _ in listed(dataset))
    assert dataset.test_mode == (split != 'train')


def test_scenes_are_named_by_the_folders_of_the_training_list(places_root: Path, tmp_path: Path) -> None:
    test = PlacesLT(str(places_root), 'test')
    assert test.CLASSES[:2] == ('scene_000', 'scene_001/outdoor')
    assert len(set(test.CLASSES)) == PlacesLT.NUM_CLASSES
    copied = shutil.copytree(places_root, tmp_path / 'places')
    (copied / 'Places_LT_train.txt').unlink()
    assert PlacesLT(str(copied), 'test').CLASSES is None


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('data_256/a/airfield/00000001.jpg', 'airfield'),
        ('data_256/a/apartment_building/outdoor/00000001.jpg', 'apartment_building/outdoor'),
        ('train/airfield/00000001.jpg', 'airfield'),
        ('train/apartment_building/outdoor/00000001.jpg', 'apartment_building/outdoor'),
        ('train/apartment_building-outdoor/00000001.jpg', 'apartment_building-outdoor'),
    ],
)
def test_scenes_in_the_folders_of_the_lists_that_are_about(path: str, name: str) -> None:
    assert _scene(path) == name


def test_scenes_are_not_named_where_folders_are_not_the_classes(places_root: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(places_root, tmp_path / 'places')
    file = copied / 'Places_LT_train.txt'
    file.write_text(file.read_text().replace('scene_000/00000002.jpg 0', 'scene_000/00000002.jpg 1'))
    assert PlacesLT(str(copied), 'train').CLASSES is None


def test_places_with_some_classes(places_root: Path) -> None:
    dataset = PlacesLT(str(places_root), 'test', classes=['scene_003/outdoor', 'scene_000'])
    assert [(Path(path).name, label) for path, label in listed(dataset)] == [
        ('Places365_val_00000000.jpg', 1),
        ('Places365_val_00000003.jpg', 0),
    ]


@pytest.mark.parametrize('split', IP102.SPLITS)
@pytest.mark.parametrize('below', ['', 'ip102_v1.1'])
def test_pests_are_those_of_the_list(tmp_path: Path, split: str, below: str) -> None:
    root = make_ip102(tmp_path / below)
    # The names are published beside the archive.
    (tmp_path / 'classes.txt').write_text('\n'.join(f'{number} {name}' for number, name in enumerate(NAMES, 1)))
    dataset = DATASETS.build(dict(type='olor_mm.IP102', data_root=str(tmp_path), split=split))
    lines = (root / f'{split}.txt').read_text().splitlines()
    assert listed(dataset) == [(str(root / 'images' / line.split()[0]), int(line.split()[1])) for line in lines]
    assert tuple(NAMES) == dataset.CLASSES


def test_pests_without_names(tmp_path: Path) -> None:
    root = make_ip102(tmp_path)
    assert IP102(str(root)).CLASSES is None
    assert tuple(NAMES) == IP102(str(root), classes=NAMES).CLASSES
    with pytest.raises(
        ValueError, match=r'names 2 classes, but which labels these are is not known.*name all 102 or none'
    ):
        IP102(str(root), classes=NAMES[:2])


def test_a_name_that_is_published_twice(tmp_path: Path) -> None:
    """'alfalfa weevil' is both 45 and 57 in the published file."""
    names = [*NAMES]
    names[44] = names[56] = 'alfalfa weevil'
    root = make_ip102(tmp_path, names)
    dataset = IP102(str(root), 'test', classes=['alfalfa weevil (57)', 'alfalfa weevil'])
    assert [(Path(path).name, label) for path, label in listed(dataset)] == [('00134.jpg', 1), ('00170.jpg', 0)]


@pytest.mark.parametrize(('kind', 'file'), [(PlacesLT, 'Places_LT_test.txt'), (IP102, 'test.txt')])
def test_another_number_of_images_is_reported(
    kind: Any, file: str, places_root: Path, pests_root: Path, logged: list[str]
) -> None:
    dataset = kind(str(places_root if kind is PlacesLT else pests_root), 'test')
    assert any(f'{file} holds {len(dataset)} images, where {kind.COUNTS["test"]:,} were' in line for line in logged)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (PlacesLT, r'(?s)holds none of Places_LT_train.txt.*found in it: nothing.*├── Places_LT_val.txt'),
        (IP102, r'(?s)holds none of train.txt, val.txt, test.txt.*found in it: nothing.*├── classes.txt'),
    ],
)
def test_an_empty_folder(tmp_path: Path, kind: Any, message: str) -> None:
    with pytest.raises(DatasetLayoutError, match=message):
        kind(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'data folder .*missing does not exist'):
        kind(str(tmp_path / 'missing'))
    with pytest.raises(ValueError, match=r"split='extra' is not known: choose one of 'train', 'val', 'test'"):
        kind(str(tmp_path), 'extra')


def test_missing_places(places_root: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(places_root, tmp_path / 'places')
    (copied / 'Places_LT_val.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'the list .*Places_LT_val.txt does not exist'):
        PlacesLT(str(copied), 'val')
    for path, _ in listed(PlacesLT(str(copied), 'test'))[:2]:
        Path(path).unlink()
    with pytest.raises(
        FileNotFoundError, match=r'images that .*Places_LT_test.txt lists are not in .*val_00000000.jpg'
    ):
        PlacesLT(str(copied), 'test')


@pytest.mark.parametrize('gone', ['images/00304.jpg', 'images'])
def test_missing_pests(pests_root: Path, tmp_path: Path, gone: str) -> None:
    copied = shutil.copytree(pests_root, tmp_path / 'ip102')
    shutil.rmtree(copied / gone) if (copied / gone).is_dir() else (copied / gone).unlink()
    with pytest.raises(FileNotFoundError, match=r'images that .*val.txt lists are not in .*images: .*\d{5}.jpg'):
        IP102(str(copied), 'val')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('a/1.jpg 0\na/2.jpg\n', r"line 2: 'a/2.jpg' is not '<relative path> <label>'"),
        ('a/1.jpg 0\n\n7\n', r"line 3: '7' is not '<relative path> <label>'"),
        ('a/1.jpg 1.0\n', r"line 1: 'a/1.jpg 1.0' is not"),
        ('a/1.jpg,0\n', r"line 1: 'a/1.jpg,0' is not"),
        ('a/1.jpg \u0663\n', r'line 1: .* is not'),
        ('a/1.jpg 0\na/2.jpg 3\n', r'line 2: label 3 is out of range: the labels are 0 to 2'),
        ('a/1.jpg -1\n', r'line 1: label -1 is out of range'),
        ('a/1.jpg 0\na/2.jpg 1\na/1.jpg 1\n', r"line 3: the image 'a/1.jpg' is listed already in line 1"),
        ('/data/a/1.jpg 0\n', r"line 1: '/data/a/1.jpg' must be relative"),
        ('C:/a/1.jpg 0\n', r"line 1: 'C:/a/1.jpg' must be relative"),
        ('a/../../1.jpg 0\n', r'line 1: .*must be relative to the data folder and stay below it'),
        ('', r'lists no image'),
        ('\n \n', r'lists no image'),
    ],
)
def test_lists_that_are_not_right(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / 'list.txt'
    file.write_text(content, encoding='utf-8')
    with pytest.raises(DatasetLayoutError, match=rf'list\.txt.*{message}'):
        read_list(file, 3)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / 'list.txt'
    file.write_bytes(b'\xff\xd8\xff\xe0 JPEG')
    with pytest.raises(DatasetLayoutError, match=r'list\.txt is not a text file'):
        read_list(file, 3)


def test_lists_from_other_editors(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, tabs, blanks in names and at ends of lines."""
    file = tmp_path / 'list.txt'
    file.write_bytes('\ufeffa/1.jpg 1\r\nthe b/2 (1).jpg\t2  \r\n\r\nc/3.jpg   3'.encode())
    assert read_list(file, 3, first_label=1) == [('a/1.jpg', 0), ('the b/2 (1).jpg', 1), ('c/3.jpg', 2)]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('1 a\n3 b\n', r"line 2: '3 b' is not the number 2 and the name of a class"),
        ('0 a\n1 b\n', r"line 1: '0 a' is not the number 1"),
        ('1 a\n2\n', r"line 2: '2' is not the number 2 and the name"),
        ('1 a\n', r'names 1 classes, where 2 were expected'),
        ('1 a\n2 b\n3 c\n', r'names 3 classes, where 2 were expected'),
    ],
)
def test_names_that_are_not_right(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / 'classes.txt'
    file.write_text(content)
    with pytest.raises(DatasetLayoutError, match=message):
        read_class_names(file, 2)


def damaged_names(root: Path) -> None:
    (root / 'classes.txt').write_text('1 rice leaf roller\n')


def damaged_list(root: Path) -> None:
    (root / 'train.txt').write_text('00000.jpg 102\n')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (damaged_names, r'classes.txt names 1 classes, where 102'),
        (damaged_list, r'train.txt, line 1: label 102 is out of r'),
    ],
)
def test_damaged_pests(pests_root: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    copied = shutil.copytree(pests_root, tmp_path / 'ip102')
    damage(copied)
    with pytest.raises(DatasetLayoutError, match=message):
        IP102(str(copied))
