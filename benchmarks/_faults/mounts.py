"""Small file systems that can be filled or made read-only, where the rights suffice."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['make_read_only', 'make_writable', 'mounts', 'small_disk']


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def make_read_only(folder: Path) -> bool:
    """Remount it so; whether that worked."""
    return _run('mount', '-o', 'remount,ro', str(folder))


def make_writable(folder: Path) -> bool:
    """Undo it."""
    return _run('mount', '-o', 'remount,rw', str(folder))


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system in memory at ``folder``; gives whether it could be mounted, which takes root's rights."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = _run('mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'olor_mm_faults', str(folder))
    try:
        yield mounted
    finally:
        if mounted and not _run('umount', str(folder)):
            _run('umount', '-l', str(folder))


def mounts() -> bool:
    """Whether file systems can be mounted here."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder, 'disk'), 64) as mounted:
        return mounted
