"""Unpacks archives with no trust in what they hold: nothing outside the folder, nothing over what is there."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import InputError
from .output import Progress

__all__ = ['archives_in', 'unpack']

_ENDINGS = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
_BLOCK = 1 << 20
# What the systems of those who packed it left in it.
_LITTER = re.compile(r'(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)')
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


class _Member(NamedTuple):
    name: str
    size: int
    kind: str  # 'file', 'folder', or what else it is
    open: Callable[[], IO[bytes]]


def archives_in(folder: Path) -> list[Path]:
    """The archives that lie in a folder itself, by their names, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(_ENDINGS) and entry.is_file()]
    return [folder / name for name in sorted(names)]


def unpack(archive: Path, folder: Path) -> tuple[int, int, list[str]]:
    """Unpack an archive; one that was interrupted goes on where it was.

    The whole archive is looked through before the first file is written.

    Args:
        archive: The archive.
        folder: Where to.

    Returns:
        How many files were written, how many were there already with the size they should have, and the names of those
        that are there with another size: they stay as they are.

    Raises:
        InputError: If it is damaged, holds what leads out of the folder or is neither file nor folder, does not fit on
            the disk, or if the folder cannot be written to.
    """
    try:
        count, missing = _look_through(archive, folder)
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise InputError(
            f'{archive.name} does not fit: it takes {missing / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free',
            f'looked at: {folder}',
            'make room, or move the archive to a larger disk and give that folder: --root DIR',
        )
    written, there, differing = 0, 0, []
    with Progress(f'unpacking {archive.name}', count) as progress, _opened(archive) as members:
        for member in members:
            if member.kind == 'file':
                target = folder / member.name
                if not os.path.lexists(target):
                    _write(archive, member, target)
                    written += 1
                elif target.is_file() and target.stat().st_size == member.size:
                    there += 1
                else:
                    differing.append(member.name)
            progress.advance(1)
    return written, there, differing


def _look_through(archive: Path, folder: Path) -> tuple[int, int]:
    """Members, and the bytes of those that are not there yet.

    Raises:
        InputError: If a member must not be unpacked.
    """
    count = missing = 0
    with _opened(archive) as members:
        for member in members:
            if _leads_out(member.name):
                problem = f'holds a path that leads out of the folder: {member.name!r}'
            elif member.kind not in ('file', 'folder'):
                problem = f'holds {member.name!r}, which is a {member.kind}; data sets are files and folders'
            else:
                count += 1
                missing += member.size if not os.path.lexists(folder / member.name) else 0
                continue
            raise InputError(
                f'{archive.name} {problem}',
                'nothing of it was unpacked: no published data set is like that',
                'download it again from its home page, and move this one away',
            )
    return count, missing


def _leads_out(name: str) -> bool:
    """Whether a member's name leads out of the folder, on this system or another."""
    parts = re.split(r'[/\\]', name)
    return parts[0] == '' or '..' in parts or bool(re.match(r'[A-Za-z]:', name)) or '\0' in name


def _write(archive: Path, member: _Member, target: Path) -> None:
    temporary = target.with_name(f'.{target.name}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as stream:
            _copy(archive, member, stream)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(
            f'{archive.name} cannot be unpacked: {error.strerror or error}',
            f'looked at: {error.filename or target}',
            'what was unpacked stays; once this is mended the same command goes on from here',
        ) from error
    finally:
        if os.path.lexists(temporary):
            temporary.unlink()


def _copy(archive: Path, member: _Member, stream: IO[bytes]) -> None:
    """Copy a member; damage to the archive is told from a full disk, though both are an OSError.

    Raises:
        InputError: If the archive is damaged here.
        OSError: If the file cannot be written.
    """
    copied = 0
    try:
        with member.open() as source:
            while block := source.read(_BLOCK):
                copied += stream.write(block)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise _damaged(archive, error) from error
    if copied != member.size:
        raise _damaged(archive, EOFError(f'{member.name} has {copied} bytes of {member.size}'))


def _damaged(archive: Path, error: Exception) -> InputError:
    return InputError(
        f'{archive.name} cannot be unpacked: {str(error).strip() or type(error).__name__}',
        'it is incomplete, damaged or encrypted: download it again',
    )


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive, litter left out; those of a tar archive must be read in their turn."""
    try:
        opened: zipfile.ZipFile | tarfile.TarFile
        opened = zipfile.ZipFile(archive) if archive.name.lower().endswith('.zip') else tarfile.open(archive)  # noqa: SIM115
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    with opened:
        members = _zip_members(opened) if isinstance(opened, zipfile.ZipFile) else _tar_members(opened)
        yield (member for member in members if not _LITTER.search(member.name) or _leads_out(member.name))


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = 'folder' if info.is_dir() else 'file'
        if stat.S_ISLNK(info.external_attr >> 16):
            kind = 'symbolic link'
        # The name as it is in the archive: ZipInfo cuts it at a NUL.
        yield _Member(info.orig_filename.rstrip('/') or '/', info.file_size, kind, partial(archive.open, info))


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    kinds = {tarfile.SYMTYPE: 'symbolic link', tarfile.LNKTYPE: 'hard link', tarfile.DIRTYPE: 'folder'}
    for info in archive:
        kind = 'file' if info.isreg() else kinds.get(info.type, 'device')
        yield _Member(info.name or '/', info.size, kind, partial(_content, archive, info))
    # The check sum of a compressed archive comes behind the last member, where tarfile does not look.
    while archive.fileobj and archive.fileobj.read(_BLOCK):
        pass


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    return archive.extractfile(info) or io.BytesIO()
