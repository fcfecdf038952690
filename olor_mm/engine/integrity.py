"""Is a checkpoint file what was written? torch.save leaves a checksum with every record, and torch.load reads none."""

import os
import zipfile
from pathlib import Path

__all__ = ['damage', 'last_complete', 'newest_whole']

_CHUNK = 1 << 22  # bytes
#: What zipfile raises where a flipped bit makes a header senseless.
_SENSELESS = (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError)


def damage(file: str | os.PathLike[str]) -> str | None:
    """What is wrong with a checkpoint file, found without unpickling anything of it.

    torch's files are zip archives. Every record is read once and compared with its checksum (CRC-32), which takes less
    than half a second for each gigabyte besides the reading itself. Files of other formats have no checksums: of them
    only an empty one is found.

    Args:
        file: The file, which must exist; or a folder, as sharded checkpoints are, of which all files are read.

    Returns:
        A few words, or None where nothing is wrong, or nothing can be known: a file that torch was told to write
        without checksums (``torch.serialization.set_crc32_options(False)``), one before torch 1.6, a ``.safetensors``.
    """
    path = Path(file)
    if path.is_dir():
        found = {part.name: damage(part) for part in sorted(path.iterdir()) if part.is_file()}
        bad = [f'{name}: {what}' for name, what in found.items() if what]
        return '; '.join(bad) or (None if found else 'it is an empty folder')
    with path.open('rb') as stream:
        head = stream.read(4)
    if not head:
        return 'it is empty'
    if not zipfile.is_zipfile(path):
        return 'its end is missing' if head.startswith(b'PK') or len(head) < 4 else None
    try:
        with zipfile.ZipFile(path) as archive:
            records = [record for record in archive.infolist() if record.file_size]
            if not any(record.CRC for record in records):
                return None
            for record in records:
                with archive.open(record) as stream:
                    while stream.read(_CHUNK):
                        pass
    except _SENSELESS as error:
        # A record whose checksum differs is a BadZipFile, and names itself.
        return f'it was changed after it was written ({error})'
    return None


def newest_whole(files: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The first file of a list that is there and undamaged.

    Args:
        files: The newest first.

    Returns:
        That file, or None; and the files before it with what is wrong with them.
    """
    wrong: dict[Path, str] = {}
    for file in files:
        found = damage(file) if file.exists() else 'it is missing'
        if found is None:
            return file, wrong
        wrong[file] = found
    return None, wrong


def last_complete(work_dir: str | os.PathLike[str]) -> str | None:
    """The checkpoint that a work dir names as its last, for messages; None where it names none that is there."""
    try:
        named = Path(work_dir, 'last_checkpoint').read_text(encoding='utf-8').strip()
        return named if named and Path(named).exists() else None
    except (OSError, UnicodeDecodeError, ValueError):
        return None
