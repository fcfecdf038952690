"""Whether a file is the checkpoint of a run, which training can go on from, and not weights alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from ..engine.loading import load_from_local
from .errors import InputError

__all__ = ['check_run_checkpoint']


def check_run_checkpoint(file: str, anchor: str | None = None, needs_theta_0: bool = False) -> None:
    """See that a file holds what a resume reads, before a model is built. Folders and addresses are not looked at.

    One process of each machine looks: the file is read into main memory once more for it.

    Args:
        file: The file of ``--resume``.
        anchor: The file of ``optim_wrapper.rollback.anchor``, if one is named. Defaults to None.
        needs_theta_0: Whether the run has a rollback. Defaults to False.

    Raises:
        InputError: If something is missing in it, or is not what MMEngine saves.
    """
    path = Path(file).expanduser()
    if not path.is_file() or int(os.environ.get('LOCAL_RANK', 0)) > 0:
        return
    checkpoint = load_from_local(str(path), 'cpu')
    wrong = _wrong(checkpoint)
    if wrong is not None:
        raise InputError(
            f'{file} is not the checkpoint of a run: {wrong}',
            f'for weights: --cfg-options load_from={file}, without --resume',
        )
    absent = [name for name in _files(checkpoint.get('optimizer')) if not Path(name).is_file()] if needs_theta_0 else []
    if absent and anchor is None:
        raise InputError(
            f'{file} does not hold the pre-trained weights (theta_0) but names their file, which is missing',
            f'looked for: {absent[0]}',
            'restore it, or name a copy: --cfg-options optim_wrapper.rollback.anchor=FILE',
        )


def _files(state: Any) -> list[str]:
    """The files that an optimizer's state refers to for theta_0; of several optimizers, all."""
    if not isinstance(state, Mapping):
        return []
    if 'param_groups' not in state:
        return [file for one in state.values() for file in _files(one)]
    return list((state.get('rollback') or {}).get('files') or ())


def _wrong(checkpoint: Any) -> str | None:
    if not isinstance(checkpoint, Mapping):
        return f'it holds a {type(checkpoint).__name__}'
    for key in ('meta', 'message_hub', 'state_dict'):
        if key not in checkpoint:
            return f'no {key!r}'
        if not isinstance(checkpoint[key], Mapping):
            return f'{key!r} is a {type(checkpoint[key]).__name__}'
    for key in ('epoch', 'iter'):
        value = checkpoint['meta'].get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return f'meta.{key} is {value!r}, not a whole number of 0 or more'
    return _wrong_optimizer(checkpoint.get('optimizer'))


def _wrong_optimizer(state: Any) -> str | None:
    if state is None:
        return None
    if not isinstance(state, Mapping):
        return f"'optimizer' is a {type(state).__name__}"
    if 'param_groups' not in state:
        # Several optimizers, by name.
        found = (_wrong_optimizer(one) for one in state.values() if isinstance(one, Mapping) and 'param_groups' in one)
        return next((wrong for wrong in found if wrong is not None), None)
    groups = state['param_groups']
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        return "'optimizer' has no list of parameter groups"
    for group in groups:
        if 'lr' in group and (not isinstance(group['lr'], (Real, torch.Tensor)) or isinstance(group['lr'], bool)):
            return f'a learning rate in it is {group["lr"]!r}'
    return _wrong_record(state.get('rollback'))


def _wrong_record(record: Any) -> str | None:
    """Of what the rollback saves beside the optimizer's state; older checkpoints have the names alone."""
    if record is None:
        return None
    kept = record if isinstance(record, Mapping) else {}
    lists = [(kept.get('names'), str), (kept.get('levels', []), Real)]
    right = all(isinstance(found, list) and all(isinstance(item, kind) for item in found) for found, kind in lists)
    files = kept.get('files', {})
    right = right and isinstance(files, Mapping) and all(isinstance(file, str) for file in files)
    if right and isinstance(kept.get('settings', {}), Mapping):
        return None
    return f"'optimizer.rollback' is {record!r:.80}, not the record of a run with rollback"
