"""tools/prepare_data.py: whole sets pass, each kind of defect is named, and what it says can be acted on."""

import importlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from mmengine.config import Config
from PIL import Image

import olor_mm.datasets
from olor_mm.tooling.prepare import images
from olor_mm.tooling.prepare.arrays import broken_mat
from olor_mm.tooling.prepare.output import Progress, say
from olor_mm.tooling.prepare.specs import SPECS, Spec
from tests.test_tools._prepare_sets import MAKERS, Prepare, digests
from tests.test_tools._small import REPO, TOOLS, environment, tool

# One image of each set, relative to its root.
AN_IMAGE = {
    'cub200': 'images/001.Some_Bird/Some_Bird_0000_1.jpg',
    'stanford_cars': 'cars_test/00002.jpg',
    'stanford_cars_in_one': 'car_ims/000002.jpg',
    'places_lt': 'data_256/a/apartment_building/outdoor/00000002.jpg',
    'ip102': 'images/00007.jpg',
    'office_home': 'Real World/Alarm_Clock/pic_001.jpg',
    'pacs': 'sketch/dog/pic_003.jpg',
    'coco': 'val2017/000000000002.jpg',
    'ade20k': 'images/training/ADE_00000001.jpg',
}


@pytest.fixture(scope='module')
def copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Spec, Path]]:
    """A small copy of a set, made once; nothing may change it."""
    made: dict[str, tuple[Spec, Path]] = {}

    def get(name: str) -> tuple[Spec, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp('sets') / name
            made[name] = MAKERS[name](root), root
        return made[name]

    return get


@pytest.fixture
def copy(copies: Callable[[str], tuple[Spec, Path]], tmp_path: Path) -> Callable[[str], tuple[Spec, Path]]:
    """A small copy of a set that a test may break; its path has spaces and letters of other languages."""

    def get(name: str) -> tuple[Spec, Path]:
        spec, root = copies(name)
        return spec, shutil.copytree(root, tmp_path / 'meine Bücher 数据' / name)

    return get


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    return Prepare(monkeypatch, capsys)


@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('workers', [0, 2])
def test_a_whole_set(copy: Callable, prepared: Prepare, name: str, workers: int) -> None:
    spec, root = copy(name)
    before = digests(root)
    first = prepared('--root', root, '--workers', workers, spec=spec)
    assert first.code == 0, first
    assert f'OK: {spec.title} is complete' in first.out
    assert f"--data-root '{root}'" in first.out
    for part, number in spec.parts.items():
        assert f'{part} ' in first.out
        assert f' {number} images' in first.out
    after = digests(root)
    assert {file: after[file] for file in before} == before
    assert {file.partition('/')[0] for file in after.keys() - before.keys()} == ({'splits'} if spec.folds else set())
    assert prepared('--root', root, spec=spec).code == 0
    assert digests(root) == after


# How each split or domain is read in a config.
READ = {
    'svhn': lambda part: dict(split=part),
    'cub200': lambda part: dict(split=part),
    'stanford_cars': lambda part: dict(split=part),
    'stanford_cars_in_one': lambda part: dict(split=part),
    'places_lt': lambda part: dict(split=part),
    'ip102': lambda part: dict(split=part),
    'office_home': lambda part: dict(split='test', train_domains=(), test_domains=part),
    'pacs': lambda part: dict(split='test', train_domains=(), test_domains=part),
    'coco': lambda part: dict(ann_file=f'annotations/instances_{part}.json', data_prefix=dict(img=part)),
    'ade20k': lambda part: dict(data_prefix=dict(img_path=f'images/{part}', seg_map_path=f'annotations/{part}')),
}


@pytest.mark.parametrize('name', READ)
def test_what_is_whole_is_what_the_data_set_class_reads(copies: Callable, name: str) -> None:
    """It also shows that the small copies are in the true formats."""
    spec, root = copies(name)
    package, kind = spec.dataset.split('.')
    for part, number in spec.parts.items():
        options = dict(test_mode=True) if package == 'mmdet' else {}
        dataset = getattr(importlib.import_module(f'{package}.datasets'), kind)(
            data_root=str(root), **READ[name](part), **options
        )
        assert len(dataset) == number
        path = dataset.get_data_info(number - 1).get('img_path')
        assert path is None or Path(path).is_file()


@pytest.mark.parametrize('name', AN_IMAGE)
@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        ('cut', 'cannot be decoded: '),
        ('empty', 'empty, 0 bytes'),
        ('text', 'not an image'),
        ('float', 'wrong mode: F'),
        ('bits', 'cannot be decoded'),
    ],
)
def test_corrupt_images(copy: Callable, prepared: Prepare, name: str, damage: str, reason: str) -> None:
    spec, root = copy(name)
    file = root / AN_IMAGE[name]
    whole = file.read_bytes()
    if damage == 'float':
        Image.new('F', (12, 10)).save(file, format='TIFF')
    elif damage == 'bits':
        Image.open(io.BytesIO(whole)).save(file, format='PNG')
        png = bytearray(file.read_bytes())
        png[len(png) // 2] ^= 0xFF
        file.write_bytes(bytes(png))
    else:
        file.write_bytes({'cut': whole[: len(whole) * 3 // 4], 'empty': b'', 'text': b'<html>404</html>'}[damage])
    found = prepared('--root', root, '--workers', '0', spec=spec)
    assert found.code == 1
    assert f'{AN_IMAGE[name]}: ' in found.out
    assert reason in found.out
    report = root / f'prepare_{spec.name}.txt'
    assert f'the full list: {report}' in found.out
    assert AN_IMAGE[name] in report.read_text()
    assert not (root / 'splits').exists()
    # Only --quick passes over it, and says so; an empty file it sees as well.
    quick = prepared('--root', root, '--quick', spec=spec)
    assert quick.code == int(damage == 'empty')
    assert 'not decoded' in quick.out
    file.write_bytes(whole)
    mended = prepared('--root', root, '--workers', '0', spec=spec)
    assert mended.code == 0
    assert not report.exists()
    assert 'removed' in mended.out or damage != 'empty'


@pytest.mark.parametrize('name', AN_IMAGE)
def test_missing_images(copy: Callable, prepared: Prepare, name: str) -> None:
    spec, root = copy(name)
    (root / AN_IMAGE[name]).unlink()
    found = prepared('--root', root, '--quick', spec=spec)
    assert found.code == 1
    if name in ('office_home', 'pacs'):
        domain = AN_IMAGE[name].split('/')[0]
        assert f'images of {domain}: {spec.parts[domain] - 1}, published are {spec.parts[domain]}' in found.out
    else:
        assert AN_IMAGE[name] in found.out
        assert 'missing files: 1' in found.out
        assert spec.home in found.out
    # A link to an image is an image, one to nothing is none.
    (root / AN_IMAGE[name]).symlink_to(root / 'gone.jpg')
    assert 'missing files: 1' in prepared('--root', root, '--quick', spec=spec).out
    other = root / 'elsewhere.jpg'
    Image.new('RGB', (16, 12)).save(other)
    (root / AN_IMAGE[name]).unlink()
    (root / AN_IMAGE[name]).symlink_to(other)
    assert prepared('--root', root, spec=spec).code == 0


@pytest.mark.parametrize('name', SPECS)
def test_other_counts_are_accepted_as_a_subset(copy: Callable, prepared: Prepare, name: str) -> None:
    spec, root = copy(name)
    published = replace(SPECS[name], digests=spec.digests, classes=spec.classes, class_minimum=spec.class_minimum)
    found = prepared('--root', root, '--quick', '--num-folds', '2', spec=published)
    assert found.code == 1
    for part, number in published.parts.items():
        assert f'images of {part}: {spec.parts[part]:,}, published are {number:,}' in found.out
    accepted = prepared('--root', root, '--quick', '--num-folds', '2', '--subset', spec=published)
    assert accepted.code == 0
    assert 'OK' in accepted.out
    assert 'a sound subset' in accepted.out


@pytest.mark.parametrize('name', SPECS)
def test_missing_needs_and_nothing_at_all(copy: Callable, prepared: Prepare, tmp_path: Path, name: str) -> None:
    spec, root = copy(name)
    gone = root / spec.needs[0][0]
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    for arguments in ((), ('--subset',)):
        found = prepared('--root', root, '--quick', *arguments, spec=spec)
        assert found.code == 1
        assert f'  {spec.needs[0][0]}' in found.out
        assert spec.home in found.out
        assert spec.layout.splitlines()[-1] in found.out
    empty = tmp_path / 'empty'
    empty.mkdir()
    found = prepared('--root', empty, spec=spec)
    assert found.code == 2
    assert f'nothing of {spec.title} was found' in found.err
    assert spec.home in found.err
    assert not list(empty.iterdir())


def test_the_folder_that_an_archive_made_is_found(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('pacs')
    (root.parent / 'a' / 'PACS').mkdir(parents=True)
    root.rename(root.parent / 'a' / 'PACS' / 'kfold')
    found = prepared('--root', root.parent / 'a', '--quick', spec=spec)
    assert found.code == 0
    assert f"--data-root '{root.parent / 'a' / 'PACS' / 'kfold'}'" in found.out


# (list, line that replaces the first one, what is said)
BAD_LINES = [
    ('places_lt', 'Places_LT_val.txt', 'airfield.jpg', 'one column'),
    ('places_lt', 'Places_LT_val.txt', '/etc/a.jpg 0', 'leads out'),
    ('places_lt', 'Places_LT_val.txt', '../a.jpg 0', 'leads out'),
    ('ip102', 'test.txt', '00013.jpg x', "the label is 'x'"),
    ('ip102', 'test.txt', '00013.jpg 3', 'class 3 does not exist'),
    ('ip102', 'test.txt', '00014.jpg 0', 'listed twice'),
    ('ip102', 'classes.txt', 'no number', 'is not the number 1'),
    ('cub200', 'train_test_split.txt', '1 2', "split '2'"),
    ('cub200', 'image_class_labels.txt', '77 1', "class ''"),
]


@pytest.mark.parametrize(('name', 'file', 'line', 'message'), BAD_LINES)
def test_bad_lines(copy: Callable, prepared: Prepare, name: str, file: str, line: str, message: str) -> None:
    spec, root = copy(name)
    _, *rest = (root / file).read_text().splitlines()
    (root / file).write_text('\n'.join([line, *rest]))
    found = prepared('--root', root, '--quick', spec=spec)
    assert found.code == 1
    assert message in found.out


def test_lists_edited_on_windows(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('ip102')
    text = (root / 'train.txt').read_text().replace('\n', '\r\n')
    (root / 'train.txt').write_bytes(b'\xef\xbb\xbf' + text.encode())
    assert prepared('--root', root, spec=spec).code == 0


def test_an_image_in_two_splits_is_said(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('ip102')
    lines = (root / 'test.txt').read_text().splitlines()
    (root / 'test.txt').write_text('\n'.join(['00001.jpg 0', *lines[1:]]))
    found = prepared('--root', root, spec=spec)
    assert found.code == 0
    assert '00001.jpg in train and test' in found.out


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda mask: Image.new('RGB', (16, 12)), 'wrong mode: RGB'),
        (lambda mask: mask.resize((8, 6)), '8x6 pixels, but its image has 16x12'),
        (lambda mask: Image.new('L', (16, 12), 151), 'value 151, but the largest class is 150'),
        (None, 'missing files: 1'),
    ],
)
def test_masks(copy: Callable, prepared: Prepare, make: Callable | None, message: str) -> None:
    spec, root = copy('ade20k')
    file = root / 'annotations/validation/ADE_00000001.png'
    if make is None:
        file.unlink()
    else:
        with Image.open(file) as mask:
            changed = make(mask)
        changed.save(file)
    found = prepared('--root', root, '--workers', '0', spec=spec)
    assert found.code == 1
    assert message in found.out


def test_masks_lack_a_class_or_an_image(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('ade20k')
    for mask in root.rglob('*.png'):
        values = np.asarray(Image.open(mask))
        Image.fromarray(np.where(values == 17, 0, values).astype(np.uint8)).save(mask)
    assert 'classes in the masks: 149, published are 150' in prepared('--root', root, '--workers', '0', spec=spec).out
    shutil.copy(mask, mask.with_name('ADE_99999999.png'))
    assert 'ADE_99999999.jpg, of which there is a mask' in prepared('--root', root, '--quick', spec=spec).out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content['annotations'][0].update(image_id=77), '1 annotations are of images or categories'),
        (lambda content: content['categories'].pop(), 'categories of val2017: 79, published are 80'),
        (lambda content: content.pop('images'), "is no COCO json: KeyError: 'images'"),
        (lambda content: content['annotations'].pop(), 'categories of val2017 with instances: 79'),
    ],
)
def test_coco_annotations(copy: Callable, prepared: Prepare, change: Callable, message: str) -> None:
    spec, root = copy('coco')
    file = root / 'annotations' / 'instances_val2017.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    found = prepared('--root', root, '--quick', spec=spec)
    assert found.code == 1
    assert message in found.out
    file.write_text(json.dumps(content)[:-9])
    assert 'is no COCO json' in prepared('--root', root, '--quick', spec=spec).out


@pytest.mark.parametrize('damage', ['cut', 'bit', 'cut to the header', 'other'])
def test_damaged_svhn(copy: Callable, prepared: Prepare, damage: str) -> None:
    spec, root = copy('svhn')
    file = root / 'train_32x32.mat'
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    whole = file.read_bytes()
    file.write_bytes(
        {'cut': whole[:-9], 'bit': bytes(content), 'cut to the header': whole[:130], 'other': b'x' * 999}[damage]
    )
    assert broken_mat(file)
    found = prepared('--root', root, spec=spec)
    assert found.code == 1
    assert 'train_32x32.mat: ' in found.out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(y=np.ones((3, 1), np.uint8)), 'for 3 labels'),
        (dict(X=np.zeros((32, 32, 3, 20), np.float32)), 'X is single (32, 32, 3, 20)'),
        (dict(y=np.zeros((20, 1), np.uint8)), 'class -1 does not exist'),
        (dict(y=np.full((20, 1), 11, np.uint8)), 'class 11 does not exist'),
    ],
)
def test_svhn_of_another_shape(copy: Callable, prepared: Prepare, change: dict[str, np.ndarray], message: str) -> None:
    spec, root = copy('svhn')
    content = {name: array for name, array in scipy.io.loadmat(root / 'train_32x32.mat').items() if name in 'Xy'}
    scipy.io.savemat(root / 'train_32x32.mat', {**content, **change})
    # Uncompressed, it is whole as well.
    assert broken_mat(root / 'train_32x32.mat') is None
    found = prepared('--root', root, spec=spec)
    assert found.code == 1
    assert message in found.out


