"""Readers: each knows one way to lay out a data set on a disk, and gives its images one by one.

A reader goes on after a mistake in a list, so that one run names them all; what it cannot read is a finding.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .findings import Findings

__all__ = [
    'Reader',
    'Record',
    'coco',
    'cub',
    'domain_folders',
    'image_lists',
    'is_below',
    'pairs',
    'scene_parsing',
    'stanford_cars',
]

NO_CLASS = -1


class Record(NamedTuple):
    """One image of a data set.

    Args:
        part: The split or domain that it belongs to.
        path: Relative to the data root; ``''`` for one that lies within an array.
        label: Its class from 0, or ``NO_CLASS``.
        mask: Its segmentation mask, relative to the data root. Defaults to ``''``: none.
    """

    part: str
    path: str
    label: int
    mask: str = ''


Reader = Callable[[Path, Findings], Iterator[Record]]


def image_lists(files: Mapping[str, str], images: str = '') -> Reader:
    """Lists with lines ``'<image> <label>'``, labels from 0.

    Args:
        files: The list of each split.
        images: Folder that the images are relative to. Defaults to ``''``: the data root.
    """

    def read(root: Path, findings: Findings) -> Iterator[Record]:
        for split, file in files.items():
            for where, path, label in pairs(root / file, findings):
                if not is_below(path):
                    findings.problem('bad lines', f'{where}: {path!r} leads out of the data set')
                elif not label.isdigit():
                    findings.problem('bad lines', f'{where}: the label is {label!r}, not a number')
                else:
                    yield Record(split, _join(images, path), int(label))

    return read


def cub(root: Path, findings: Findings) -> Iterator[Record]:
    """CUB-200-2011: three lists with one line for every image, joined by the image's number."""
    labels = _by_number(root / 'image_class_labels.txt', findings)
    training = _by_number(root / 'train_test_split.txt', findings)
    for number, path in _by_number(root / 'images.txt', findings).items():
        label, flag = labels.get(number, ''), training.get(number, '')
        if not label.isdigit() or flag not in ('0', '1') or not is_below(path):
            findings.problem('bad lines', f'images.txt: image {number} ({path}) has class {label!r}, split {flag!r}')
        else:
            yield Record('train' if flag == '1' else 'test', _join('images', path), int(label) - 1)


def stanford_cars(root: Path, findings: Findings) -> Iterator[Record]:
    """Stanford Cars in both of its layouts; where both are there, ``cars_annos.mat`` counts, as in mmpretrain."""
    if (root / 'cars_annos.mat').is_file():
        table = _annotations(root / 'cars_annos.mat', ('relative_im_path', 'class', 'test'), findings)
        for path, label, test in table:
            yield Record('test' if test else 'train', str(path), int(label) - 1)
        return
    for split, file in (('train', 'cars_train_annos.mat'), ('test', 'cars_test_annos_withlabels.mat')):
        for path, label in _annotations(root / 'devkit' / file, ('fname', 'class'), findings):
            yield Record(split, _join(f'cars_{split}', str(path)), int(label) - 1)


def domain_folders(dataset: str) -> Reader:
    """Folders ``<domain>/<class>/<image>``, as a data set of olor_mm reads them.

    Args:
        dataset: Its class, a ``DomainDataset`` of :mod:`olor_mm.datasets`.
    """

    def read(root: Path, findings: Findings) -> Iterator[Record]:
        # It imports mmpretrain, which the other data sets can do without.
        datasets = importlib.import_module('olor_mm.datasets')
        files = importlib.import_module('olor_mm.datasets._files')
        kind = getattr(datasets, dataset)
        classes = kind.METAINFO['classes']
        for domain, spellings in kind.DOMAINS.items():
            folder = next((name for name in spellings if (root / name).is_dir()), None)
            if folder is None:
                continue
            there = set(files.folders(root / folder))
            for name in sorted(there - set(classes)):
                findings.problem('unknown folders', f'{folder}/{name}/ is none of the {len(classes)} classes')
            for label, name in enumerate(classes):
                if name not in there:
                    findings.problem('missing files', f'{folder}/{name}/')
                    continue
                for file in files.images(root / folder / name):
                    yield Record(domain, f'{folder}/{name}/{file}', label)

    return read


