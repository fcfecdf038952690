"""What MMEngine writes into a checkpoint besides weights, and what stands for it while one is read.

MMEngine's message hub pickles HistoryBuffer objects, with numpy arrays, their dtypes and ``builtins.getattr`` in them.
None of these is let in as it is. ``getattr`` reaches anything. A HistoryBuffer merges the functions that a file brings
into those of all buffers of the process. A numpy dtype takes a state that calls its numbers pointers. So each name
stands for the little of it that a checkpoint needs.
"""

import pickle
import re
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

__all__ = ['BUILDABLE', 'NAMES']

_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
#: Codes of numbers, as numpy writes them: kind and bytes.
_NUMBER = re.compile(r'[biufc][0-9]{1,2}')


class _SavedHistory(HistoryBuffer):
    """Becomes a HistoryBuffer once it has its numbers; the functions in the file give way to those of the class."""

    def __init__(self) -> None:
        raise pickle.UnpicklingError('Trying to call HistoryBuffer')

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError('Trying to give a HistoryBuffer what it does not keep')
        kept = {key: value for key, value in state.items() if key != 'statistics_methods'}
        if any(hasattr(HistoryBuffer, key) or callable(value) for key, value in kept.items()):
            raise pickle.UnpicklingError('Trying to give a HistoryBuffer what it does not keep')
        if not all(isinstance(kept.get(key), np.ndarray) for key in ('_log_history', '_count_history')):
            raise pickle.UnpicklingError('Trying to give a HistoryBuffer something else than numbers')
        self.__dict__.update(kept)
        self.__class__ = HistoryBuffer  # type: ignore[assignment]
        self._set_default_statistics()


def _getattr(obj: Any, name: str) -> Any:
    """Stands for ``builtins.getattr``: HistoryBuffer's own statistics, and nothing else."""
    if obj is _SavedHistory and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'getattr({obj!r:.100}, {name!r:.100}) is not needed by any checkpoint of MMEngine')


class _Array:
    """Stands for ``numpy.ndarray``, as which it is only named."""

    def __new__(cls, *_: Any) -> '_Array':
        raise pickle.UnpicklingError('Trying to call numpy.ndarray')


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, that takes shape, dtype and content as its state."""
    if kind is not _Array:
        raise pickle.UnpicklingError(f'Trying to make an array of type {kind!r:.100}')
    return np.empty(0, dtype=np.int8)


def _dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype:
    """numpy's own dtype of a number, not a copy: only copies take the state that a file brings.

    Such a state may declare a float to be a pointer to an object, which numpy then follows. That of an honest file says
    what the dtype is anyway, but for the order of bytes of another kind of machine.
    """
    if not isinstance(code, str) or not _NUMBER.fullmatch(code):
        raise pickle.UnpicklingError(f'Trying to make an array of {code!r:.100}, which is no number')
    return np.dtype(code)


def _scalar(dtype: Any, data: Any) -> Any:
    """One number of numpy's."""
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError('Trying to make a number of something else')
    return np.frombuffer(data, dtype)[0]


#: Full name in the file to what stands for it, for numpy 1 and 2.
NAMES: dict[str, Any] = {
    _HISTORY: _SavedHistory,
    'builtins.getattr': _getattr,
    'numpy.ndarray': _Array,
    'numpy.dtype': _dtype,
    **{f'numpy.{core}.multiarray._reconstruct': _reconstruct for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}

#: What may be given a state; a dtype ignores it.
BUILDABLE: tuple[type, ...] = (
    _SavedHistory,
    np.ndarray,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefdgFDG'},
)