@pytest.mark.parametrize('name', ['stanford_cars', 'stanford_cars_in_one'])
def test_damaged_tables_of_cars(copy: Callable, prepared: Prepare, name: str) -> None:
    spec, root = copy(name)
    (file,) = root.rglob('cars_annos.mat' if name.endswith('one') else 'cars_test_annos_withlabels.mat')
    file.write_bytes(file.read_bytes()[:200])
    found = prepared('--root', root, '--quick', spec=spec)
    assert found.code == 1
    assert f'unreadable files: 1\n  {file.name}: ' in found.out


def test_svhn_without_the_optional_file(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('svhn')
    (root / 'extra_32x32.mat').unlink()
    found = prepared('--root', root, spec=spec)
    assert found.code == 0
    assert 'extra: not there; it is optional' in found.out


def test_cifar100_that_mmpretrain_would_refuse(copy: Callable, prepared: Prepare, tmp_path: Path) -> None:
    spec, root = copy('cifar100')
    published = prepared('--root', root, '--subset', spec=replace(spec, digests=SPECS['cifar100'].digests))
    assert published.code == 1
    assert 'mmpretrain refuses it' in published.out
    file = root / 'cifar-100-python' / 'train'
    content = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(dict(content, data=content['data'][:, 1:]), protocol=2))
    assert 'expected uint8, (labels, 3072)' in prepared('--root', root, spec=spec).out
    # A pickle that runs a command is not run.
    file.write_bytes(b"cposix\nsystem\n(S'touch %s'\ntR." % str(tmp_path / 'run').encode())
    found = prepared('--root', root, spec=spec)
    assert found.code == 1
    assert 'posix.system' in found.out
    assert not (tmp_path / 'run').exists()


