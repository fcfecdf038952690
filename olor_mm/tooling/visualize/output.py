"""What is given by name, and where pictures go."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engine.replacing import PART, put_in_place
from ..errors import InputError
from ..figures import Chart, save_charts

__all__ = ['Named', 'named', 'named_all', 'write']

Named = tuple[str, Path]


def named(argument: str) -> Named:
    """A file or folder with the name that pictures call it by.

    Args:
        argument: ``NAME=PATH``, or a path, whose name is then its last parts.
    """
    name, sign, path = argument.partition('=')
    if sign and name and '/' not in name and not Path(argument).expanduser().exists():
        return name, Path(path).expanduser()
    return '', Path(argument).expanduser()


def named_all(arguments: Sequence[str], what: str) -> list[Named]:
    """Several of them, each with a name of its own and there.

    Args:
        arguments: Each as for :func:`named`.
        what: What they are, for messages: 'checkpoint'.

    Raises:
        InputError: If one is missing, or two have the same name.
    """
    found = [named(argument) for argument in arguments]
    for _, path in found:
        if not path.exists():
            raise InputError(f'the {what} is missing', f'looked for: {path.absolute()}')
    short = _shortest([path for name, path in found if not name])
    result = [(name or short[path], path) for name, path in found]
    names = [name for name, _ in result]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f'two {what}s are called {twice!r}', 'give each a name of its own: NAME=PATH')
    return result


def _shortest(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path by as many of its last parts as tell them all apart."""
    parts = {path: [part for part in path.absolute().parts if part != '/'] for path in paths}
    for count in range(1, max((len(part) for part in parts.values()), default=1) + 1):
        short = {path: '/'.join(part[-count:]) for path, part in parts.items()}
        if len(set(short.values())) == len(paths):
            return short
    return {path: str(path) for path in paths}


def write(args: argparse.Namespace, charts: Sequence[Chart], title: str, columns: int | None = None) -> None:
    """Write the charts, and their numbers as JSON, and print which files there are.

    Args:
        args: With ``out``, ``name`` and ``title`` of the command line.
        charts: The charts.
        title: Of the page, where ``--title`` gives none.
        columns: How many charts stand side by side. Defaults to None, as of :func:`save_charts`.
    """
    name = args.name or args.command
    if Path(name).name != name:
        raise InputError(
            f'--name {name} must be the name of a file without a folder', 'folders are set with: --out DIR'
        )
    files = save_charts(charts, args.out, name, args.title or title, columns)
    numbers = [{'kind': type(chart).__name__, **_plain(dataclasses.asdict(chart))} for chart in charts]
    file = Path(args.out).expanduser() / f'{name}.json'
    part = file.with_name(f'.{file.name}{PART}')
    part.write_text(json.dumps(numbers, indent=1) + '\n', encoding='utf-8')
    put_in_place(part, file)
    for written in [*files, file]:
        print(written)


def _plain(value: Any) -> Any:
    """What JSON can hold: it knows no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
