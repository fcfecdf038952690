"""tools/train.py and tools/test.py, from the command line to the end of the run."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

# Importing the engine registers the rollback and the loader that keeps torch.load's weights_only on.
from ..engine import RollbackSettings
from ..engine.trained_only import needs_pretrained
from ..engine.zero import check_zero_cfg
from ..registry import type_name
from . import evaluation, settings
from .data_checks import check_data
from .data_root import move_data_root
from .distributed import adopt_ranks, prepare_launch, require_accelerator
from .errors import InputError, say
from .missed_validation import MissedValidationHook
from .names import check_names
from .options import test_parser, train_parser
from .pretrained import check_vit_names, replace_pretrained
from .resume import Alert, overwritten
from .run_checkpoint import check_run_checkpoint
from .run_facts import RunFactsHook
from .signals import Terminated, terminable
from .strategies import check_strategy
from .weights import check_file, check_weights

__all__ = ['test', 'train']


def train(argv: Sequence[str]) -> None:
    """Train as ``tools/train.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the data or the weights is the user's to mend.
        KeyboardInterrupt: On Ctrl-C, with a text that says how to go on.
        Terminated: On SIGTERM, likewise.
    """
    args = train_parser().parse_args(argv)
    cfg, notes = _configure(args)
    if args.amp:
        settings.apply_amp(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        settings.apply_auto_scale_lr(cfg)
    evaluation.apply_metrics(cfg)
    notes += overwritten(cfg) if args.resume is None else settings.apply_resume(cfg, args.resume)
    if args.resume is not None and cfg.get('resume'):
        check_run_checkpoint(cfg.load_from, *_rollback_of(cfg))
    if args.pretrained:
        notes += replace_pretrained(cfg, args.pretrained)
    anchor = _check_rollback(cfg)
    model = copy.deepcopy(cfg.get('model'))
    if args.resume and cfg.get('resume') and anchor != 'init_cfg' and not needs_pretrained(cfg):
        # The checkpoint brings every weight: the files that training started from may be gone by now.
        _forget_pretrained(cfg)
    _check(cfg, 'train', 'val')
    check_vit_names(cfg)
    runner = _build_runner(cfg, notes)
    if runner.cfg.model != model:
        # A new run of the config in the work dir starts from the same files as this one did.
        runner.cfg.model = model
        runner.dump_config()
    runner.register_hook(RunFactsHook())
    runner.register_hook(MissedValidationHook())
    try:
        with terminable(last_words=lambda: say(_how_to_resume(cfg, argv, 'terminated'))):
            runner.train()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(cfg, argv, 'interrupted')) from None
    except Terminated:
        raise Terminated(_how_to_resume(cfg, argv, 'terminated')) from None


def test(argv: Sequence[str]) -> None:
    """Test as ``tools/test.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the data or the checkpoint is the user's to mend.
    """
    args = test_parser().parse_args(argv)
    cfg, notes = _configure(args)
    evaluation.apply_checkpoint(cfg, args.checkpoint)
    if not needs_pretrained(cfg):
        _forget_pretrained(cfg)
    evaluation.apply_show(cfg, args)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.out and args.out_item == 'pred':
        evaluation.apply_dump(cfg, args.out)
    if args.tta:
        evaluation.apply_tta(cfg)
    evaluation.apply_metrics(cfg)
    cfg.optim_wrapper = cfg.train_dataloader = cfg.train_cfg = cfg.param_scheduler = None
    _check(cfg, 'test')
    metrics = _build_runner(cfg, notes).test()
    if args.out and args.out_item == 'metrics' and int(os.environ.get('RANK', 0)) == 0:
        mmengine.dump(metrics, args.out)


def _configure(args: argparse.Namespace) -> tuple[Config, list[str]]:
    """What training and testing have in common before their own options."""
    adopt_ranks(args.launcher, args.local_rank)
    cfg = settings.load_config(args)
    settings.register_scope(cfg)
    check_names(cfg)
    settings.apply_loaders(cfg, args)
    return cfg, move_data_root(cfg, str(Path(args.data_root).expanduser())) if args.data_root else []


def _check(cfg: Config, *splits: str) -> None:
    """Everything that can be said before a model is built."""
    check_strategy(cfg)
    require_accelerator(cfg)
    check_data(cfg, *splits)
    check_weights(cfg)
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.work_dir):
            pass
    except OSError as error:
        raise InputError(
            f'the work dir cannot be written to: {error.strerror or error}',
            f'looked for: {Path(cfg.work_dir).absolute()}',
            'set it with: --work-dir DIR',
        ) from error


def _rollback_of(cfg: Config) -> tuple[str | None, bool]:
    """The file of theta_0, if one is named, and whether there is a rollback at all; errors are found later."""
    wrapper = cfg.get('optim_wrapper') or {}
    rollback = (
        wrapper.get('rollback') if type_name(wrapper.get('constructor')) == 'OLOROptimWrapperConstructor' else None
    )
    if not isinstance(rollback, Mapping):
        return None, False
    anchor = rollback.get('anchor')
    return None if anchor in (None, 'init_cfg', 'current') else str(anchor), rollback.get('max_level') != 0 or bool(
        rollback.get('l2_sp')
    )


def _check_rollback(cfg: Config) -> str | None:
    """Settings of OLOR are refused here with the message that the constructor would have, minutes before it.

    Returns:
        Where theta_0 is to be read from, if that is said.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    constructor = wrapper.get('constructor')
    if type_name(constructor) == 'OLOROptimWrapperConstructor':
        anchor = RollbackSettings.from_cfg(wrapper.get('rollback')).anchor
        check_zero_cfg(wrapper.get('optimizer'), cfg.get('default_hooks'))
        if anchor not in (None, 'init_cfg', 'current'):
            hint = "set optim_wrapper.rollback.anchor to the pre-trained file, 'init_cfg' or 'current'"
            check_file(anchor, 'the file of optim_wrapper.rollback.anchor', hint)
        return anchor
    if isinstance(constructor, str) and constructor.startswith('olor_mm.'):
        raise InputError(
            f'optim_wrapper.constructor={constructor!r} does not exist',
            'set optim_wrapper.constructor=olor_mm.OLOROptimWrapperConstructor',
        )
    if 'rollback' in wrapper:
        raise InputError(
            f'optim_wrapper.rollback={wrapper["rollback"]!r:.200} is set, but nothing reads it',
            'set optim_wrapper.constructor=olor_mm.OLOROptimWrapperConstructor too',
        )
    return None


