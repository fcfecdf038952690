"""Is a checkpoint file what was written? torch.save leaves a checksum with every record, and torch.load reads none."""

import io
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

__all__ = ['ZIP', 'damage']

#: How torch's zip archives begin.
ZIP = b'PK\x03\x04'
_CHUNK = 1 << 22  # bytes
_THREADS = 8
#: What zipfile raises where a flipped bit makes a header senseless.
_SENSELESS = (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError)


def damage(file: str | os.PathLike[str] | io.BytesIO) -> str | None:
    """What is wrong with a checkpoint file, found without unpickling anything of it.

    torch's files are zip archives. Every record is read once and compared with its checksum (CRC-32), which takes less
    than half a second for each gigabyte besides the reading itself. Files of other formats have no checksums: of them
    only an empty one is found.

    Args:
        file: The file, which must exist, or its content; or a folder, as sharded checkpoints are, of which all files
            are read.

    Returns:
        A few words, or None where nothing is wrong, or nothing can be known: a file that torch was told to write
        without checksums (``torch.serialization.set_crc32_options(False)``), one before torch 1.6, a ``.safetensors``.
    """
    if isinstance(file, io.BytesIO):
        found = _damage(file)
        file.seek(0)
        return found
    path = Path(file)
    try:
        if path.is_dir():
            return _damage_of_folder(path)
        if path.exists() and not path.is_file():
            # Reading a named pipe would wait for ever.
            return 'it is no file'
        with path.open('rb') as stream:
            return _damage(stream)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f'it cannot be read ({error.strerror or error})'


def _damage_of_folder(path: Path) -> str | None:
    parts = {part.name: damage(part) for part in sorted(path.iterdir()) if part.is_file()}
    bad = [f'{name}: {what}' for name, what in parts.items() if what]
    ranks = {int(match[1]) for name in parts if (match := re.fullmatch(r'rank(\d+)\.pth', name))}
    # Not up to the highest number: anybody may have named a file so.
    bad += [f'rank{rank}.pth: it is missing' for rank in range(len(ranks)) if rank not in ranks]
    return '; '.join(bad) or (None if parts else 'it is an empty folder')


def _damage(stream: IO[bytes]) -> str | None:
    head = stream.read(len(ZIP))
    if not head:
        return 'it is empty'
    if not zipfile.is_zipfile(stream):
        # Two letters would not do: a .safetensors begins with a number that may be any.
        return 'its end is missing' if head == ZIP or len(head) < len(ZIP) else None
    try:
        with zipfile.ZipFile(stream) as archive:
            records = [record for record in archive.infolist() if record.file_size]
            if not any(record.CRC for record in records):
                return None
            # The checksums are computed without Python's lock, so by as many threads as there are cores.
            with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
                for _ in pool.map(partial(_read_through, archive), records):
                    pass
    except _SENSELESS as error:
        # A record whose checksum differs is a BadZipFile, and names itself.
        return f'it was changed after it was written ({error})'
    return None


def _read_through(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Read a record to its end, where zipfile compares the checksum."""
    with archive.open(record) as content:
        while content.read(_CHUNK):
            pass
