"""theta_0 by name and not by value: a checkpoint says which tensor of which file it is.

A reference is a small tensor of bytes in the optimizer's state, so that it passes through whatever saves, loads and
casts such states.
"""

import errno
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._lossless import same_bits
from ._mapping import AnchorFileError, Key, Reader, is_mappable, tensors_of

__all__ = ['REFERENCE_KEY', 'Candidates', 'Reference', 'decoded', 'digest_of', 'resolved']

REFERENCE_KEY = 'rollback_anchor_reference'

_CHUNK = 1 << 20  # bytes
_PROBE = 16  # elements
_MOST = 1 << 16  # bytes of a reference


@dataclass(frozen=True)
class Reference:
    """Where theta_0 of a parameter is.

    Args:
        file: Absolute path.
        sha256: Of the file, in hexadecimal digits.
        key: The keys in the file, from the outermost mapping on.
        dtype: What its values are converted to, as 'float32': that of the parameter when it was taken.
    """

    file: str
    sha256: str
    key: Key
    dtype: str

    def encoded(self) -> Tensor:
        """As bytes."""
        return torch.frombuffer(bytearray(json.dumps(asdict(self)).encode()), dtype=torch.uint8)


def decoded(value: Any) -> Reference:
    """A reference from what a checkpoint holds, also where torch has cast it to the dtype of a parameter.

    Raises:
        AnchorFileError: If it is none.
    """
    try:
        if value.numel() > _MOST:
            raise ValueError(f'of {value.numel()} bytes')
        told = json.loads(bytes(int(number) for number in value.real.tolist()))
        reference = Reference(told['file'], told['sha256'], tuple(told['key']), told['dtype'])
        if not all(isinstance(part, str) for part in (reference.file, reference.sha256, *reference.key)):
            raise ValueError('not of strings')
        if not isinstance(getattr(torch, reference.dtype), torch.dtype):
            raise ValueError('of no dtype')
    except (AttributeError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise AnchorFileError(
            f'the loaded optimizer state has something under {REFERENCE_KEY!r} that is no reference to a file '
            f'({error}): load another checkpoint'
        ) from error
    return reference


def digest_of(file: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, read once in this process as long as its size and time stay the same.

    Raises:
        OSError: If it cannot be read.
    """
    path = str(Path(file).absolute())
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        # Reading a named pipe, or a device, would never end.
        raise OSError(errno.EINVAL, 'it is no file', path)
    return _digest(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


@lru_cache(maxsize=64)
def _digest(path: str, *_: int) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb', buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Candidates:
    """The tensors of a file, to look for equal ones among them.

    Args:
        tensors: Key to tensor.
    """

    def __init__(self, tensors: Mapping[Key, Tensor]) -> None:
        self._tensors = tensors
        self._keys: defaultdict[torch.Size, list[Key]] = defaultdict(list)
        for key, tensor in tensors.items():
            self._keys[tensor.shape].append(key)

    def find(self, value: Tensor, name: str, as_it_is: bool) -> Key | None:
        """Where a tensor of the same values is; by its values, for names change on loading.

        Args:
            value: The tensor, on the CPU.
            name: What it is called here: like names are looked at first.
            as_it_is: Whether it must have the dtype too; else it may become equal by conversion.
        """
        for key in sorted(self._keys.get(value.shape, ()), key=lambda key: not _alike(key[-1], name)):
            tensor = self._tensors[key]
            if as_it_is and tensor.dtype != value.dtype:
                continue
            if all(same_bits(a.to(b.dtype), b) for a, b in ((_first(tensor), _first(value)), (tensor, value))):
                return key
        return None


def _alike(one: str, other: str) -> bool:
    return one.endswith(other) or other.endswith(one)


def _first(tensor: Tensor) -> Tensor:
    """Some elements: most tensors differ there already."""
    return tensor[(0,) * (tensor.dim() - 1)][:_PROBE] if tensor.dim() and tensor.numel() else tensor


def resolved(
    references: Mapping[Tensor, Reference], read: Reader, others: Iterable[str], names: Callable[[Tensor], str]
) -> Iterator[tuple[Tensor, Tensor, Reference]]:
    """What references mean.

    Args:
        references: Parameter to reference.
        read: What reads a file.
        others: Files that may have the same content as one that is not where it was.
        names: What a parameter is called in messages.

    Yields:
        Parameter, its theta_0, on the CPU, in the dtype that it was taken in, and the reference with the file read.

    Raises:
        AnchorFileError: If a file is missing or has another content, and no other has its content.
    """
    files: defaultdict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for param, reference in references.items():
        files[reference.file, reference.sha256].append(param)
    others = list(others)
    for (file, digest), params in files.items():
        found = _found(file, digest, others)
        tensors = tensors_of(read(found, is_mappable(found)))
        for param in params:
            reference = references[param]
            if reference.key not in tensors or tensors[reference.key].shape != param.shape:
                raise AnchorFileError(
                    f'theta_0 of {names(param)} is to be {"/".join(reference.key)} of {found}, which has no such '
                    f'tensor of shape {tuple(param.shape)}: load the checkpoint of this model, not '
                    'sharded by FSDP'
                )
            # A copy: what is kept must not change with the file.
            value = tensors[reference.key].to(getattr(torch, reference.dtype), copy=True)
            yield param, value, replace(reference, file=found)


def _found(file: str, digest: str, others: Iterable[str]) -> str:
    said = []
    for path in (file, *others):
        try:
            here = digest_of(path)
        except (OSError, ValueError) as error:
            said.append(f'{path}: {getattr(error, "strerror", None) or error}')
            continue
        if here == digest:
            return path
        said.append(f'{path} has SHA-256 {here}')
    raise AnchorFileError(
        f'the checkpoint does not hold theta_0 but says that it is in {file}, whose SHA-256 was {digest}. '
        f'{"; ".join(said)}. Restore that file, or name a copy of it elsewhere: anchor=FILE'
    )
