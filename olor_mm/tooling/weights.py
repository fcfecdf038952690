"""The checkpoints that a run reads: which there are, whether they can be had, and what is in one."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.runner import CheckpointLoader

from ..engine.vit_checkpoints import plain_address
from ..rollback._integrity import ZIP
from .errors import InputError

__all__ = ['Shapes', 'check_file', 'check_weights', 'is_pretrained', 'shapes_in_file', 'weight_files']

Shapes = dict[str, tuple[int, ...]]

_TIMEOUT = 20  # seconds until a host counts as out of reach


def weight_files(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every checkpoint that a run reads before training, as (key of the config, file or address)."""
    if cfg.get('load_from'):
        yield 'load_from', cfg['load_from']
    yield from _walk_weights(cfg.get('model'), 'model')


def check_weights(cfg: Mapping[str, Any]) -> None:
    """See that every checkpoint a run reads is there: on the disk, downloaded before, or within reach.

    Only rank 0 asks the network.

    Raises:
        InputError: If a file is missing or a download is not possible.
    """
    for where, named in weight_files(cfg):
        address = plain_address(named)
        if where == 'load_from' and address != named:
            raise InputError(
                f'load_from={named!r} would load nothing: translated names are those of a backbone, not of a model',
                f'set it with: --pretrained {address} or --cfg-options model.backbone.init_cfg.checkpoint={named}',
            )
        option = 'set it with: --pretrained FILE' if where != 'load_from' else 'set it with: --cfg-options'
        option += f' {"" if where == "load_from" else "or --cfg-options "}{where}=FILE'
        if '://' not in address:
            check_file(address, f'the file of {where}', option)
        elif address.startswith(('http://', 'https://')) and int(os.environ.get('RANK', 0)) == 0:
            _check_download(where, address, option)


def check_file(file: str, what: str, *details: str) -> None:
    """See that a checkpoint is there and whole; an address with a scheme is left to whoever loads it.

    Args:
        file: A path or an address.
        what: What it is, for the message: 'the checkpoint to test'.
        details: Further lines of the message: which option sets it.

    Raises:
        InputError: If the file is missing, or was cut off: by a full disk, or by a run killed while it saved. A folder
            of shards, as FSDP saves them, is looked at shard by shard.
    """
    file = plain_address(file)
    if '://' in file:
        return
    path = Path(file).expanduser()
    shards = sorted(path.glob('rank*.pth')) if path.is_dir() else []
    for shard in shards:
        check_file(str(shard), what, *details)
    if shards:
        return
    if not path.is_file():
        wrong = 'a folder' if path.is_dir() else 'no file' if path.exists() else 'missing'
        raise InputError(f'{what} is {wrong}', f'looked for: {path.absolute()}', *details)
    with path.open('rb') as stream:
        head = stream.read(len(ZIP))
    # torch's files are zip archives, whose table of contents comes last.
    if not head or (head == ZIP and not zipfile.is_zipfile(path)):
        raise InputError(f'{what} is incomplete: its end is missing', f'looked at: {path.absolute()}', *details)


def _check_download(where: str, url: str, option: str) -> None:
    cached = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
    if cached.is_file():
        return
    try:
        urllib.request.urlopen(url, timeout=_TIMEOUT).close()
    except (urllib.error.URLError, OSError) as error:
        raise InputError(
            f'the pre-trained weights of {where} cannot be downloaded: {getattr(error, "reason", None) or error}',
            f'from: {url}',
            f'nor are they here from an earlier download: {cached}',
            'fetch the file on a machine with a network, then either put it there or',
            option,
        ) from error


def _walk_weights(node: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        if is_pretrained(node) and isinstance(node.get('checkpoint'), str):
            yield f'{where}.checkpoint', node['checkpoint']
        for key in node:
            if key == 'pretrained' and isinstance(node[key], str):
                yield f'{where}.pretrained', node[key]
            yield from _walk_weights(node[key], f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _walk_weights(item, f'{where}.{index}')


def is_pretrained(node: Mapping[str, Any]) -> bool:
    """Whether a part of ``init_cfg`` loads a checkpoint."""
    kind = node.get('type')
    return kind == 'Pretrained' or getattr(kind, '__name__', '') == 'PretrainedInit'


def shapes_in_file(file: str, option: str = '--pretrained') -> Shapes:
    """Names and shapes of the tensors that MMEngine would take from the file of an option.

    Raises:
        InputError: If the file is missing or is no checkpoint.
    """
    check_file(file, f'the file of {option}')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(file, map_location='cpu', logger='silent')
    except (UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split('\n')[0]
        raise InputError(f'{option} {file} cannot be read as a checkpoint', reason) from error
    if isinstance(checkpoint, Mapping):
        checkpoint = checkpoint.get('state_dict', checkpoint)
    if not isinstance(checkpoint, Mapping):
        raise InputError(f'{option} {file} holds a {type(checkpoint).__name__}, not weights by name')
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    return {name: tuple(value.shape) for name, value in tensors.items() if isinstance(name, str)}
