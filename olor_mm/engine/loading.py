"""Loading MMEngine's checkpoints with ``weights_only`` on.

torch >= 2.6 loads with ``weights_only=True``, and then refuses the checkpoints that MMEngine itself saves: their
message hub pickles HistoryBuffer objects, numpy arrays and ``builtins.getattr``. Turning ``weights_only`` off would run
any code that a file brings. Here exactly what MMEngine's files need is allowed, while one is loaded (``_records``).
Every scheme of MMEngine's ends here, so that no address is read in another way than a file.
"""

import difflib
import importlib
import io
import os
import os.path as osp
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get
from mmengine.runner import (
    CheckpointLoader,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from olor_mm.rollback._files import BrokenCheckpointError, UnsafeCheckpointError, read_safetensors, read_torch

from ._records import BUILDABLE, NAMES

__all__ = [
    'BrokenCheckpointError',
    'UnsafeCheckpointError',
    'last_loaded',
    'load_from_http',
    'load_from_local',
    'local_file',
    'read_weights',
    'register_safe_loader',
]

_last_loaded: list[str] = []
#: Address to the copy of it on this machine.
_files: dict[str, str] = {}


def last_loaded() -> str | None:
    """The file that was loaded last in this process, None before the first."""
    return _last_loaded[0] if _last_loaded else None


def local_file(source: str) -> str | None:
    """The file on this machine behind what was loaded, or is to be: a path or an address; None where there is none."""
    file = _files.get(source, '' if '://' in source else osp.abspath(osp.expanduser(source)))
    return file if osp.isfile(file) else None


def read_weights(file: str, mapped: bool) -> Any:
    """Read a checkpoint file of this machine as :func:`load_from_local` does, for what is in it alone.

    Args:
        file: The file.
        mapped: Whether its tensors are to be maps of it, where that can be.

    Raises:
        UnsafeCheckpointError: As :func:`load_from_local`.
        BrokenCheckpointError: As :func:`load_from_local`.
    """
    return read_safetensors(file, file) if file.endswith('.safetensors') else _read(file, file, 'cpu', mapped)


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
    if osp.isdir(file):
        raise FileNotFoundError(
            f'{filename} is a folder, not a file of weights. If it is one of shards, as FSDP saves them with '
            "state_dict_cfg='local', it takes runner_type='FlexibleRunner' and "
            "strategy=dict(type='olor_mm.FSDPStrategy') to read it"
        )
    if not osp.isfile(file):
        raise FileNotFoundError(f'{filename}: no such checkpoint file')
    return _remember(_read(file, filename, map_location), filename)


def _remember(checkpoint: Any, source: str) -> Any:
    _last_loaded[:] = [source]
    return checkpoint


def _read(file: str | io.BytesIO, name: str, map_location: Any, mapped: bool = False) -> Any:
    if isinstance(file, str) and file.endswith('.safetensors'):
        return {'state_dict': read_safetensors(file, name)}
    return read_torch(file, name, map_location, NAMES, BUILDABLE, mapped)


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None) -> Any:
    """Download a checkpoint into torch's hub cache, once, and load it as :func:`load_from_local` does.

    Args:
        filename: Address.
        map_location: As for ``torch.load``. Defaults to None.
        model_dir: Folder of the cache. Defaults to torch's.

    Returns:
        What was saved.

    Raises:
        URLError: If it cannot be downloaded.
        UnsafeCheckpointError: As :func:`load_from_local`.
        BrokenCheckpointError: As :func:`load_from_local`; it names the file in the cache.
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
    try:
        checkpoint = _remember(_read(str(file), filename, map_location), filename)
        _files[filename] = str(file.absolute())
        return checkpoint
    except BrokenCheckpointError as error:
        raise BrokenCheckpointError(
            f'{error}. What was read is the copy that was downloaded to {file}: remove that to download it again'
        ) from error


def _download(address: str, file: Path) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(file))


def _load_as(name: str, address: str, map_location: Any) -> Any:
    """What an address leads to, known by a short name too."""
    checkpoint = load_from_http(address, map_location)
    if address in _files:
        _files[name] = _files[address]
    return checkpoint


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load ``torchvision://<name>`` (or ``modelzoo://<name>``), as MMEngine's loader but for how the file is read."""
    return _load_as(filename, _address(filename, get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Load ``open-mmlab://<name>`` (or ``openmmlab://<name>``), as MMEngine's loader but for how the file is read."""
    scheme, _, model = filename.partition('://')
    address = _address(f'{scheme}://{get_deprecated_model_names().get(model, model)}', get_external_models())
    if address.startswith(('http://', 'https://')):
        return _load_as(filename, address, map_location)
    home = osp.expanduser(os.getenv('MMENGINE_HOME', osp.join(os.getenv('XDG_CACHE_HOME', '~/.cache'), 'mmengine')))
    return load_from_local(osp.join(home, address), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Load the backbone of ``mmcls://<name>``, as MMEngine's loader but for how the file is read."""
    checkpoint = _load_as(filename, _address(filename, get_mmcls_models()), map_location)
    state = checkpoint.get('state_dict', checkpoint)
    return {'state_dict': {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}}


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Load ``s3://...`` or ``petrel://...`` through MMEngine's file client."""
    content = io.BytesIO(get(filename, backend_args={'backend': 'petrel'}))
    return _remember(_read(content, filename, map_location), filename)


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Load ``pavi://...`` through the package of that service."""
    try:
        modelcloud = importlib.import_module('pavi.modelcloud')
    except ImportError as error:
        raise ImportError(
            f'{filename} needs the package pavi: give a file or an address of https:// instead'
        ) from error
    model = modelcloud.get(filename.removeprefix('pavi://'))
    with tempfile.TemporaryDirectory() as folder:
        file = osp.join(folder, osp.basename(model.name))
        model.download(file)
        return _remember(_read(file, filename, map_location), filename)


def _address(filename: str, known: Mapping[str, str]) -> str:
    name = filename.partition('://')[2]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f'did you mean {", ".join(near)}?' if near else f'it knows {len(known)} others'
        raise FileNotFoundError(f'{filename}: MMEngine knows no checkpoint of that name; {hint}')
    return known[name]


#: Prefix (a regular expression, as MMEngine has them) to loader.
_LOADERS: dict[str, Callable[..., Any]] = {
    '': load_from_local,
    'http://': load_from_http,
    'https://': load_from_http,
    'modelzoo://': load_from_torchvision,
    'torchvision://': load_from_torchvision,
    'open-mmlab://': load_from_openmmlab,
    'openmmlab://': load_from_openmmlab,
    'mmcls://': load_from_mmcls,
    'pavi://': load_from_pavi,
    r'(\S+\:)?s3://': load_from_ceph,
    r'(\S+\:)?petrel://': load_from_ceph,
}


def register_safe_loader() -> None:
    """Make these MMEngine's loaders of files and of every scheme that it knows, by its public extension point."""
    for prefix, loader in _LOADERS.items():
        CheckpointLoader.register_scheme(prefixes=prefix, loader=loader, force=True)
