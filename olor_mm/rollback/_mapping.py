"""Files of tensors that are mapped into memory: read when they are used, and shared by all processes of a machine.

A map is private to its process: what is written to it never reaches the file.
"""

import hashlib
import json
import os
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._files import read_safetensors, read_torch
from ._integrity import ZIP
from ._lossless import same_bits

__all__ = [
    'AnchorFileError',
    'Key',
    'MappedFile',
    'Reader',
    'default_folder',
    'is_mappable',
    'read_weights',
    'tensors_of',
    'written',
]

#: Where a tensor is in a file: the keys from the outermost mapping on.
Key = tuple[str, ...]
#: Reads a file, its tensors mapped into memory where the flag says so.
Reader = Callable[[str, bool], Any]

#: Of a checkpoint, what holds no weights.
_NO_WEIGHTS = {'optimizer', 'optimizer_state_dict', 'message_hub', 'param_schedulers', 'meta'}
_CODES = {torch.float16: 'F16', torch.bfloat16: 'BF16', torch.float32: 'F32', torch.float64: 'F64'}
#: Files that are being written; and how long one may be taken for that.
_BEGUN, _PART, _AGE = '.theta_0_', '.part', 86400  # seconds


class AnchorFileError(RuntimeError):
    """A file that theta_0 is read from, or kept in, is missing, another one, or cannot be written."""


def read_weights(file: str, mapped: bool) -> Any:
    """A file of ``torch.save`` or a ``.safetensors``; see :func:`~olor_mm.rollback._files.read_torch`."""
    return read_safetensors(file, file) if file.endswith('.safetensors') else read_torch(file, file, mapped=mapped)


def is_mappable(file: str) -> bool:
    """Whether it is of the format of ``torch.save`` since torch 1.6."""
    with open(file, 'rb') as stream:
        return stream.read(len(ZIP)) == ZIP


def tensors_of(content: Any, depth: int = 3) -> dict[Key, Tensor]:
    """The weights in what was read from a file."""
    found: dict[Key, Tensor] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                continue
            found[(str(key),)] = value.detach()
        elif depth > 1 and key not in _NO_WEIGHTS:
            found.update({(str(key), *below): tensor for below, tensor in tensors_of(value, depth - 1).items()})
    return found


