"""Published lists of images: one ``<relative path> <label>`` in a line. Nothing here needs OpenMMLab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ._errors import DatasetLayoutError
from ._files import some

__all__ = ['check_exist', 'missing_images', 'read_class_names', 'read_list']


def read_list(file: Path, num_classes: int, first_label: int = 0) -> list[tuple[str, int]]:
    """Read a list of images.

    Args:
        file: The list.
        num_classes: How many classes there are.
        first_label: The label of the first class in the file: 0, or 1 in lists made for MATLAB. Defaults to 0.

    Returns:
        For each image the path as listed and its label, counted from 0.

    Raises:
        FileNotFoundError: If the list is missing.
        DatasetLayoutError: At a line that is no path and label, at a label out of range, at an image listed twice; the
            message names file and line.
    """
    entries: list[tuple[str, int]] = []
    seen: dict[str, int] = {}
    for number, line in _lines(file):
        where = f'{file}, line {number}'
        path, label = _split(line, where)
        if not first_label <= label < first_label + num_classes:
            last = first_label + num_classes - 1
            raise DatasetLayoutError(f'{where}: label {label} is out of range: the labels are {first_label} to {last}')
        if path in seen:
            raise DatasetLayoutError(f'{where}: the image {path!r} is listed already in line {seen[path]}')
        seen[path] = number
        entries.append((path, label - first_label))
    if not entries:
        raise DatasetLayoutError(f'{file} lists no image: expected lines of a relative path and a label')
    return entries


def read_class_names(file: Path, num_classes: int) -> tuple[str, ...]:
    """Read names of classes, one ``<number> <name>`` in a line, numbered from 1.

    A name that occurs twice, as 'alfalfa weevil' does in IP102's own file, gets its number appended from the second
    time on, so that every name stands for one class.

    Args:
        file: The file.
        num_classes: How many names there have to be.

    Returns:
        The names in the order of their numbers.

    Raises:
        FileNotFoundError: If the file is missing.
        DatasetLayoutError: If a line is no number and name, or if the numbers are not 1 to ``num_classes`` in order.
    """
    names: list[str] = []
    for number, line in _lines(file):
        index, _, name = line.replace('\t', ' ').partition(' ')
        if index != str(len(names) + 1) or not name.strip():
            raise DatasetLayoutError(
                f'{file}, line {number}: {line!r} is not the number {len(names) + 1} and the name of a class'
            )
        name = ' '.join(name.split())
        names.append(f'{name} ({index})' if name in names else name)
    if len(names) != num_classes:
        raise DatasetLayoutError(f'{file} names {len(names)} classes, where {num_classes} were expected')
    return tuple(names)


def check_exist(listed: Iterable[str], existing: set[str], file: Path, folder: Path) -> None:
    """See that every image listed is there.

    Args:
        listed: The images, as listed.
        existing: Those that exist.
        file: The list, for the message.
        folder: Where they were looked for, for the message.

    Raises:
        FileNotFoundError: If some are missing; the message names the first of them.
    """
    missing = [path for path in listed if path not in existing]
    if missing:
        raise missing_images(missing, file, folder)


def missing_images(missing: Sequence[str], file: Path, folder: Path) -> FileNotFoundError:
    """The error that says which images of a list are missing.

    Args:
        missing: Those that are, as listed.
        file: The list.
        folder: Where they were looked for.
    """
    return FileNotFoundError(
        f'images that {file} lists are not in {folder.absolute()}: {some(missing, 3)}\n'
        'unpack the images there, complete, under the names that the list gives'
    )


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    if not file.is_file():
        raise FileNotFoundError(f'the list {file.absolute()} does not exist: it is published with the data set')
    try:
        # Lists edited on Windows begin with a byte order mark.
        text = file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DatasetLayoutError(f'{file} is not a text file: {error}') from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _split(line: str, where: str) -> tuple[str, int]:
    """Path and label; the path may hold spaces."""
    path, _, label = line.replace('\t', ' ').rpartition(' ')
    path = path.strip()
    digits = label.removeprefix('-')
    if not path or not (digits.isascii() and digits.isdigit()):
        raise DatasetLayoutError(f"{where}: {line[:80]!r} is not '<relative path> <label>', such as 'a/1.jpg 0'")
    if path.startswith(('/', '\\')) or path[1:2] == ':' or '..' in path.split('/'):
        raise DatasetLayoutError(f'{where}: {path!r} must be relative to the data folder and stay below it')
    return path, int(label)
