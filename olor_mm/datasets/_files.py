"""Reading folders of images, and saying what is wrong with them: nothing here needs OpenMMLab."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ._errors import DatasetLayoutError, UnreadableImageError

__all__ = ['IMAGE_SUFFIXES', 'check_choice', 'find_root', 'folders', 'image_fault', 'images', 'some', 'verify_images']

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    """See that an option has one of the values that exist.

    Args:
        option: The option's name, for the message.
        value: What was given.
        choices: What exists.

    Raises:
        ValueError: If it has not.
    """
    if value not in choices:
        raise ValueError(f'{option}={value!r} is not known: choose one of {", ".join(map(repr, choices))}')


def find_root(data_root: str, candidates: Sequence[str], wanted: Sequence[str], layout: str) -> Path:
    """The folder that holds a data set: ``data_root``, or the folder in it that the published archive unpacks to.

    Args:
        data_root: The folder that the config names.
        candidates: Folders to look into, relative to ``data_root``; ``''`` is ``data_root`` itself.
        wanted: Names of which the folder sought holds at least one.
        layout: The layout expected below ``data_root``, for the message.

    Returns:
        The first candidate that holds one of the names.

    Raises:
        FileNotFoundError: If ``data_root`` is not a folder.
        DatasetLayoutError: If no candidate holds any of the names.
    """
    root = Path(data_root).expanduser()
    expected = f'expected layout:\n{_indent(layout.strip())}\nset it with: data_root=DIR in the config, or --data-root'
    if not root.is_dir():
        raise FileNotFoundError(
            f'the data folder {root.absolute()} does not exist (data_root={data_root!r})\n{expected}'
        )
    for candidate in candidates:
        if any((root / candidate / name).exists() for name in wanted):
            return root / candidate
    raise DatasetLayoutError(
        f'{root.absolute()} holds none of {some(wanted)}\nfound in it: {found_in(root)}\n{expected}'
    )


def found_in(folder: Path) -> str:
    """The first names in a folder, folders before files, for a message."""
    below = folders(folder)
    return some([*below, *sorted(name for name in os.listdir(folder) if name not in below)]) or 'nothing'


def folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones left out.

    Args:
        folder: Where to look.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith('.') and entry.is_dir())


def images(folder: Path) -> list[str]:
    """Names of the images in a folder, sorted; hidden files and whatever has no image's suffix are left out.

    Args:
        folder: Where to look.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith('.')]
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def image_fault(file: str) -> str | None:
    """What keeps a file from being read as an image, or None where nothing does.

    Args:
        file: The image.

    Returns:
        One line that names the file.
    """
    from PIL import Image

    if not os.path.exists(file):
        return f'the image {file} does not exist'
    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # A decoder raises anything at all at broken data.
        size = os.path.getsize(file) if os.path.isfile(file) else 0
        return f'the image {file} ({size:,} bytes) cannot be decoded: {error}'
    return None


def verify_images(files: Iterable[str]) -> None:
    """Decode every image once.

    Args:
        files: The images.

    Raises:
        UnreadableImageError: If some cannot be read; the message names the first of them and counts them all.
    """
    faults = [fault for fault in map(image_fault, files) if fault]
    if faults:
        more = f'\n... {len(faults)} images in all' if len(faults) > 8 else ''
        raise UnreadableImageError('\n'.join(faults[:8]) + more + '\nfetch them again, or remove them')


def some(names: Sequence[str], count: int = 8) -> str:
    """The first few of many names, and how many there are.

    Args:
        names: The names.
        count: How many to show. Defaults to 8.
    """
    return ', '.join(map(str, names[:count])) + (f', ... ({len(names):,} in all)' if len(names) > count else '')


def _indent(text: str) -> str:
    return '\n'.join(f'    {line}' for line in text.splitlines())
