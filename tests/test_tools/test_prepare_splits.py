"""The split files of tools/prepare_data.py: what the data set classes compute, written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from olor_mm.datasets import PACS, OfficeHome
from olor_mm.tooling.prepare import splits
from tests.test_tools._prepare_sets import MAKERS, Prepare, digests


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    return Prepare(monkeypatch, capsys)


def listed(file: Path, root: Path) -> list[tuple[str, int]]:
    """Images and labels of a split file, as mmpretrain's own data sets read such a list."""
    rows = [line.rsplit(' ', 1) for line in file.read_text().splitlines()]
    return sorted((str(root / path), int(label)) for path, label in rows)


@pytest.mark.parametrize(('name', 'kind'), [('pacs', PACS), ('office_home', OfficeHome)])
def test_they_are_what_the_data_set_class_computes(
    prepared: Prepare, tmp_path: Path, name: str, kind: Callable
) -> None:
    num_folds, seed = 3, 7
    spec = MAKERS[name](tmp_path / 'data')
    root = tmp_path / 'data'
    if name == 'office_home':
        (root / 'Real World').rename(root / 'Real_World')
    found = prepared('--root', root, '--quick', '--num-folds', num_folds, '--seed', seed, spec=spec)
    assert found.code == 0
    files = sorted((root / 'splits').iterdir())
    assert len(files) == 2 * num_folds
    for fold in range(num_folds):
        for split in ('train', 'test'):
            file = root / 'splits' / f'stratified_{num_folds}folds_seed{seed}_fold{fold}_{split}.txt'
            assert file.name in found.out
            dataset = kind(str(root), split, num_folds=num_folds, fold=fold, seed=seed)
            infos = [dataset.get_data_info(index) for index in range(len(dataset))]
            assert listed(file, root) == sorted((info['img_path'], info['gt_label']) for info in infos)


def test_real_pacs(shared_data: Path, prepared: Prepare, tmp_path: Path) -> None:
    root = shared_data / 'pacs'
    assert prepared('pacs', '--root', root, '--quick', '--out', tmp_path).code == 0
    tests = []
    for fold in range(5):
        name = f'stratified_5folds_seed0_fold{fold}'
        train, test = (listed(tmp_path / 'splits' / f'{name}_{split}.txt', root) for split in ('train', 'test'))
        assert len(train) + len(test) == len({*train, *test}) == 9991
        tests += test
    assert len(tests) == len(set(tests)) == 9991
    first = PACS(str(root), 'test')
    assert listed(tmp_path / 'splits' / 'stratified_5folds_seed0_fold0_test.txt', root) == sorted(
        (info['img_path'], info['gt_label']) for info in (first.get_data_info(index) for index in range(len(first)))
    )


@pytest.mark.parametrize('damage', ['cut', 'edited', 'empty'])
def test_a_file_with_another_content_is_refused(prepared: Prepare, tmp_path: Path, damage: str) -> None:
    spec = MAKERS['pacs'](tmp_path)
    assert prepared('--root', tmp_path, '--quick', spec=spec).code == 0
    before = digests(tmp_path)
    file = tmp_path / 'splits' / 'stratified_5folds_seed0_fold3_test.txt'
    text = file.read_text()
    file.write_text({'cut': text[:-9], 'edited': text.replace('dog', 'cat'), 'empty': ''}[damage])
    (tmp_path / 'splits' / 'stratified_5folds_seed0_fold0_test.txt').unlink()
    broken = digests(tmp_path)
    found = prepared('--root', tmp_path, '--quick', spec=spec)
    assert found.code == 2
    assert file.name in found.err
    assert '--force' in found.err
    assert digests(tmp_path) == broken
    elsewhere = prepared('--root', tmp_path, '--quick', '--out', tmp_path / 'out', spec=spec)
    assert elsewhere.code == 0
    assert {f'out/{name}' for name in before if name.startswith('splits/')} <= digests(tmp_path).keys()
    forced = prepared('--root', tmp_path, '--quick', '--force', spec=spec)
    assert forced.code == 0
    assert f'split files written to {tmp_path / "splits"}: 2' in forced.out
    assert {name: digest for name, digest in digests(tmp_path).items() if not name.startswith('out/')} == before


