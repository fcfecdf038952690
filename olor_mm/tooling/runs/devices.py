"""What each of several runs side by side is given of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from ..errors import InputError

__all__ = ['shares', 'visible_devices']


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        return [name.strip() for name in named.split(',') if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def shares(workers: int, devices: Sequence[object] | None = None, processes: int = 1) -> list[dict[str, str]]:
    """The environment variables of each of several workers.

    Args:
        workers: How many runs go on side by side.
        devices: GPUs to share out, as CUDA_VISIBLE_DEVICES names them; () for none. Defaults to None: all that are
            visible.
        processes: How many processes each run has. Defaults to 1.

    Returns:
        One dict for each worker. GPUs are dealt out in turn; workers without one share the cores of the CPU out,
        unless OMP_NUM_THREADS is set.

    Raises:
        InputError: If there are no workers, a device is named twice, or a run has more processes than there are GPUs.
    """
    for option, value in (('workers', workers), ('processes of a run', processes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f'{option}={value!r} must be a whole number of 1 or more')
    given = visible_devices() if devices is None else [str(device) for device in devices]
    if len(set(given)) < len(given):
        raise InputError(f'devices={",".join(given)} names a GPU twice', 'more workers than GPUs share them')
    if 0 < len(given) < processes:
        raise InputError(
            f'a run of {processes} processes needs {processes} GPUs, but there are {len(given)}: {", ".join(given)}'
        )
    if given:
        sets = [given[i : i + processes] for i in range(0, len(given) - processes + 1, processes)]
        return [{'CUDA_VISIBLE_DEVICES': ','.join(sets[worker % len(sets)])} for worker in range(workers)]
    hidden = {} if devices is None else {'CUDA_VISIBLE_DEVICES': ''}
    if workers * processes > 1 and not os.environ.get('OMP_NUM_THREADS'):
        hidden['OMP_NUM_THREADS'] = str(max(1, _cores() // (workers * processes)))
    return [dict(hidden) for _ in range(workers)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
