"""The runs of the paper's forgetting test: fold 1 of PACS, then fold 2 by Full and by OLOR."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

import olor_mm

from ...registry import type_name
from .. import settings
from ..errors import InputError
from ..incremental.plan import forget_pretrained
from ..names import check_names
from ..runs import Run

__all__ = ['FOLDS', 'METHODS', 'final_checkpoint', 'pacs_run']

#: Of the paper's figure 3.
FOLDS = {'fold_1': ('cartoon', 'photo', 'sketch'), 'fold_2': ('art_painting',)}
METHODS = {'full': 'Full', 'olor': 'OLOR'}
_META = ('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction', 'domain')


def pacs_run(args: argparse.Namespace, name: str) -> Run:
    """A run of the test; its config is written into ``--out``.

    Args:
        args: The command line.
        name: 'fold_1', or a method of fine-tuning.

    Raises:
        InputError: If the config is none of a classifier on PACS.
    """
    cfg = _base(args)
    first = name == 'fold_1'
    epochs = args.pretrain_epochs if first else args.epochs
    _set_data(cfg, FOLDS['fold_1' if first else 'fold_2'], args.images)
    _set_length(cfg, epochs)
    cfg.default_hooks.checkpoint = dict(type='olor_mm.DurableCheckpointHook', interval=1, max_keep_ckpts=1)
    cfg.randomness = dict(seed=args.seed)
    if not first:
        start = str(final_checkpoint(args, 'fold_1'))
        forget_pretrained(cfg)
        cfg.load_from = start
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='olor_mm.DiscrepancyHook', anchor=start)]
    if name == 'olor':
        cfg.optim_wrapper.constructor = 'olor_mm.OLOROptimWrapperConstructor'
        cfg.optim_wrapper.rollback = dict(max_level=args.max_level, min_level=args.min_level, power=args.power)
    file = Path(args.out, 'configs', f'{name}.py')
    file.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(file))
    argv = [str(file)]
    if args.data_root:
        argv += ['--data-root', args.data_root]
    if args.pretrained and first:
        argv += ['--pretrained', args.pretrained]
    if args.no_pin_memory:
        argv.append('--no-pin-memory')
    return Run(name, argv, Path(args.out, name))


def final_checkpoint(args: argparse.Namespace, name: str) -> Path:
    """That of the last epoch of a run."""
    return Path(args.out, name, f'epoch_{args.pretrain_epochs if name == "fold_1" else args.epochs}.pth')


def _base(args: argparse.Namespace) -> Config:
    file = args.config or olor_mm.cfg('classification/full_vit-base-p16_8xb16_pacs.py')
    given = argparse.Namespace(config=str(file), cfg_options=args.cfg_options, launcher='none', work_dir=None)
    cfg = settings.load_config(given)
    settings.register_scope(cfg)
    check_names(cfg)
    for split in ('train', 'val', 'test'):
        data = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
        if type_name(data.get('type')) != 'PACS':
            raise InputError(
                f'{split}_dataloader.dataset.type={data.get("type")!r} of {file} is not olor_mm.PACS',
                'give a config of full fine-tuning on PACS, such as full_convnext-base_8xb16_pacs.py of classification',
            )
    if not (cfg.get('train_cfg') or {}).get('max_epochs'):
        raise InputError(f'{file} does not count epochs: train_cfg.max_epochs is not set')
    if (cfg.get('optim_wrapper') or {}).get('rollback'):
        raise InputError(f'{file} has a rollback', 'give a config of full fine-tuning: OLOR is put on it here')
    # One file has it all, and no work dir of its own.
    cfg.pop('work_dir', None)
    return cfg


def _set_data(cfg: Config, domains: tuple[str, ...], images: int | None) -> None:
    """Train on some domains, and look at the test images of all, which no run trains on."""
    train = cfg.train_dataloader
    train.dataset.update(split='train', train_domains=None, test_domains=None)
    train.dataset = _subset(train.dataset, domains, images)
    for split in ('val', 'test'):
        data = cfg[f'{split}_dataloader'].dataset
        data.update(split='test', train_domains=None, test_domains=None)
        data.pipeline = [_told(step) for step in data.pipeline]
        if images:
            parts = [_subset(data, fold, -(-images // 2)) for fold in FOLDS.values()]
            cfg[f'{split}_dataloader'].dataset = ConfigDict(type='ConcatDataset', datasets=parts)
        cfg[f'{split}_evaluator'] = dict(type='olor_mm.GroupAccuracy', groups=copy.deepcopy(FOLDS))


def _subset(dataset: Any, domains: tuple[str, ...], images: int | None) -> ConfigDict:
    return ConfigDict(type='olor_mm.DomainSubset', dataset=copy.deepcopy(dataset), domains=list(domains), images=images)


def _told(step: Any) -> Any:
    """A step of a pipeline; what packs a sample keeps its domain."""
    if isinstance(step, Mapping) and type_name(step.get('type')) == 'PackInputs':
        return ConfigDict({**step, 'meta_keys': tuple(dict.fromkeys((*step.get('meta_keys', ()), *_META)))})
    return step


def _set_length(cfg: Config, epochs: int) -> None:
    """The schedule over another number of epochs; a warm-up gets no longer by that, but it may get shorter."""
    total = cfg.train_cfg.max_epochs
    cfg.train_cfg.update(max_epochs=epochs, val_interval=1)
    schedulers: Any = cfg.get('param_scheduler') or []
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        if scheduler.get('by_epoch', True):
            for key in ('begin', 'end', 'T_max'):
                if key in scheduler:
                    point = scheduler[key]
                    scheduler[key] = epochs if point == total else min(point, point * epochs / total)