def _build_runner(cfg: Config, notes: Sequence[str]) -> Any:
    notes = [*notes, *prepare_launch(cfg)]
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for note in notes:
        runner.logger.log(logging.WARNING if isinstance(note, Alert) else logging.INFO, note)
    return runner


def _forget_pretrained(cfg: Config) -> None:
    """A test or a resumed run gets all of its weights from the checkpoint; it must not need those it started from."""
    for node in _mappings(cfg.get('model')):
        if node.get('init_cfg') is not None:
            node['init_cfg'] = None
        if isinstance(node.get('pretrained'), str):
            node['pretrained'] = None


def _mappings(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [node] + [found for key in node for found in _mappings(node[key])]
    if isinstance(node, (list, tuple)):
        return [found for item in node for found in _mappings(item)]
    return []


def _how_to_resume(cfg: Config, argv: Sequence[str], how: str) -> str:
    try:
        latest = settings.latest_checkpoint(cfg.work_dir)
    except InputError:
        latest = None
    if latest is None:
        return f'{how} before the first checkpoint: nothing in {cfg.work_dir} to resume from'
    text = f'{how}; the last checkpoint is {latest}\nto resume, give the same command with --resume'
    if cfg.launcher != 'none':
        # These are the arguments that a launcher made up, not those that the user gave.
        return text
    tail = [] if '--resume' in argv else ['--resume']
    return f'{text}:\n  {shlex.join([Path(sys.executable).name, sys.argv[0], *argv, *tail])}'
