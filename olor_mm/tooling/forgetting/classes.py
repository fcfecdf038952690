"""Which of the original head's outputs is which class of the upstream data."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from .heads import NoHeadError

__all__ = ['map_classes', 'read_class_map']

_WNID = re.compile(r'n\d{8}$')


def map_classes(classes: Sequence[str], outputs: int, given: Mapping[str, int] | None = None) -> tuple[list[int], str]:
    """The output of the head for each class of the upstream data.

    Args:
        classes: Names of the classes in the order of the labels: of folders, or as the data set says.
        outputs: How many the head has.
        given: ``--class-map``, class to output. Defaults to None: found by the names.

    Returns:
        The outputs, in the order of ``classes``, and how they were found.

    Raises:
        InputError: If ``given`` lacks a class, or names an output that the head does not have.
        NoHeadError: If nothing is given and the names do not say it.
    """
    if given is not None:
        return _given(classes, outputs, given), '--class-map'
    if all(name.isdecimal() and int(name) < outputs for name in classes):
        return [int(name) for name in classes], 'the names are numbers of outputs'
    if all(_WNID.match(name) for name in classes):
        known = _wnids(outputs)
        if known is not None and set(classes) <= known.keys():
            return [known[name] for name in classes], f'WordNet numbers, in the order of {len(known)} classes'
    if len(classes) == outputs:
        return list(range(outputs)), 'as many classes as outputs, in the same order'
    raise NoHeadError(
        f'which of its {outputs} outputs are the {len(classes)} classes, such as {classes[0]!r}, is not known: give '
        '--class-map FILE'
    )


def read_class_map(file: str) -> dict[str, int]:
    """Class to output, from ``--class-map``.

    Args:
        file: JSON, ``{"name": 7}``; lines ``name 7``; or lines of names in the order of the outputs, from 0.

    Raises:
        InputError: If the file is missing, or is none of the three.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError('the file of --class-map is missing', f'looked for: {path.absolute()}')
    text = path.read_text(encoding='utf-8')
    expected = 'expected: JSON {"name": 7}, lines "name 7", or one name a line in the order of the outputs'
    if path.suffix == '.json':
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f'--class-map {file} is no JSON: {error}', expected) from error
        numbers = isinstance(found, dict) and all(type(value) is int and value >= 0 for value in found.values())
        if not numbers:
            raise InputError(f'--class-map {file} is no mapping from names to numbers', expected)
        return {str(name): value for name, value in found.items()}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [line.rpartition(' ') for line in lines]
    if lines and all(name.strip() and number.isdecimal() for name, _, number in pairs):
        return {name.strip(): int(number) for name, _, number in pairs}
    if not lines or len(set(lines)) < len(lines):
        twice = next((line for line in lines if lines.count(line) > 1), None)
        raise InputError(f'--class-map {file} is empty' if twice is None else f'--class-map {file} has {twice!r} twice',
                         expected)  # fmt: skip
    return {name: number for number, name in enumerate(lines)}


def _given(classes: Sequence[str], outputs: int, given: Mapping[str, int]) -> list[int]:
    absent = [name for name in classes if name not in given]
    if absent:
        near = difflib.get_close_matches(absent[0], given, n=1)
        raise InputError(
            f'--class-map has no output for {len(absent)} of the {len(classes)} upstream classes: {absent[0]!r}, ...',
            *([f'did you mean: {near[0]!r}?'] if near else [f'it has {", ".join(list(given)[:5])}, ...']),
        )
    beyond = [name for name in classes if given[name] >= outputs]
    if beyond:
        raise InputError(
            f'--class-map: {beyond[0]!r} is output {given[beyond[0]]}, but the head has {outputs}, from 0 on'
        )
    found = [given[name] for name in classes]
    if len(set(found)) < len(found):
        raise InputError('--class-map gives two of the upstream classes the same output')
    return found


def _wnids(outputs: int) -> dict[str, int] | None:
    """The ImageNet classes in the order of a head with so many outputs, as timm lists them; None without timm."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    subset = {1000: 'imagenet-1k', 21841: 'imagenet-22k', 21843: 'imagenet-21k-goog'}.get(outputs)
    if subset is None:
        return None
    return {name: number for number, name in enumerate(ImageNetInfo(subset).label_names())}
