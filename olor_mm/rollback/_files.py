"""Files of weights, read without running anything that they bring."""

import io
import pickle
import re
import tarfile
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import torch

from ._integrity import ZIP, damage
from ._pickles import restricted_pickle

__all__ = ['BrokenCheckpointError', 'UnsafeCheckpointError', 'read_safetensors', 'read_torch']

#: What torch says of the global or operation that it refuses.
_REFUSED = re.compile(r'GLOBAL \S+|Unsupported [^.\n]+|getattr\([^\n]+|Trying to [^\n]+?(?=\. |\.$|\n|$)')
#: torch unpacks it onto the disk to read it.
_TAR = "torch's tar format of 2016"
_GLOBAL = re.compile(r'GLOBAL [\w.]+')


class BrokenCheckpointError(RuntimeError):
    """A file is no checkpoint, or an incomplete one."""


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint file asks for more than weights and known records; nothing of it was run."""


def read_torch(
    file: str | io.BytesIO,
    name: str,
    map_location: Any = 'cpu',
    names: Mapping[str, Any] | None = None,
    buildable: Collection[type] = (),
    mapped: bool = False,
) -> Any:
    """Read a file of ``torch.save`` with ``weights_only``, or, where torch's cannot be told more, with our own.

    Args:
        file: Path, or the content.
        name: What the file is called in messages.
        map_location: As for ``torch.load``. Defaults to 'cpu'.
        names: Full names that the file may use besides those of tensors, and what stands for each; called as the file
            says, so nothing that can do harm. Defaults to None.
        buildable: Types whose instances may be given a state by ``__setstate__``. Defaults to none.
        mapped: Whether tensors are maps of the file, copied where they are written to, and no copies of their own: not
            for formats before torch 1.6. Defaults to False.

    Raises:
        UnsafeCheckpointError: If the file holds anything else.
        BrokenCheckpointError: If it is no checkpoint, an incomplete one, or one that was changed after it was written.
        FileNotFoundError: If there is no such file.
        RuntimeError: torch's own, where a device that the file or ``map_location`` names is missing or full.
    """
    found = damage(file)
    if found is not None:
        raise BrokenCheckpointError(
            f'{name} is no checkpoint of torch.save, or an incomplete one: {found}; nothing of it was loaded; give '
            'another checkpoint'
        )
    _refuse_torchscript(file, name)
    try:
        return _load(file, name, map_location, names or {}, buildable, mapped)
    except UnsafeCheckpointError:
        raise
    except pickle.UnpicklingError as error:
        refused = _GLOBAL.search(str(error)) or _REFUSED.search(str(error))
        if refused is None or not _may_be_pickle(file):
            raise BrokenCheckpointError(f'{name} is no checkpoint of torch.save, or an incomplete one') from error
        raise UnsafeCheckpointError(_unsafe(name, refused[0])) from None
    except (AttributeError, AssertionError, EOFError, IndexError, LookupError, MemoryError) as error:
        raise _broken(name, error) from error
    except (OSError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        # What torch raises for a file that was cut off, or never was one, depends on where it stops making sense.
        if 'legacy .tar format' in str(error):
            raise UnsafeCheckpointError(_unsafe(name, _TAR)) from None
        if 'deserialize object on' in str(error) or isinstance(error, torch.cuda.OutOfMemoryError):
            # The file may be whole: this machine has not the device, or not the memory, that was asked for.
            raise
        raise _broken(name, error) from error


def _load(
    file: str | io.BytesIO,
    name: str,
    map_location: Any,
    names: Mapping[str, Any],
    buildable: Collection[type],
    mapped: bool,
) -> Any:
    """What torch's ``weights_only`` reads, or our reader where that takes no list of names."""
    if weights_only_takes_names():
        # Types go in under names that no file can write: to be given a state, not to be created at will.
        extra = [(value, key) for key, value in names.items()]
        with torch.serialization.safe_globals([*extra, *((kind, kind.__name__) for kind in buildable)]):
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mapped)
    # As torch tells them apart, by the start: zipfile looks at the end, where a tar may carry one.
    if _head(file, len(ZIP)) != ZIP and tarfile.is_tarfile(file):
        raise UnsafeCheckpointError(_unsafe(name, _TAR))
    # Not unsafe: no name in the file means more than the list says, see _pickles.
    if isinstance(file, io.BytesIO):
        file.seek(0)
    module = restricted_pickle(names, buildable)
    return torch.load(file, map_location=map_location, pickle_module=module, weights_only=False, mmap=mapped)


def _may_be_pickle(file: str | io.BytesIO) -> bool:
    """Whether it begins as torch's zip archives, or pickles, do; in other files no operation means anything."""
    head = _head(file, 2)
    return head[:1] == b'\x80' or head == b'PK'


def _head(file: str | io.BytesIO, size: int) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:size]
    with open(file, 'rb') as stream:
        return stream.read(size)


def _unsafe(name: str, what: str) -> str:
    return (
        f'{name} was not loaded, and no code of it was run: it holds more than weights and the records of MMEngine '
        f'({what}). If you trust its source, take the weights out of it in a process of its own, and save them anew as '
        "{'state_dict': ...}"
    )


def _broken(name: str, error: Exception) -> BrokenCheckpointError:
    text = str(error).split('\n')[0]
    return BrokenCheckpointError(
        f'{name} is no checkpoint of torch.save, or an incomplete one ({type(error).__name__}: {text})'
    )


def _refuse_torchscript(file: str | io.BytesIO, name: str) -> None:
    """A TorchScript archive is a program; torch < 2.6 runs it even with ``weights_only`` (CVE-2025-32434).

    torch's own reader looks, so that no other reading of the same archive differs from the one that counts.
    """
    try:
        records = torch._C.PyTorchFileReader(file).get_all_records()
    except (RuntimeError, TypeError):
        return
    finally:
        if isinstance(file, io.BytesIO):
            file.seek(0)
    if 'constants.pkl' in records:
        raise UnsafeCheckpointError(_unsafe(name, 'a TorchScript program'))


def read_safetensors(file: str, name: str) -> dict[str, torch.Tensor]:
    """Read a ``.safetensors`` file onto the CPU.

    Raises:
        BrokenCheckpointError: If it is none, or an incomplete one.
        ImportError: If safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{name} needs the package safetensors: pip install safetensors') from error
    try:
        return load_file(file)
    except (SafetensorError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise BrokenCheckpointError(
            f'{name} is no file of safetensors, or an incomplete one ({type(error).__name__}: {error})'
        ) from None


class _Probe:
    def __reduce__(self) -> Any:
        return _probed, ()


def _probed() -> None:
    return None


@cache
def weights_only_takes_names() -> bool:
    """Whether torch's ``weights_only`` takes a list of names and what stands for each (2.6 and later do)."""
    if not hasattr(torch.serialization, 'safe_globals'):
        return False
    buffer = io.BytesIO()
    torch.save({'probe': _Probe()}, buffer)
    buffer.seek(0)
    try:
        with torch.serialization.safe_globals([(_probed, f'{__name__}._probed')]):
            return bool(torch.load(buffer, weights_only=True) == {'probe': None})
    except (AttributeError, TypeError, pickle.UnpicklingError):
        return False
