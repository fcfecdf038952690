"""Writes the stratified folds of a data set without official splits as lists, the same that its class computes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from .records import Record

__all__ = ['split_files', 'write_atomically', 'write_splits']


def split_files(records: Sequence[Record], num_folds: int, seed: int) -> Iterator[tuple[str, str]]:
    """Name and content of every list: ``'<image> <label>'``, for each fold the images that train and that test.

    Args:
        records: All images of the data set, ``part`` its domain, paths as ``'<folder of the domain>/<class>/<image>'``.
        num_folds: How many folds.
        seed: Of the folds.

    Raises:
        InputError: If the name of a file is not UTF-8: no list could hold it.
    """
    stratified_folds = importlib.import_module('olor_mm.datasets._folds').stratified_folds
    # A folder may be spelled otherwise than the domain; the folds go by the domain.
    keys = [f'{record.part}/{record.path.partition("/")[2]}' for record in records]
    try:
        folds = stratified_folds(keys, num_folds, seed)
    except UnicodeEncodeError as error:
        raise InputError(
            'an image has a name that is not UTF-8, which no list can hold',
            f'the image: {error.object!r}',
            'unpack the data set anew, or rename the file',
        ) from error
    for fold in range(num_folds):
        for split in ('train', 'test'):
            lines = [
                f'{record.path} {record.label}\n'
                for record, key in zip(records, keys, strict=True)
                if (folds[key] == fold) == (split == 'test')
            ]
            yield f'stratified_{num_folds}folds_seed{seed}_fold{fold}_{split}.txt', ''.join(lines)


def write_splits(folder: Path, files: Sequence[tuple[str, str]], force: bool) -> tuple[list[str], list[str]]:
    """Write the lists that are not there yet; before the first it is seen that none is in the way.

    Args:
        folder: Where to.
        files: Name and content of each.
        force: Whether one that is there with another content is replaced.

    Returns:
        The names of those written, and of those that were there already as they should be.

    Raises:
        InputError: If one is there with another content and ``force`` is False, or if the folder cannot be written to.
    """
    contents = {name: text.encode() for name, text in files}
    try:
        there = {name: (folder / name).read_bytes() for name in contents if (folder / name).exists()}
        differing = sorted(name for name in there if there[name] != contents[name])
        if differing and not force:
            first = differing[0]
            raise InputError(
                f'{len(differing)} split files in {folder} are not what these images give',
                f'the first: {first} ({len(there[first])} bytes, should be {len(contents[first])})',
                'they were cut off, edited, or made from other images: a training that used them saw another split',
                'replace them with --force, or write elsewhere with --out DIR',
            )
        written = [name for name in contents if there.get(name) != contents[name]]
        if written:
            folder.mkdir(parents=True, exist_ok=True)
        for name in written:
            write_atomically(folder / name, contents[name])
    except OSError as error:
        raise InputError(
            f'the split files cannot be written: {error.strerror or error}',
            f'looked at: {error.filename or folder}',
            'write elsewhere with --out DIR',
        ) from error
    return written, [name for name in contents if name not in written]


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever stops the process.

    The partial file has a fixed name, so that one that a killed run left is taken over by the next.

    Raises:
        OSError: If it cannot be written.
    """
    partial = file.with_name(f'.{file.name}.part')
    try:
        with partial.open('wb') as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
