"""A checkpoint takes the place of an earlier one of the same name, and at every moment one of the two is whole."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ['OLD', 'PART', 'flush', 'put_in_place', 'remove', 'restore']

#: How a name ends while the file is being written; it begins with a dot.
PART = '.olor-part'
#: How the name of what is being replaced ends while its successor is given its place; it begins with a dot.
OLD = '.olor-old'


def put_in_place(part: Path, final: Path) -> None:
    """Make a file or folder durable and give it its final name.

    Args:
        part: What was written.
        final: Its final name, in the same folder.

    Raises:
        OSError: If the file system refuses; what had the name before has it still.
    """
    for path in [*part.iterdir(), part] if part.is_dir() else [part]:
        flush(path)
    old = final.with_name(f'.{final.name}{OLD}')
    # A folder is not replaced in one go.
    aside = final.is_dir() or (final.exists() and part.is_dir())
    try:
        if aside:
            remove(old)
            os.replace(final, old)
        os.replace(part, final)
    except BaseException:
        if aside and not final.exists():
            os.replace(old, final)
        raise
    flush(final.parent)
    if aside:
        remove(old)


def restore(folder: Path, discard: bool = False) -> None:
    """Give what was set aside its name again where a kill kept its successor from taking it. Several ranks may do so.

    Args:
        folder: The folder of the checkpoints; it may be missing.
        discard: Whether what has a successor is removed. Defaults to False.
    """
    with suppress(OSError):
        for old in sorted(folder.glob(f'.*{OLD}')):
            final = folder / old.name[1 : -len(OLD)]
            if not final.exists():
                # Another rank may have been faster.
                with suppress(OSError):
                    os.replace(old, final)
            elif discard:
                remove(old)


def flush(path: Path) -> None:
    """See that what was written is on the disk, where the file system has a way to do so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and may be removed."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        # On a disk that has become read-only, say; the error that led here says so.
        return
