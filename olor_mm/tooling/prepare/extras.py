"""Checks that one data set alone needs, beyond its images."""

from __future__ import annotations

import importlib
from pathlib import Path

from .arrays import broken_mat
from .findings import Findings
from .records import is_below, pairs

__all__ = ['ip102_names', 'pacs_lists', 'whole_svhn']


def pacs_lists(root: Path, findings: Findings) -> None:
    """The published lists of PACS, where there are some: that the images are there and lie in the class they are given.

    They may lie in the folder above the domains too, where the data set class looks as well.
    """
    kind = importlib.import_module('olor_mm.datasets').PACS
    names = [f'{domain}_{part}_kfold.txt' for domain in kind.DOMAINS for part in ('train', 'crossval', 'test')]
    folder = next((place for place in (root, root.parent) if any((place / name).is_file() for name in names)), None)
    if folder is None:
        findings.notes.append("the published lists (*_kfold.txt) are not there: folds='official' needs them")
        return
    for name in names:
        if not (folder / name).is_file():
            findings.problem('missing files', f"{folder / name}: folds='official' needs it")
        for where, path, label in pairs(folder / name, findings):
            if not is_below(path) or not (root / path).is_file():
                findings.problem('missing files', f'{path}, which {where} names')
            elif label != str(kind.METAINFO['classes'].index(path.split('/')[-2]) + 1):
                findings.notes.append(f'{where}: label {label} for {path}; the data set goes by the folder')


def ip102_names(root: Path, findings: Findings) -> None:
    """The names of IP102's classes, where they are there."""
    file = next((place / 'classes.txt' for place in (root, root.parent) if (place / 'classes.txt').is_file()), None)
    if file is None:
        findings.notes.append('classes.txt is not there, so classes go by their numbers; it is optional')
        return
    try:
        importlib.import_module('olor_mm.datasets._lists').read_class_names(file, 102)
    except ValueError as error:
        findings.problem('bad lines', str(error))


def whole_svhn(root: Path, findings: Findings) -> None:
    """Every byte of SVHN's files, extra's included where it is there."""
    for split in ('train', 'test', 'extra'):
        file = root / f'{split}_32x32.mat'
        reason = broken_mat(file) if file.is_file() else None
        if reason:
            findings.problem('corrupt images', f'{file.name}: {reason}')
