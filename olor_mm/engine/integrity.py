"""Which checkpoint of a run is whole?"""

import os
from pathlib import Path

from olor_mm.rollback._integrity import damage

__all__ = ['damage', 'last_complete', 'newest_whole']


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
        record = Path(work_dir, 'last_checkpoint')
        named = record.read_text(encoding='utf-8').strip() if record.is_file() else ''
        return named if named and Path(named).exists() else None
    except (OSError, UnicodeDecodeError, ValueError):
        return None