def coco(root: Path, findings: Findings) -> Iterator[Record]:
    """COCO: the images of ``instances_{train,val}2017.json``, whose annotations have to name them."""
    for split in ('train2017', 'val2017'):
        content = _coco_json(root / 'annotations' / f'instances_{split}.json', findings)
        if content is None:
            continue
        categories = {category['id'] for category in content['categories']}
        findings.count(f'categories of {split}', len(categories), 80)
        images = {image['id'] for image in content['images']}
        strays = sum(a['image_id'] not in images or a['category_id'] not in categories for a in content['annotations'])
        if strays:
            text = f'instances_{split}.json: {strays:,} annotations are of images or categories that it does not list'
            findings.problem('bad lines', text)
        unused = len(categories - {a['category_id'] for a in content['annotations']})
        findings.at_least(f'categories of {split} with instances', len(categories) - unused, 80)
        for image in content['images']:
            yield Record(split, f'{split}/{image["file_name"]}', NO_CLASS)


def scene_parsing(root: Path, findings: Findings) -> Iterator[Record]:
    """ADE20K: every image of ``images/<split>`` with the mask of its name in ``annotations/<split>``."""
    for split in ('training', 'validation'):
        images, masks = f'images/{split}', f'annotations/{split}'
        stems = _stems(root / images, '.jpg')
        for stem in stems:
            yield Record(split, f'{images}/{stem}.jpg', NO_CLASS, f'{masks}/{stem}.png')
        for stem in sorted({*_stems(root / masks, '.png')} - {*stems}):
            findings.problem('missing files', f'{images}/{stem}.jpg, of which there is a mask')


def pairs(file: Path, findings: Findings) -> Iterator[tuple[str, str, str]]:
    """The lines of a list of two columns; nothing where there is no such file.

    Args:
        file: The list.
        findings: Gets the lines that have one column alone.

    Yields:
        The file and line for messages, and the columns; the first may hold spaces.
    """
    if not file.is_file():
        return
    # Lists edited on Windows begin with a byte order mark; names that are not UTF-8 stay what they are on the disk.
    with file.open(encoding='utf-8-sig', errors='surrogateescape') as stream:
        for number, line in enumerate(stream, start=1):
            columns, where = line.strip().rsplit(maxsplit=1), f'{file.name}, line {number}'
            if len(columns) == 2:
                yield where, columns[0], columns[1]
            elif columns:
                findings.problem('bad lines', f'{where}: {line.strip()[:80]!r} is one column where two were expected')


def _by_number(file: Path, findings: Findings) -> dict[str, str]:
    return {number: value for _, number, value in pairs(file, findings)}


def _annotations(file: Path, fields: tuple[str, ...], findings: Findings) -> Iterator[tuple[Any, ...]]:
    """The rows of a table in a MATLAB file, read with the package that mmpretrain's StanfordCars reads it with."""
    if not file.is_file():
        return
    try:
        with file.open('rb') as stream:
            table = importlib.import_module('mat4py').loadmat(stream)['annotations']
        # A table of one row comes as its values.
        columns = [table[name] if isinstance(table[name], list) else [table[name]] for name in fields]
    except Exception as error:  # mat4py raises whatever a damaged file leads it to
        findings.problem('unreadable files', f'{file.name}: {type(error).__name__}: {error}')
        return
    yield from zip(*columns, strict=False)


def _coco_json(file: Path, findings: Findings) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        with file.open(encoding='utf-8') as stream:
            content = json.load(stream)
        for name, key in (('images', 'file_name'), ('annotations', 'image_id'), ('categories', 'id')):
            for item in content[name][:1]:
                item[key]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        findings.problem('unreadable files', f'{file.name} is no COCO json: {type(error).__name__}: {error}')
        return None
    return dict(content)


def _stems(folder: Path, suffix: str) -> list[str]:
    """Names without the suffix of the files in a folder, sorted; nothing where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(
            entry.name.removesuffix(suffix)
            for entry in entries
            if entry.name.endswith(suffix) and not entry.name.startswith('.')
        )


def is_below(path: str) -> bool:
    """Whether a path of a list stays below the folder that it is relative to."""
    return not os.path.isabs(path) and '..' not in path.split('/')


def _join(folder: str, path: str) -> str:
    return f'{folder}/{path}' if folder else path
