"""PACS and Office-Home: which images each split holds, and what is said about folders that are not right."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmpretrain.registry import DATASETS

from olor_mm.datasets import PACS, DatasetLayoutError, OfficeHome

from ._make import jpeg, make_domains, make_lists

PER_CLASS = 3


@pytest.fixture(scope='module')
def pacs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_domains(tmp_path_factory.mktemp('pacs'), PACS, PER_CLASS)
    make_lists(root, PER_CLASS)
    return root


@pytest.fixture(scope='module')
def home_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_domains(tmp_path_factory.mktemp('home'), OfficeHome, PER_CLASS)


@pytest.fixture
def broken_root(pacs_root: Path, tmp_path: Path) -> Path:
    """A copy of PACS to break."""
    return shutil.copytree(pacs_root, tmp_path / 'pacs')


def images_of(dataset: Any) -> list[str]:
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def everything(root: Path, domains: tuple[str, ...]) -> set[str]:
    """All images below some domains, found without the package."""
    return {str(path) for domain in domains for path in (root / domain).rglob('*.jpg') if path.name[0] != '.'}


@pytest.mark.parametrize(
    ('train', 'test'),
    [
        (None, None),
        (('art_painting', 'cartoon', 'photo'), ('sketch',)),
        (('photo', 'sketch'), ('sketch', 'cartoon')),
        ('photo', 'photo'),
    ],
)
@pytest.mark.parametrize('fold', [0, 2])
def test_splits_are_disjoint_and_exhaustive(pacs_root: Path, train: Any, test: Any, fold: int) -> None:
    cfg = dict(type='olor_mm.PACS', data_root=str(pacs_root), num_folds=PER_CLASS, fold=fold)
    parts = {
        split: images_of(DATASETS.build(dict(cfg, split=split, train_domains=train, test_domains=test)))
        for split in ('train', 'test')
    }
    names = {
        option: tuple(PACS.DOMAINS) if given is None else given for option, given in (('train', train), ('test', test))
    }
    names = {option: (given,) if isinstance(given, str) else given for option, given in names.items()}
    assert len(parts['train']) == len(set(parts['train']))
    assert not set(parts['train']) & set(parts['test'])
    assert set(parts['train']) | set(parts['test']) == everything(pacs_root, (*names['train'], *names['test']))
    for domain in PACS.DOMAINS:
        of_domain = everything(pacs_root, (domain,))
        if domain not in names['train']:
            assert not of_domain & set(parts['train'])
        elif domain not in names['test']:
            assert of_domain <= set(parts['train'])
        else:
            # One image of each class in each fold.
            assert Counter(Path(file).parent.name for file in of_domain & set(parts['test'])) == dict.fromkeys(
                PACS.METAINFO['classes'], 1
            )


def test_every_image_is_tested_once_over_all_folds(pacs_root: Path) -> None:
    tested = [file for fold in range(3) for file in images_of(PACS(str(pacs_root), 'test', num_folds=3, fold=fold))]
    assert Counter(tested) == dict.fromkeys(everything(pacs_root, tuple(PACS.DOMAINS)), 1)


def test_a_domain_keeps_its_folds_whatever_other_domains_there_are(pacs_root: Path) -> None:
    alone = PACS(str(pacs_root), 'test', train_domains='photo', test_domains='photo', num_folds=3)
    among = PACS(str(pacs_root), 'test', num_folds=3)
    assert images_of(alone) == [file for file in images_of(among) if '/photo/' in file]


@pytest.mark.parametrize('kind', [PACS, OfficeHome])
def test_labels_are_those_of_the_folders(kind: Any, pacs_root: Path, home_root: Path) -> None:
    root = pacs_root if kind is PACS else home_root
    dataset = kind(str(root), num_folds=3)
    assert len(dataset.METAINFO['classes']) == dataset.NUM_CLASSES == len(set(dataset.CLASSES))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        domain, name = Path(info['img_path']).parts[-3:-1]
        assert (info['domain'], dataset.CLASSES[info['gt_label']]) == (domain, name)


def test_classes_chosen_are_numbered_in_their_order(pacs_root: Path) -> None:
    chosen = ('person', 'dog')
    dataset = PACS(str(pacs_root), num_folds=3, metainfo=dict(classes=chosen))
    assert chosen == dataset.CLASSES
    assert len(dataset) == len(PACS.DOMAINS) * len(chosen) * 2
    found = {
        (Path(info['img_path']).parent.name, info['gt_label'])
        for info in map(dataset.get_data_info, range(len(dataset)))
    }
    assert found == {('person', 0), ('dog', 1)}


def test_classes_not_chosen_need_not_exist(broken_root: Path) -> None:
    for domain in PACS.DOMAINS:
        shutil.rmtree(broken_root / domain / 'guitar')
    whole = PACS.METAINFO['classes']
    rest = PACS(str(broken_root), classes=[name for name in whole if name != 'guitar'], num_folds=3)
    assert len(rest.CLASSES) == len(whole) - 1
    with pytest.raises(DatasetLayoutError, match='missing: guitar'):
        PACS(str(broken_root))


@pytest.mark.parametrize('folder', ['Real World', 'Real_World', 'RealWorld'])
@pytest.mark.parametrize('below', ['', 'OfficeHomeDataset_10072016'])
def test_the_published_spellings_and_folder_of_office_home(tmp_path: Path, folder: str, below: str) -> None:
    make_domains(tmp_path / below, OfficeHome, 1, {'Real World': folder})
    dataset = DATASETS.build(
        dict(
            type='olor_mm.OfficeHome',
            data_root=str(tmp_path),
            train_domains='Art',
            test_domains='Real_World',
            split='test',
        )
    )
    assert len(dataset) == OfficeHome.NUM_CLASSES
    assert Path(dataset.get_data_info(0)['img_path']).parts[-3] == folder
    assert dataset.get_data_info(0)['domain'] == 'Real World'


def test_a_domain_in_two_spellings(tmp_path: Path) -> None:
    make_domains(tmp_path, OfficeHome, 1)
    (tmp_path / 'RealWorld').symlink_to(tmp_path / 'Real World')
    options = dict(train_domains='Art', test_domains='Real World', split='test')
    assert len(OfficeHome(str(tmp_path), **options)) == OfficeHome.NUM_CLASSES
    (tmp_path / 'Real_World').mkdir()
    with pytest.raises(DatasetLayoutError, match=r"more than once, as 'Real World' and 'Real_World'.*keep one"):
        OfficeHome(str(tmp_path), **options)


def test_folds_do_not_depend_on_the_spelling_of_a_folder(tmp_path: Path) -> None:
    found = []
    for folder in ('Real World', 'RealWorld'):
        make_domains(tmp_path / folder, OfficeHome, 2, {'Real World': folder})
        dataset = OfficeHome(
            str(tmp_path / folder), 'test', train_domains='RealWorld', test_domains='Real World', num_folds=2
        )
        found.append([Path(file).parts[-2:] for file in images_of(dataset)])
    assert found[0] == found[1]


@pytest.mark.parametrize('images_below', ['', 'kfold'])
def test_the_official_lists_of_pacs(tmp_path: Path, images_below: str) -> None:
    make_domains(tmp_path / images_below, PACS, PER_CLASS)
    make_lists(tmp_path, PER_CLASS)
    cfg = dict(folds='official', train_domains=('photo', 'cartoon', 'art_painting'), test_domains=('sketch', 'cartoon'))
    parts = {split: set(images_of(PACS(str(tmp_path), split, **cfg))) for split in PACS.SPLITS}
    sizes = {
        (split, domain): sum(f'/{domain}/' in file for file in parts[split])
        for split in parts
        for domain in PACS.DOMAINS
    }
    # Of 3 images in each of 7 classes, the last is on the crossval list.
    assert {key: size for key, size in sizes.items() if size} == {
        ('train', 'art_painting'): 14,
        ('train', 'photo'): 14,
        ('train', 'cartoon'): 14,
        ('val', 'art_painting'): 7,
        ('val', 'photo'): 7,
        ('test', 'sketch'): 21,
        ('test', 'cartoon'): 7,
    }
    assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == 7 * PER_CLASS * len(PACS.DOMAINS)


def test_the_official_lists_with_some_classes(pacs_root: Path) -> None:
    dataset = PACS(str(pacs_root), folds='official', classes=['house', 'dog'])
    assert {dataset.get_data_info(index)['gt_label'] for index in range(len(dataset))} == {0, 1}


def test_a_label_against_the_folder_is_reported_and_the_folder_decides(broken_root: Path, logged: list[str]) -> None:
    file = broken_root / 'photo_train_kfold.txt'
    file.write_text(file.read_text().replace('photo/house/pic_000.jpg 6', 'photo/house/pic_000.jpg 7'))
    dataset = PACS(str(broken_root), folds='official', train_domains='photo', test_domains='sketch')
    labels = {info['img_path']: info['gt_label'] for info in map(dataset.get_data_info, range(len(dataset)))}
    assert labels[str(broken_root / 'photo/house/pic_000.jpg')] == PACS.METAINFO['classes'].index('house')
    assert any("'photo/house/pic_000.jpg' the label 7, person" in line for line in logged)


def test_a_domain_that_is_not_as_large_as_published_is_reported(pacs_root: Path, logged: list[str]) -> None:
    PACS(str(pacs_root), train_domains='photo', test_domains='sketch')
    assert any('photo holds 21 images, where 1,670 were published' in line for line in logged)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(split='val'), r"split='val' exists with folds='official' alone, but folds='stratified'"),
        (dict(split='trian'), r"split='trian' is not known: choose one of 'train', 'val', 'test'"),
        (dict(folds='random'), r"folds='random' is not known: choose one of 'stratified', 'official'"),
        (dict(folds='official', fold=2), r'fold=2 with folds=.official.*set fold=0'),
        (dict(fold=5, num_folds=5), r'fold=5 does not exist: with num_folds=5 the folds are 0 to 4'),
        (dict(num_folds=1), r'num_folds=1 must be at least 2'),
        (dict(num_folds=4), r'dog holds 3 images, too few for num_folds=4'),
        (
            dict(train_domains=('photo', 'clipart')),
            r"train_domains names 'clipart'; the domains are 'art_painting', 'car",
        ),
        (dict(test_domains='Photo'), r"test_domains names 'Photo'"),
        (dict(test_domains=('photo', 'photo')), r'test_domains=.* names a domain twice'),
        (dict(train_domains=()), r"split='train' has no domain"),
        (dict(folds='official', split='val'), r"split='val' has no domain"),
        (dict(classes=['cat']), r'metainfo.classes of PACS names cat; the classes are dog, elephant, .*person'),
        (dict(classes=['dog', 'dog']), r'must name one class or more, each once'),
        (dict(classes=[]), r'must name one class or more, each once'),
        (dict(data_root='s3://bucket/pacs'), r"data_root='s3://bucket/pacs' is an address"),
    ],
)
def test_options_that_cannot_be(pacs_root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DATASETS.build({'type': 'olor_mm.PACS', 'data_root': str(pacs_root), 'num_folds': 3, **options})


def test_office_home_has_no_official_lists(home_root: Path) -> None:
    with pytest.raises(ValueError, match=r"folds='official' is not known: choose one of 'stratified'"):
        OfficeHome(str(home_root), folds='official')


def remove(*parts: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def empty_class(root: Path) -> None:
    for file in (root / 'photo/dog').glob('*.jpg'):
        file.unlink()


def surplus_class(root: Path) -> None:
    (root / 'photo/cat').mkdir()


def renamed_domains(root: Path) -> None:
    for domain in PACS.DOMAINS:
        (root / domain).rename(root / f'{domain}_images')


def without_class_folders(root: Path) -> None:
    shutil.rmtree(root / 'photo')
    (root / 'photo').mkdir()
    (root / 'photo/1.jpg').write_bytes(jpeg())


@pytest.mark.parametrize(
    ('damage', 'kind', 'message'),
    [
        (
            remove(),
            FileNotFoundError,
            r'(?s)data folder .*pacs does not exist.*expected layout.*art_painting.*--data-root',
        ),
        (
            remove('photo'),
            FileNotFoundError,
            r"the domain 'photo' is missing: looked for photo in .*holds art_painting, car",
        ),
        (
            remove('photo', 'dog'),
            DatasetLayoutError,
            r'(?s)photo are not the 7 classes.*missing: dog\nnot a class: none',
        ),
        (empty_class, DatasetLayoutError, r'class folder .*photo/dog holds no image'),
        (surplus_class, DatasetLayoutError, r'(?s)missing: none\nnot a class: cat'),
        (
            renamed_domains,
            DatasetLayoutError,
            r'(?s)holds none of art_painting.*found in it: art_painting_images.*expected',
        ),
        (without_class_folders, DatasetLayoutError, r'missing: dog, elephant, giraffe, guitar, horse, house, person'),
    ],
)
def test_folders_that_are_not_right(broken_root: Path, damage: Any, kind: type[Exception], message: str) -> None:
    damage(broken_root)
    with pytest.raises(kind, match=message):
        PACS(str(broken_root), num_folds=3)


def edit(old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        file = root / 'photo_train_kfold.txt'
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return damage


FIRST = 'photo/dog/pic_000.jpg 1'


@pytest.mark.parametrize(
    ('damage', 'kind', 'message'),
    [
        (
            remove('photo_train_kfold.txt'),
            FileNotFoundError,
            r"(?s)needs the list photo_train_kfold.txt.*folds='stratified'",
        ),
        (
            remove('photo/dog/pic_000.jpg'),
            FileNotFoundError,
            r'images that .*photo_train_kfold.txt lists.*photo/dog/pic_000',
        ),
        (edit(FIRST, 'photo/dog/pic_000.jpg 0'), DatasetLayoutError, r'line 1: label 0 is out of range: .* 1 to 7'),
        (edit(FIRST, 'photo/dog/pic_000.jpg 8'), DatasetLayoutError, r'line 1: label 8 is out of range'),
        (
            edit(FIRST, 'photo/cat/pic_000.jpg 1'),
            DatasetLayoutError,
            r"'photo/cat/pic_000.jpg' is not 'photo/<class>/<im",
        ),
        (
            edit(FIRST, 'sketch/dog/pic_000.jpg 1'),
            DatasetLayoutError,
            r"'sketch/dog/pic_000.jpg' is not 'photo/<class>",
        ),
        (
            edit(FIRST, 'photo/dog/pic_001.jpg 1'),
            DatasetLayoutError,
            r'line 2: the image .* is listed already in line 1',
        ),
    ],
)
def test_lists_that_are_not_right(broken_root: Path, damage: Any, kind: type[Exception], message: str) -> None:
    damage(broken_root)
    with pytest.raises(kind, match=message):
        PACS(str(broken_root), folds='official', train_domains='photo', test_domains='sketch')


class TestRealPACS:
    """All 9,991 images."""

    def test_published_counts(self, shared_data: Path, logged: list[str]) -> None:
        for domain, count in PACS.COUNTS.items():
            dataset = PACS(str(shared_data / 'pacs'), 'test', train_domains=(), test_domains=domain)
            assert len(dataset) == count == len(list((shared_data / 'pacs' / domain).glob('*/*.jpg')))
        assert not logged

    @pytest.mark.parametrize('held_out', PACS.DOMAINS)
    def test_leave_one_domain_out(self, shared_data: Path, held_out: str) -> None:
        others = tuple(domain for domain in PACS.DOMAINS if domain != held_out)
        train, test = (
            PACS(str(shared_data / 'pacs'), split, train_domains=others, test_domains=held_out)
            for split in ('train', 'test')
        )
        assert len(test) == PACS.COUNTS[held_out]
        assert len(train) == sum(PACS.COUNTS[domain] for domain in others)
        assert {train.get_data_info(index)['domain'] for index in range(len(train))} == set(others)

    def test_folds(self, shared_data: Path) -> None:
        parts = [PACS(str(shared_data / 'pacs'), 'test', fold=fold) for fold in range(5)]
        assert sum(map(len, parts)) == sum(PACS.COUNTS.values())
        strata = [Counter(Path(file).parts[-3:-1] for file in images_of(part)) for part in parts]
        for stratum in strata[0]:
            sizes = [counts[stratum] for counts in strata]
            assert max(sizes) - min(sizes) <= 1


def test_a_set_of_ones_own(tmp_path: Path) -> None:
    """The example of docs/datasets.md, as it stands there."""
    text = (Path(__file__).parents[2] / 'docs' / 'datasets.md').read_text(encoding='utf-8')
    example = next(block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if 'class Weather' in block)
    names: dict[str, Any] = {'__name__': 'example'}
    exec(example, names)
    weather = names['Weather']
    make_domains(tmp_path, weather, 2, {'fog': 'Fog'})
    dataset = DATASETS.build(
        dict(type='olor_mm.Weather', data_root=str(tmp_path), train_domains='fog', test_domains='clear')
    )
    assert len(dataset) == 2 * weather.NUM_CLASSES
    assert dataset.get_data_info(0)['domain'] == 'fog'
