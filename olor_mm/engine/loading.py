"""Loading MMEngine's checkpoints with ``weights_only`` on.

torch >= 2.6 loads with ``weights_only=True``, and then refuses the checkpoints that MMEngine itself saves: their
message hub pickles HistoryBuffer objects, numpy arrays and ``builtins.getattr``. Turning ``weights_only`` off would run
any code that a file brings. Here exactly what MMEngine's files need is allowed, for the time of one load, and
``getattr`` only as far as HistoryBuffer's own methods.
"""

import os.path as osp
import pickle
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

__all__ = ['UnsafeCheckpointError', 'last_loaded', 'load_from_local', 'register_safe_loader']

_last_loaded: list[str] = []


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint file asks for more than weights and MMEngine's own records; nothing of it was run."""


def last_loaded() -> str | None:
    """The file that was loaded last in this process, None before the first."""
    return _last_loaded[0] if _last_loaded else None


def _getattr_of_history_buffer(obj: Any, name: str) -> Any:
    """Stands in for ``builtins.getattr`` while a checkpoint is read."""
    if obj is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'getattr({obj!r}, {name!r}) is not needed by any checkpoint of MMEngine')


def _allowed() -> list[Any]:
    """What MMEngine's own checkpoints name, under the names of numpy 1 and of numpy 2."""
    multiarray = (getattr(np, '_core', None) or np.core).multiarray
    allowed: list[Any] = [HistoryBuffer, (_getattr_of_history_buffer, 'builtins.getattr'), np.ndarray, np.dtype]
    for package in ('numpy.core', 'numpy._core'):
        allowed.append((multiarray._reconstruct, f'{package}.multiarray._reconstruct'))
        allowed.append((multiarray.scalar, f'{package}.multiarray.scalar'))
    numbers = (np.bool_, *(np.dtype(code).type for code in 'bBhHiIlLqQefd'))
    allowed.extend({type(np.dtype(number)) for number in numbers} - {np.dtype})
    return allowed


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a checkpoint file without running any code of it.

    Args:
        filename: The file; '~' is the home folder.
        map_location: As for ``torch.load``. Defaults to None.

    Returns:
        What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the file holds anything but tensors, plain Python data and MMEngine's own records.
    """
    file = osp.expanduser(filename)
    if not osp.isfile(file):
        raise FileNotFoundError(f'{filename}: no such checkpoint file')
    try:
        with torch.serialization.safe_globals(_allowed()):
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split('WeightsUnpickler error: ')[-1].split('\n')[0].strip()
        raise UnsafeCheckpointError(
            f'{filename} was not loaded, and no code of it was run: it holds more than weights and the records of '
            f'MMEngine ({reason}). If you trust its source, load it in a process of its own with '
            "torch.load(..., weights_only=False) and save what you need of it, such as {'state_dict': ...}, anew"
        ) from None
    _last_loaded[:] = [filename]
    return checkpoint


def register_safe_loader() -> bool:
    """Make :func:`load_from_local` MMEngine's loader of local files, by its public extension point.

    Returns:
        Whether it was done: not on a torch whose ``weights_only`` has no allow-list for single functions (before 2.5),
        where MMEngine's own loader stays.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        return False
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    return True
