"""What was found, as Markdown, JSON and CSV, and as pictures."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...engine.replacing import PART, put_in_place
from ..errors import InputError, say
from ..figures import Chart, save_charts
from ..incremental.results import write_json

__all__ = ['cell', 'draw', 'flat', 'markdown_table', 'write_all', 'write_text']


def cell(value: Any, digits: int = 2) -> str:
    """A number as it stands in a table; '-' where there is none."""
    if value is None:
        return '-'
    return f'{value:.{digits}f}' if isinstance(value, float) else str(value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    return '\n'.join([*lines, *(f'| {" | ".join(each.replace("|", "/") for each in row)} |' for row in rows)])


def flat(record: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """A nested record as one of plain values, names joined by '/'."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f'{prefix}{key}/'))
        elif not isinstance(value, (list, tuple)):
            found[f'{prefix}{key}'] = value
    return found


def write_all(out: Path, name: str, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], text: str) -> None:
    """Write NAME.json, NAME.csv and NAME.md.

    Args:
        out: The folder.
        name: Of the files.
        report: Everything, for the JSON.
        rows: The lines of the CSV; columns are all of their names.
        text: The Markdown.
    """
    write_json(out / f'{name}.json', report)
    lines = [flat(row) for row in rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for line in lines for key in line)), restval='')
    writer.writeheader()
    writer.writerows(lines)
    write_text(out / f'{name}.csv', stream.getvalue())
    write_text(out / f'{name}.md', f'{text}\n')


def draw(charts: Sequence[Chart], out: Path, name: str, title: str) -> None:
    """Write NAME.png and NAME.html; where a package for pictures is missing it is said: tables do without."""
    written = f'{out}/{name}.md, .json, .csv'
    try:
        if charts:
            save_charts(charts, out, name, title=title)
            written += ', .png, .html'
    except InputError as error:
        say(f'no pictures: {error}')
    say(f'written: {written}')


def write_text(file: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'.{file.name}.{os.getpid()}{PART}')
    part.write_text(text, encoding='utf-8', newline='')
    put_in_place(part, file)
