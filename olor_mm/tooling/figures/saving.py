"""Charts to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...engine.replacing import PART, put_in_place, remove
from ..errors import INSTALL_ANALYSIS, InputError
from .charts import Chart

__all__ = ['check_drawing', 'save_charts']


def check_drawing(folder: str | Path) -> None:
    """See that charts can be drawn and written, before what they show is computed.

    Args:
        folder: Where they are to be written; it need not be there.

    Raises:
        InputError: If a package is missing, or the folder cannot be written to.
    """
    try:
        from . import page, png  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'pictures need a package that is not installed: {error}',
            INSTALL_ANALYSIS,
        ) from error
    path = Path(folder).expanduser().absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        wrong = 'it may not be written to' if there.is_dir() else 'it is a file'
        raise InputError(f'pictures cannot be written to {folder}: {there}: {wrong}', 'choose another folder')


def save_charts(
    charts: Sequence[Chart], folder: str | Path, name: str, title: str | None = None, columns: int | None = None
) -> list[Path]:
    """Draw charts on one picture and on one page.

    Args:
        charts: What to draw, in this order.
        folder: Where to write; it is made where it is missing.
        name: Of the files, without an ending.
        title: Of the page. Defaults to None, which is the name.
        columns: How many charts stand side by side. Defaults to None: two, or one if there is one only.

    Returns:
        ``NAME.png`` and ``NAME.html``; the page holds all it needs and is opened without a network.

    Raises:
        ValueError: If there is no chart, or the name is none of a file.
        InputError: If a package is missing, or the folder cannot be written to.
    """
    if not charts:
        raise ValueError(f'{name!r}: there is no chart to draw; give at least one')
    if not name or Path(name).name != name:
        raise ValueError(f'name={name!r} must be the name of a file without a folder and an ending')
    check_drawing(folder)
    from .page import render_page
    from .png import render_png

    columns = columns or min(len(charts), 2)
    folder = Path(folder).expanduser()
    heading = name if title is None else title
    written = []
    for ending, content in (
        ('png', render_png(charts, heading, columns)),
        ('html', render_page(charts, heading, columns).encode()),
    ):
        written.append(_write(folder / f'{name}.{ending}', content))
    return written


def _write(file: Path, content: bytes) -> Path:
    part = file.with_name(f'.{file.name}{PART}')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        put_in_place(part, file)
    except OSError as error:
        remove(part)
        raise InputError(f'{file} cannot be written: {error.strerror or error}', 'choose another folder') from error
    return file
