"""Decodes every image to its last pixel, in several processes, and says what is wrong with those that fail."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .records import Record

__all__ = ['Checked', 'check_images', 'check_mask']

_CHUNK = 32
# Chunks in flight for each worker: enough to keep it busy, and few enough that a million images are not queued.
_AHEAD = 4
# OpenCV, which reads the images of a training, reads these in every version; of others it is asked.
_FORMATS = ('BMP', 'JPEG', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP')
# Modes (Pillow's) of more than 16 bits: no photographs.
_WRONG_MODES = ('F', 'I')
_MASK_MODES = ('L', 'P')


class Checked(NamedTuple):
    """What came out of a chunk of images.

    Args:
        seen: How many were looked at.
        bad: Path and reason of each that is corrupt.
        values: Bit ``v`` is set where a mask has the value ``v``.
    """

    seen: int
    bad: list[tuple[str, str]]
    values: int


def check_images(records: Sequence[Record], root: str, mask_limit: int, workers: int) -> Iterator[Checked]:
    """Decode images, and the masks of those that have one.

    Args:
        records: The images.
        root: The folder that their paths are relative to.
        mask_limit: The largest value that a mask may have.
        workers: Processes; 0 and 1 stand for none but this one.

    Yields:
        The outcome of some of the images, in no particular order.

    Raises:
        InputError: If a process was killed from outside.
    """
    chunks = (records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK))
    jobs = ((root, chunk, mask_limit) for chunk in chunks)
    workers = min(workers, -(-len(records) // _CHUNK))
    if workers <= 1:
        yield from itertools.starmap(_check_chunk, jobs)
        return
    # Forked processes are there at once; spawned ones would import all of the tool anew, torch included.
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else None)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    try:
        yield from _in_parallel(pool, jobs, _AHEAD * workers)
    except BrokenProcessPool as error:
        raise InputError(
            'a process that decodes images was killed, probably for want of memory',
            f'it was one of {workers}; take fewer: --workers {workers // 2}',
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_mask(path: str, size: tuple[int, int] | None, limit: int) -> tuple[str | None, int]:
    """Why a segmentation mask cannot be used, and which values it has.

    Args:
        path: The mask.
        size: Width and height of its image; None where that could not be read.
        limit: The largest value it may have.

    Returns:
        The reason or None; an integer whose bit ``v`` is set where the mask has the value ``v``.
    """
    reason, image = _decode(path)
    if image is None:
        return reason, 0
    if image.mode not in _MASK_MODES:
        return f'wrong mode: {image.mode}, but a mask has one channel of 8 bits (L or P)', 0
    if size is not None and image.size != size:
        return f'{image.width}x{image.height} pixels, but its image has {size[0]}x{size[1]}', 0
    values = [value for value, pixels in enumerate(image.histogram()) if pixels]
    if values[-1] > limit:
        return f'value {values[-1]}, but the largest class is {limit}', 0
    return None, sum(1 << value for value in values)


def _decode(path: str) -> tuple[str | None, Image.Image | None]:
    try:
        if not os.path.getsize(path):
            return 'empty: 0 bytes', None
        with warnings.catch_warnings():
            # Large photographs are no attack, and damaged metadata does not matter.
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                image.load()
    except Exception as error:  # on damaged data Pillow's decoders raise anything, SyntaxError and struct.error too
        return _reason(error), None
    if image.mode in _WRONG_MODES:
        return f'wrong mode: {image.mode}, which is no photograph', None
    if image.format not in _FORMATS and not _opencv_reads(path):
        return f'format {image.format}, which OpenCV does not read', None
    return None, image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not an image'
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f'cannot be decoded: {text}'


def _opencv_reads(path: str) -> bool:
    import cv2

    with open(path, 'rb') as stream:
        return cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_COLOR) is not None


def _check_chunk(root: str, records: Sequence[Record], mask_limit: int) -> Checked:
    bad, values = [], 0
    for _, path, _, mask in records:
        reason, image = _decode(os.path.join(root, path))
        if reason:
            bad.append((path, reason))
        if mask:
            reason, found = check_mask(os.path.join(root, mask), image.size if image else None, mask_limit)
            values |= found
            if reason:
                bad.append((mask, reason))
    return Checked(len(records), bad, values)


def _in_parallel(pool: ProcessPoolExecutor, jobs: Iterator[tuple[Any, ...]], ahead: int) -> Iterator[Checked]:
    running: set[Future[Checked]] = {pool.submit(_check_chunk, *job) for job in itertools.islice(jobs, ahead)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(_check_chunk, *job) for job in itertools.islice(jobs, len(done))}
        for future in done:
            yield future.result()


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
