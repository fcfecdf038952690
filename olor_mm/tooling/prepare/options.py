"""The command line of tools/prepare_data.py."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable

from ..errors import InputError
from .specs import SPECS, Spec

__all__ = ['find_spec', 'parser']


def parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        prog='prepare_data.py',
        description='See that a downloaded data set is whole; write split files where it has no official ones.',
        epilog='Exit codes: 0 all is well, 1 problems were found, 2 nothing was found or an option is wrong.',
    )
    parser.add_argument('name', nargs='?', metavar='NAME', help=f'one of {", ".join(SPECS)}')
    parser.add_argument('--root', metavar='DIR', help='the folder that holds the data set')
    parser.add_argument('--list', action='store_true', help='print the names known, and stop')
    parser.add_argument('--quick', action='store_true', help='do not decode the images')
    parser.add_argument('--subset', action='store_true', help='accept other counts than the published ones')
    parser.add_argument('--unpack', action='store_true', help='unpack the archives that lie in DIR first')
    parser.add_argument(
        '--workers', type=_whole(0), default=_processors(), metavar='N', help='processes; default: %(default)s here'
    )
    parser.add_argument('--num-folds', type=_whole(2), default=5, metavar='N', help='folds; default: 5')
    parser.add_argument('--seed', type=_whole(0), default=0, metavar='N', help='seed of the folds; default: 0')
    parser.add_argument('--out', metavar='DIR', help='where splits/ and the report go; default: where the data set is')
    parser.add_argument('--force', action='store_true', help='replace split files with another content')
    return parser


def find_spec(name: str) -> Spec:
    """The data set of a name, however it is written: ``CIFAR-100`` is ``cifar100``.

    Raises:
        InputError: If there is none.
    """
    plain = {_plain(key): key for key in SPECS}
    if _plain(name) in plain:
        return SPECS[plain[_plain(name)]]
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    hint = f'; did you mean {plain[close[0]]!r}?' if close else ''
    raise InputError(f'there is no data set {name!r}{hint}', f'known are: {", ".join(SPECS)}')


def _plain(name: str) -> str:
    return re.sub(r'[^a-z0-9]', '', name.lower())


def _whole(least: int) -> Callable[[str], int]:
    """What argparse reads a value with: a whole number that is not below ``least``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number of at least {least}, but got {text!r}')
        return int(text)

    return read


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
