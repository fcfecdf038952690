"""From a command line to a bench."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from .. import launch
from ..errors import InputError
from .bench import Bench
from .progress import Progress

__all__ = ['begin', 'check_args']


def check_args(args: argparse.Namespace) -> None:
    """See that numbers can be, and set ``out`` and ``work_dir``.

    Raises:
        InputError: If one cannot.
    """
    for option in ('steps', 'every', 'epochs', 'pretrain_epochs', 'upstream_images', 'estimate_batches', 'images'):
        value = getattr(args, option, None)
        if value is not None and value < 1:
            raise InputError(f'--{option.replace("_", "-")} {value} must be 1 at least')
    for k in getattr(args, 'knn_k', []):
        if k < 1:
            raise InputError(f'--knn-k {k} must be 1 at least')
    if not getattr(args, 'upstream', None):
        for option in ('upstream_data_root', 'upstream_images', 'head', 'class_map'):
            if getattr(args, option, None) is not None:
                raise InputError(f'--{option.replace("_", "-")} is of the upstream images', 'give them with --upstream')
    if args.out is None:
        args.out = str(Path('work_dirs', f'{Path(args.config).stem}_kept'))
    args.out = str(Path(args.out).expanduser())
    args.work_dir = args.out


def begin(
    args: argparse.Namespace,
    config: str,
    progress: Progress,
    pretrained: str | None,
    change: Callable[[Config], None] | None = None,
) -> Bench:
    """A bench for a config of the command line.

    Args:
        args: The command line.
        config: The config file.
        progress: What is told.
        pretrained: ``--pretrained``.
        change: What is done to the config before. Defaults to None.
    """
    given = copy.copy(args)
    given.config = config
    cfg, notes = launch._configure(given)
    if change is not None:
        change(cfg)
    return Bench(cfg, notes, progress, pretrained)