class MappedFile:
    """A file whose tensors are maps of it.

    Args:
        path: The file.
        read: What reads it. Defaults to :func:`read_weights`.

    Attributes:
        tensors: The weights in it.

    Raises:
        AnchorFileError: If it is of a format that cannot be mapped.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: str | Path, read: Reader = read_weights) -> None:
        self.path = str(path)
        # Held open: it is the file that was mapped that counts, also where another takes its name.
        self._file = os.open(self.path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._file)
        self._as_mapped = self._look()
        try:
            self.tensors = self._map(read)
        except BaseException:
            self.close()
            raise

    def _map(self, read: Reader) -> dict[Key, Tensor]:
        if Path(self.path).suffix == '.safetensors':
            return dict(_map_safetensors(self.path))
        if not is_mappable(self.path):
            raise AnchorFileError(f'{self.path} is of a format that cannot be mapped into memory')
        return tensors_of(read(self.path, True))

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """See that nobody has written to the file since; to read behind the end of a shortened one ends the process.

        Raises:
            AnchorFileError: If somebody has.
        """
        if self._close.alive and self._look() != self._as_mapped:
            raise AnchorFileError(
                f'{self.path} has been written to while theta_0 was mapped from it, so theta_0 is lost: go on from the '
                'last checkpoint, with the file as it was or without anchor_memory=mapped; give a changed file another '
                'name, or put it in place by renaming'
            )

    def close(self) -> None:
        """Look after the file no more; the maps stay as long as their tensors."""
        self._close()


def _map_safetensors(path: str) -> Iterator[tuple[Key, Tensor]]:
    """Key to tensor; the package itself need not be installed.

    Raises:
        AnchorFileError: If the file is none.
    """
    size = os.path.getsize(path)
    try:
        with open(path, 'rb') as stream:
            length = int.from_bytes(stream.read(8), 'little')
            if not 0 < length <= size - 8:
                raise ValueError('no header')
            header = json.loads(stream.read(length))
        storage = torch.UntypedStorage.from_file(path, False, size)
        dtypes = {code: dtype for dtype, code in _CODES.items()}
        for name, told in header.items():
            if name != '__metadata__' and told['dtype'] in dtypes:
                start, stop = (8 + length + offset for offset in told['data_offsets'])
                if not 8 + length <= start <= stop <= size:
                    raise ValueError(f'{name} is outside of it')
                if start % dtypes[told['dtype']].itemsize == 0:
                    yield (name,), _tensor(storage, start, stop, dtypes[told['dtype']]).view(told['shape'])
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise AnchorFileError(f'{path} is no file of safetensors, or an incomplete one: {error}') from error


def _tensor(storage: Any, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    # A storage of its own, so that saving one tensor does not save the whole file.
    return torch.empty(0, dtype=dtype).set_(storage[start:stop])  # type: ignore[call-overload]


def default_folder() -> Path:
    """Where files are written that nobody named a folder for.

    Raises:
        AnchorFileError: If there is no home folder.
    """
    try:
        return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'olor_mm' / 'theta_0'
    except RuntimeError as error:
        raise AnchorFileError(
            f"anchor_memory='mapped': {error} Name a folder for theta_0 with anchor_folder"
        ) from error


def written(values: Mapping[str, Tensor], folder: str | Path) -> tuple[MappedFile, dict[str, Tensor]]:
    """Tensors in a file that is named by its content; it is written if it is not there, by one process alone.

    Args:
        values: Name to dense tensor.
        folder: Where the file belongs. It is made for this user alone where it does not exist.

    Returns:
        The file, and name to map, of the same shape and memory layout as the tensor given.

    Raises:
        AnchorFileError: If it cannot be written, or somebody else's file is in its place.
    """
    # The widest numbers first, so that all lie at multiples of their size.
    values = dict(sorted(values.items(), key=lambda item: -item[1].element_size()))
    header = _header(values)
    digest = hashlib.sha256(header)
    for value in values.values():
        digest.update(_bytes(value))
    path = Path(folder).expanduser().absolute() / f'theta_0_{digest.hexdigest()[:32]}.safetensors'
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path.parent):
            found = None
            if _is_whole(path, len(header) + sum(_num_bytes(value) for value in values.values())):
                found = _intact(path, values)
            if found is None:
                _write(path, header, values)
                found = _mapped(path, values)
            file, maps = found
    except OSError as error:
        raise AnchorFileError(
            f'theta_0 could not be written to {path}: {error.strerror or error}; name another folder with '
            "anchor_folder, or leave anchor_memory='mapped' away"
        ) from error
    return file, maps


def _intact(path: Path, values: Mapping[str, Tensor]) -> tuple[MappedFile, dict[str, Tensor]] | None:
    """What is there, unless it is damaged, as by a power cut."""
    try:
        file, maps = _mapped(path, values)
    except (AnchorFileError, KeyError, RuntimeError):
        return None
    if all(same_bits(maps[name], value.cpu()) for name, value in values.items()):
        return file, maps
    file.close()
    return None


def _mapped(path: Path, values: Mapping[str, Tensor]) -> tuple[MappedFile, dict[str, Tensor]]:
    file = MappedFile(path)
    return file, {
        name: file.tensors[name,].view(value.dtype).as_strided(value.shape, value.stride())
        for name, value in values.items()
    }


def _header(values: Mapping[str, Tensor]) -> bytes:
    told: dict[str, Any] = {}
    start = 0
    for name, value in values.items():
        stop = start + _num_bytes(value)
        # Where the order in memory is another one than that of the dimensions, no shape says it.
        shape = list(value.shape) if value.is_contiguous() else [value.numel()]
        code = _CODES.get(value.dtype, 'F32')
        if value.dtype not in _CODES:
            shape = [_num_bytes(value) // 4]
        told[name] = {'dtype': code, 'shape': shape, 'data_offsets': [start, stop]}
        start = stop
    text = json.dumps(told).encode()
    text += b' ' * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, 'little') + text


def _num_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _bytes(value: Tensor) -> Any:
    """As they lie in memory."""
    flat = value.detach().as_strided((value.numel(),), (1,), value.storage_offset())
    return flat.view(torch.uint8).cpu().numpy().data


def _is_whole(path: Path, size: int) -> bool:
    """Whether the file is there already.

    Raises:
        AnchorFileError: If it is, and others may write to it.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    mine = not hasattr(os, 'geteuid') or found.st_uid in (os.geteuid(), 0)
    if not stat.S_ISREG(found.st_mode) or not mine or found.st_mode & 0o022:
        raise AnchorFileError(
            f'{path} belongs to somebody else, or others may write to it, so theta_0 is not read from it: remove it, '
            'or name another folder with anchor_folder'
        )
    return found.st_size == size


def _write(path: Path, header: bytes, values: Mapping[str, Tensor]) -> None:
    _sweep(path.parent)
    # For this user alone, as mkstemp makes it.
    handle, part = tempfile.mkstemp(prefix=_BEGUN, suffix=_PART, dir=path.parent)
    try:
        with open(handle, 'wb') as stream:
            stream.write(header)
            for value in values.values():
                stream.write(_bytes(value))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left. Where nothing can be locked, another may be writing now."""
    for left in folder.glob(f'{_BEGUN}*{_PART}'):
        with suppress(OSError):
            if time.time() - left.lstat().st_mtime > _AGE:
                left.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this user at a time, on file systems that can lock."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(os.open(folder / '.lock', os.O_RDWR | os.O_CREAT, 0o600), 'rb') as lock:
        # Without locks each process may write the file; all write the same.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
