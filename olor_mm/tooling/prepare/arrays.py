"""Data sets whose images lie in arrays: CIFAR-100 (pickles) and SVHN (MATLAB 5 files)."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy import io

from .findings import Findings
from .records import Record

__all__ = ['broken_mat', 'check_digests', 'cifar100', 'svhn']

_BLOCK = 1 << 20
_MAT_HEADER = 128
_COMPRESSED = 15  # miCOMPRESSED, the type of an element that zlib wrote
_NUMBER = re.compile(r'[biuf][0-9]{1,2}')
_ARRAY = object()  # stands for numpy.ndarray, which a pickle only names


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'it asks for the encoding {encoding!r:.40}, which no array of images needs')
    return text.encode('latin1')


def _reconstruct(kind: object, *_: Any) -> np.ndarray:
    if kind is not _ARRAY:
        raise pickle.UnpicklingError('it asks for an array of a type of its own')
    return np.empty(0, np.int8)


def _dtype(code: Any, *_: Any) -> np.dtype:
    # Not a copy: copies take a state from the file, which may call numbers pointers.
    if not isinstance(code, str) or not _NUMBER.fullmatch(code):
        raise pickle.UnpicklingError(f'it asks for an array of {code!r:.40}, which is no number')
    return np.dtype(code)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype)[0]


# What stands for the names that numpy's arrays and Python 2's strings have in all versions: no more than they need.
_SAFE: dict[tuple[str, str], Any] = {
    ('_codecs', 'encode'): _encode,
    ('numpy', 'ndarray'): _ARRAY,
    ('numpy', 'dtype'): _dtype,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _reconstruct for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): _scalar for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _frombuffer for core in ('core', '_core')},
}


class _SafeUnpickler(pickle.Unpickler):
    """A pickle may run anything: only what an array needs is let through."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no array of images needs')
        return _SAFE[module, name]


def cifar100(root: Path, findings: Findings) -> Iterator[Record]:
    """The labels of ``cifar-100-python/{train,test}``, one for every image of the array beside them."""
    for split in ('train', 'test'):
        file = root / 'cifar-100-python' / split
        if not file.is_file():
            continue
        try:
            with file.open('rb') as stream:
                content = _SafeUnpickler(stream, encoding='latin1').load()
            images, labels = np.asarray(content['data']), content['fine_labels']
        except Exception as error:  # a damaged pickle raises anything
            findings.problem('unreadable files', f'cifar-100-python/{split}: {type(error).__name__}: {error}')
            continue
        if images.shape != (len(labels), 3 * 32 * 32) or images.dtype != np.uint8:
            text = f'cifar-100-python/{split}: {images.dtype} {images.shape} for {len(labels)} labels'
            findings.problem('corrupt images', f'{text}; expected uint8, (labels, 3072)')
        for label in labels:
            yield Record(split, '', int(label))


def svhn(root: Path, findings: Findings) -> Iterator[Record]:
    """The labels of ``{train,test,extra}_32x32.mat``, one for every image; 10 stands for the digit 0."""
    for split in ('train', 'test', 'extra'):
        file = root / f'{split}_32x32.mat'
        if not file.is_file():
            continue
        try:
            shapes = {name: (shape, kind) for name, shape, kind in io.whosmat(file)}
            # The images are passed over: `extra` has 1.6 GB of them.
            labels = io.loadmat(file, variable_names=['y'])['y'].reshape(-1)
            shape, kind = shapes['X']
        except Exception as error:  # scipy raises whatever a damaged file leads it to
            findings.problem('unreadable files', f'{file.name}: {type(error).__name__}: {error}')
            continue
        if shape != (32, 32, 3, len(labels)) or kind != 'uint8':
            text = f'{file.name}: X is {kind} {shape} for {len(labels)} labels; expected uint8, (32, 32, 3, labels)'
            findings.problem('corrupt images', text)
        for label in labels.tolist():
            yield Record(split, '', 0 if label == 10 else label or -1)


def check_digests(root: Path, digests: Mapping[str, str], findings: Findings) -> None:
    """Compare files with the published MD5 sums, which name the bytes and keep no secret."""
    for name, expected in digests.items():
        if not (root / name).is_file():
            continue
        with (root / name).open('rb') as stream:
            digest = hashlib.md5(usedforsecurity=False)
            while block := stream.read(_BLOCK):
                digest.update(block)
        if digest.hexdigest() != expected:
            text = f'{name}: MD5 {digest.hexdigest()}, published is {expected}; mmpretrain refuses it, download it anew'
            findings.problem('corrupt images', text)


def broken_mat(file: Path) -> str | None:
    """Why a MATLAB 5 file is not whole, or None if it is; it is read once, and never held in memory.

    zlib's own check sums tell of a flipped bit, the lengths of the elements of a missing end.
    """
    with file.open('rb') as stream:
        stream.seek(0, 2)
        end = stream.tell()
        order = _byte_order(stream)
        if not order:
            return 'not a MATLAB 5 file'
        place = _MAT_HEADER
        while place < end:
            stream.seek(place)
            head = stream.read(8)
            kind, length = struct.unpack(f'{order}II', head) if len(head) == 8 else (0, 0)
            place += 8 + length
            if place > end or len(head) < 8:
                return f'its end is missing: {end:,} bytes, at least {max(place, end + 1):,} expected'
            reason = _broken_stream(stream, length) if kind == _COMPRESSED else None
            if reason:
                return reason
    return None


def _byte_order(stream: BinaryIO) -> str:
    stream.seek(_MAT_HEADER - 2)
    return {b'IM': '<', b'MI': '>'}.get(stream.read(2), '')


def _broken_stream(stream: BinaryIO, length: int) -> str | None:
    decompressor = zlib.decompressobj()
    while block := stream.read(min(_BLOCK, length)):
        length -= len(block)
        try:
            decompressor.decompress(block)
        except zlib.error as error:
            return f'damaged: {error}'
    return None if decompressor.eof else 'damaged: a compressed array ends too soon'
