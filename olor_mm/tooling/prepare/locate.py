"""Where in a folder a data set lies, what of it is missing, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from .specs import Spec

__all__ = ['check_folder', 'guidance', 'locate', 'missing_needs']

# An archive may unpack to a folder, and that to another, as PACS/kfold.
_DEPTH = 2


def check_folder(root: Path) -> None:
    """See that a folder is there and can be read.

    Raises:
        InputError: If not.
    """
    where = f'looked for: {root.absolute()}'
    if not root.exists():
        hint = 'it is a link to nothing' if root.is_symlink() else 'make it and put the data set there'
        raise InputError('the folder of --root is missing', where, hint)
    if not root.is_dir():
        raise InputError('--root is a file, but it has to be the folder that holds the data set', where)
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError('the folder of --root cannot be read: permission denied', where)


def locate(root: Path, spec: Spec) -> Path | None:
    """The folder that holds most of a data set: ``root``, or one below it, as an archive makes; None if none does."""
    best, most, level = None, 0, [root]
    for _ in range(_DEPTH + 1):
        for folder in level:
            score = _score(folder, spec)
            if score > most:
                best, most = folder, score
        if most == len(spec.needs):
            break
        level = [child for folder in level for child in _subfolders(folder)]
    return best


def missing_needs(root: Path, spec: Spec) -> list[str]:
    """What of the files and folders that a data set needs is not there."""
    return [' or '.join(names) for names in spec.needs if not any((root / name).exists() for name in names)]


def guidance(spec: Spec, root: Path, archives: Sequence[Path]) -> list[str]:
    """Lines that say how the data set has to lie, where it is to be had, and what is there to be unpacked."""
    lines = ['expected layout:', *(f'  {line}' for line in spec.layout.replace('DIR', str(root)).splitlines())]
    lines += [f'home page: {spec.home}', 'download:', *(f'  {archive}' for archive in spec.archives)]
    if archives:
        lines += [f'archives here: {", ".join(path.name for path in archives)}', 'unpack them with: --unpack']
    return lines


def _score(folder: Path, spec: Spec) -> int:
    return sum(any((folder / name).exists() for name in names) for names in spec.needs)


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))
    except PermissionError:
        return
    yield from (folder / name for name in names)