def test_what_a_killed_run_left_is_taken_over(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['pacs'](tmp_path)
    (tmp_path / 'splits').mkdir()
    (tmp_path / 'splits' / '.stratified_5folds_seed0_fold0_test.txt.part').write_text('half')
    assert prepared('--root', tmp_path, '--quick', spec=spec).code == 0
    assert not list((tmp_path / 'splits').glob('.*'))


@pytest.mark.parametrize('stop', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_stopped_while_writing(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    spec = MAKERS['pacs'](tmp_path)
    real, calls = os.fsync, []

    def third_fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise stop
        real(descriptor)

    monkeypatch.setattr(splits.os, 'fsync', third_fails)
    found = prepared('--root', tmp_path, '--quick', spec=spec)
    assert found.code == (130 if stop is KeyboardInterrupt else 2)
    assert ('interrupted' if stop is KeyboardInterrupt else 'No space left') in found.err
    # Two are there, whole, and nothing of the third.
    assert len(list((tmp_path / 'splits').iterdir())) == 2
    again = prepared('--root', tmp_path, '--quick', spec=spec)
    assert again.code == 0
    assert 'right already: 2' in again.out


def test_a_folder_that_cannot_be_made(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['pacs'](tmp_path)
    (tmp_path / 'splits').touch()
    found = prepared('--root', tmp_path, '--quick', spec=spec)
    assert found.code == 2
    assert str(tmp_path / 'splits') in found.err
    assert '--out DIR' in found.err


def test_no_lists_of_a_set_with_problems(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['pacs'](tmp_path)
    (tmp_path / 'photo' / 'house' / 'pic_000.jpg').unlink()
    assert prepared('--root', tmp_path, '--quick', spec=spec).code == 1
    assert not (tmp_path / 'splits').exists()
    # As a subset it is fine, but not for as many folds as there were images.
    few = prepared('--root', tmp_path, '--quick', '--subset', '--num-folds', '6', spec=spec)
    assert few.code == 1
    assert '5 images of class 5 of photo cannot be shared out to 6 folds' in few.out
    assert prepared('--root', tmp_path, '--quick', '--subset', spec=spec).code == 0
    assert len(list((tmp_path / 'splits').iterdir())) == 10


def test_a_name_that_is_not_utf8(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['pacs'](tmp_path)
    os.rename(tmp_path / 'photo/dog/pic_000.jpg', os.fsencode(tmp_path / 'photo/dog/') + b'/pic_\xff.jpg')
    found = prepared('--root', tmp_path, spec=spec)
    assert found.code == 2
    assert 'not UTF-8' in found.err


def test_folders_that_are_no_classes(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['pacs'](tmp_path)
    (tmp_path / 'photo' / 'dog').rename(tmp_path / 'photo' / 'wolf')
    found = prepared('--root', tmp_path, '--quick', spec=spec)
    assert found.code == 1
    assert 'photo/wolf/ is none of the 7 classes' in found.out
    assert '  photo/dog/' in found.out
    with pytest.raises(ValueError, match='wolf'):
        PACS(str(tmp_path), 'train')


def _official_lists(root: Path, folder: Path) -> None:
    classes = PACS.METAINFO['classes']
    for domain in PACS.DOMAINS:
        images = sorted(path.relative_to(root).as_posix() for path in (root / domain).glob('*/*.jpg'))
        lines = [f'{path} {classes.index(path.split("/")[1]) + 1}\n' for path in images]
        for part, chosen in (('train', lines[::2]), ('crossval', lines[1::2]), ('test', lines)):
            (folder / f'{domain}_{part}_kfold.txt').write_text(''.join(chosen))


@pytest.mark.parametrize('above', [False, True])
def test_the_published_lists_of_pacs(prepared: Prepare, tmp_path: Path, above: bool) -> None:
    root = tmp_path / 'kfold'
    spec = MAKERS['pacs'](root)
    assert "folds='official' needs them" in prepared('--root', root, '--quick', spec=spec).out
    folder = tmp_path if above else root
    _official_lists(root, folder)
    whole = prepared('--root', tmp_path, '--quick', spec=spec)
    assert whole.code == 0
    assert 'official' not in whole.out
    file = folder / 'photo_test_kfold.txt'
    text = file.read_text()
    file.write_text(text.replace('photo/dog/pic_000.jpg 1', 'photo/dog/pic_000.jpg 2'))
    other = prepared('--root', tmp_path, '--quick', spec=spec)
    assert other.code == 0
    assert 'photo_test_kfold.txt, line 1: label 2 for photo/dog/pic_000.jpg' in other.out
    file.write_text(text.replace('pic_000', 'pic_999'))
    assert (
        'photo/dog/pic_999.jpg, which photo_test_kfold.txt, line 1 names'
        in prepared('--root', tmp_path, '--quick', spec=spec).out
    )
    file.unlink()
    assert prepared('--root', tmp_path, '--quick', spec=spec).code == 1
