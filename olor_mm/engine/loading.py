"""Loading MMEngine's checkpoints with ``weights_only`` on.

torch >= 2.6 loads with ``weights_only=True``, and then refuses the checkpoints that MMEngine itself saves: their
message hub pickles HistoryBuffer objects, numpy arrays and ``builtins.getattr``. Turning ``weights_only`` off would run
any code that a file brings. Here exactly what MMEngine's files need is allowed, for the time of one load, and
``getattr`` only as far as HistoryBuffer's own methods.
"""

import os.path as osp
import pickle
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from .integrity import damage

__all__ = [
    'BrokenCheckpointError',
    'UnsafeCheckpointError',
    'last_loaded',
    'load_from_http',
    'load_from_local',
    'register_safe_loader',
]

_last_loaded: list[str] = []

#: What torch says of the global or operation that it refuses.
_REFUSED = re.compile(r'GLOBAL \S+|Unsupported [^.\n]+|getattr\([^\n]+|Trying to [^.\n]+')


class BrokenCheckpointError(RuntimeError):
    """A file is no checkpoint, or an incomplete one."""


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
        filename: The file, of ``torch.save`` or ``.safetensors``; '~' is the home folder.
        map_location: As for ``torch.load``. Defaults to None.

    Returns:
        What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the file holds anything but tensors, plain Python data and MMEngine's own records.
        BrokenCheckpointError: If it is no checkpoint, an incomplete one, or one that was changed after it was written.
    """
    file = osp.expanduser(filename)
    if not osp.isfile(file):
        raise FileNotFoundError(f'{filename}: no such checkpoint file')
    checkpoint = _read(file, filename, map_location)
    _last_loaded[:] = [filename]
    return checkpoint


def _read(file: str, name: str, map_location: Any) -> Any:
    if file.endswith('.safetensors'):
        return {'state_dict': _read_safetensors(file, name)}
    found = damage(file)
    if found is not None:
        raise BrokenCheckpointError(
            f'{name} is no checkpoint of torch.save, or an incomplete one: {found}; nothing of it was loaded; give '
            'another checkpoint'
        )
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise BrokenCheckpointError(f'{name} is no checkpoint of torch.save, or an incomplete one') from error
        raise UnsafeCheckpointError(
            f'{name} was not loaded, and no code of it was run: it holds more than weights and the records of MMEngine '
            f'({refused[0]}). If you trust its source, take the weights out of it in a process of its own, and save '
            "them anew as {'state_dict': ...}"
        ) from None
    except (AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        # What torch raises for a file that was cut off, or never was one, depends on where it stops making sense.
        raise BrokenCheckpointError(
            f'{name} is no checkpoint of torch.save, or an incomplete one ({type(error).__name__}: {error})'
        ) from error


def _read_safetensors(file: str, name: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{name} needs the package safetensors: pip install safetensors') from error
    return load_file(file)


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """Download a checkpoint into torch's hub cache, once, and load it as :func:`load_from_local` does.

    Args:
        filename: Address.
        map_location: As for ``torch.load``. Defaults to None.
        model_dir: Folder of the cache. Defaults to torch's.

    Returns:
        What was saved.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    file = folder / osp.basename(urlparse(filename).path)
    rank, world_size = get_dist_info()
    if rank == 0:
        _download(filename, file)
    if world_size > 1:
        barrier()
        # On other machines of the run the file is not there yet.
        _download(filename, file)
    checkpoint = _read(str(file), filename, map_location)
    _last_loaded[:] = [filename]
    return checkpoint


def _download(address: str, file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(file))


def register_safe_loader() -> bool:
    """Make these MMEngine's loaders of local files and of addresses, by its public extension point.

    Names such as ``torchvision://resnet50`` are resolved and loaded by MMEngine itself, as before.

    Returns:
        Whether it was done: not on a torch whose ``weights_only`` has no allow-list for single functions (before 2.5),
        where MMEngine's own loaders stay.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        return False
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=['http://', 'https://'], loader=load_from_http, force=True)
    return True