def test_only_what_opencv_reads_is_an_image(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('ip102')
    for ending in ('bmp', 'png', 'webp', 'tiff', 'ppm'):
        Image.new('RGB', (4, 4)).save(root / AN_IMAGE['ip102'], format=ending)
        assert prepared('--root', root, '--workers', '0', spec=spec).code == 0
    for mode in ('1', 'L', 'LA', 'P', 'RGBA', 'I;16'):
        Image.new(mode, (4, 4)).save(root / AN_IMAGE['ip102'], format='png')
        assert prepared('--root', root, '--workers', '0', spec=spec).code == 0
    Image.new('CMYK', (4, 4)).save(root / AN_IMAGE['ip102'])
    assert prepared('--root', root, '--workers', '0', spec=spec).code == 0
    Image.new('RGB', (4, 4)).save(root / AN_IMAGE['ip102'], format='pcx')
    found = prepared('--root', root, '--workers', '0', spec=spec)
    assert found.code == 1
    assert 'format PCX, which OpenCV does not read' in found.out


def test_the_first_problems_are_shown_and_all_are_written(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('cub200')
    gone = sorted((root / 'images').rglob('*.jpg'))
    for file in gone:
        file.unlink()
    found = prepared('--root', root, spec=spec)
    assert found.code == 1
    assert f'missing files: {len(gone)}' in found.out
    assert found.out.count('Some_Bird_') < len(gone)
    assert '... and 1 more' in found.out
    lines = (root / 'prepare_cub200.txt').read_text().splitlines()
    assert [f'missing files: {file.relative_to(root)}' for file in gone] == sorted(lines[1:])


@pytest.mark.parametrize('name', ['cub200', 'places_lt', 'cifar100', 'office_home'])
def test_classes_are_counted(copy: Callable, prepared: Prepare, name: str) -> None:
    spec, root = copy(name)
    part = next(iter(spec.parts))
    more = prepared('--root', root, '--quick', spec=replace(spec, classes=spec.classes + 1))
    assert more.code == 1
    assert f'classes of {part}: {spec.classes}, published are {spec.classes + 1}' in more.out
    each = spec.parts[part] // spec.classes
    strict = replace(spec, class_minimum={part: each + 1})
    few = prepared('--root', root, '--quick', spec=strict)
    assert few.code == 1
    assert f'images of class 0 of {part}: {each}, published are at least {each + 1}' in few.out
    assert prepared('--root', root, '--quick', '--num-folds', '2', '--subset', spec=strict).code == 0
    assert prepared('--root', root, '--quick', spec=replace(spec, class_minimum={part: each})).code == 0


@pytest.mark.skipif(sys.platform != 'linux', reason='the processes are forked on Linux alone')
def test_a_killed_process_is_explained(copy: Callable, prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, root = copy('office_home')
    monkeypatch.setattr(images, '_decode', lambda path: os.kill(os.getpid(), signal.SIGKILL))
    found = prepared('--root', root, '--workers', '2', spec=spec)
    assert found.code == 2
    assert '--workers 1' in found.err


@pytest.mark.parametrize(
    ('typed', 'known'), [('cifr100', 'cifar100'), ('offce_home', 'office_home'), ('cub', 'cub200')]
)
def test_misspelled_names(prepared: Prepare, tmp_path: Path, typed: str, known: str) -> None:
    found = prepared(typed, '--root', tmp_path)
    assert found.code == 2
    assert f'did you mean {known!r}?' in found.err


@pytest.mark.parametrize('typed', ['CIFAR-100', 'Office-Home', 'officehome', 'COCO', 'stanford cars'])
def test_names_in_other_spellings(prepared: Prepare, tmp_path: Path, typed: str) -> None:
    assert 'was found' in prepared(typed, '--root', tmp_path).err


def test_list(prepared: Prepare) -> None:
    found = prepared('--list')
    assert found.code == 0
    assert [line.split()[0] for line in found.out.splitlines()] == list(SPECS)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'which data set?'),
        (('pacs',), 'where is the data set?'),
        (('pacs', '--root', 'gone'), 'is missing'),
        (('pacs', '--root', 'file'), 'is a file'),
        (('pacs', '--root', 'link'), 'a link to nothing'),
        (('pacs', '--root', '.', '--workers', '-1'), 'at least 0'),
        (('pacs', '--root', '.', '--num-folds', '1'), 'at least 2'),
        (('pacs', '--root', '.', '--seed', 'x'), "but got 'x'"),
    ],
)
def test_mistakes(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    found = prepared(*arguments)
    assert found.code == 2
    assert message in found.err


def test_a_report_that_cannot_be_written(copy: Callable, prepared: Prepare, tmp_path: Path) -> None:
    spec, root = copy('ip102')
    (root / AN_IMAGE['ip102']).unlink()
    (tmp_path / 'file').touch()
    # Below a file nobody can make a folder, root neither.
    found = prepared('--root', root, '--quick', '--out', tmp_path / 'file' / 'out', spec=spec)
    assert found.code == 1
    assert AN_IMAGE['ip102'] in found.out
    assert '--out DIR' in found.out


def test_a_file_of_the_user_is_not_taken_for_a_report(copy: Callable, prepared: Prepare) -> None:
    spec, root = copy('ip102')
    (root / 'prepare_ip102.txt').write_text('my notes')
    assert prepared('--root', root, '--quick', spec=spec).code == 0
    assert (root / 'prepare_ip102.txt').read_text() == 'my notes'


def test_names_that_the_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii'))
    say('数/\udcff.jpg')
    assert raw.getvalue() == b'\\u6570/\\udcff.jpg\n'


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    with Progress('decoding images', 4) as progress:
        progress.advance(1)
        progress.advance(3)
    said = capsys.readouterr()
    assert 'decoding images: 100%' in said.err
    assert said.out == ''
    monkeypatch.setitem(sys.modules, 'tqdm', None)
    with Progress('decoding images', 4) as progress:
        progress.advance(4)
    assert capsys.readouterr().out == 'decoding images: 4 of 4\n'


def test_specs_agree_with_the_data_sets_and_configs() -> None:
    """One number is written down in several places: they have to be the same."""
    for spec in SPECS.values():
        package, name = spec.dataset.split('.')
        kind = getattr(importlib.import_module(f'{package}.datasets'), name)
        assert len(kind.METAINFO.get('classes') or range(spec.classes)) == spec.classes
        if package == 'olor_mm':
            assert spec.parts == kind.COUNTS
            assert spec.classes == kind.NUM_CLASSES
        files = (REPO / 'configs' / '_base_' / 'datasets').glob('*.py')
        configs = [Config.fromfile(file) for file in files if f"{name}'" in file.read_text()]
        assert {config.data_root.rstrip('/') for config in configs} == {spec.data_root}
    cifar100 = importlib.import_module('mmpretrain.datasets').CIFAR100
    published = {**dict(cifar100.train_list), **dict(cifar100.test_list), 'meta': cifar100.meta['md5']}
    assert SPECS['cifar100'].digests == {f'cifar-100-python/{file}': md5 for file, md5 in published.items()}


def test_real_pacs(shared_data: Path, prepared: Prepare, tmp_path: Path) -> None:
    before = sorted(path.name for path in (shared_data / 'pacs').iterdir())
    found = prepared('pacs', '--root', shared_data / 'pacs', '--out', tmp_path)
    assert found.code == 0
    assert 'decoding images: 9991 of 9991' in found.out
    assert sorted(path.name for path in (shared_data / 'pacs').iterdir()) == before
    assert SPECS['pacs'].parts == olor_mm.datasets.PACS.COUNTS


def test_real_coco_subset(shared_data: Path, prepared: Prepare, tmp_path: Path) -> None:
    root = shared_data / 'coco_mini'
    found = prepared('coco', '--root', root, '--subset', '--out', tmp_path)
    assert found.code == 0
    assert 'a sound subset' in found.out
    assert prepared('coco', '--root', root, '--quick', '--out', tmp_path).code == 1


def test_the_script() -> None:
    assert '--root DIR' in tool('prepare_data.py', '--help').stdout


def test_ctrl_c_leaves_nothing_behind(shared_data: Path, tmp_path: Path) -> None:
    arguments = ['pacs', '--root', shared_data / 'pacs', '--out', tmp_path / 'o']
    process = subprocess.Popen(
        [str(part) for part in (sys.executable, TOOLS / 'prepare_data.py', *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    for line in process.stdout or ():
        if line.startswith('decoding images'):
            break
    # As a terminal does: to the processes that decode as well.
    os.killpg(process.pid, signal.SIGINT)
    started = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert 'Traceback' not in said
    assert 'no file is half-written' in said
    assert not (tmp_path / 'o').exists()
