"""From a config file and options to the config of a run."""

from __future__ import annotations

import argparse
import copy
import difflib
import importlib
import importlib.util
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from .. import cfg as shipped_config
from ..registry import type_name
from .errors import InputError
from .resume import apply_resume, latest_checkpoint

__all__ = [
    'apply_amp',
    'apply_auto_scale_lr',
    'apply_loaders',
    'apply_resume',
    'latest_checkpoint',
    'load_config',
    'register_scope',
]

# Keys that a Runner reads but a config may leave out: setting one of them is no typing error.
_RUNNER_KEYS = (
    'auto_scale_lr', 'compile', 'custom_hooks', 'custom_imports', 'data_preprocessor', 'default_hooks', 'env_cfg',
    'default_scope', 'experiment_name', 'find_unused_parameters', 'launcher', 'load_from', 'log_level',
    'log_processor', 'model', 'model_wrapper_cfg', 'optim_wrapper', 'param_scheduler', 'randomness', 'resume',
    'runner_type', 'strategy', 'sync_bn', 'test_cfg', 'test_dataloader', 'test_evaluator', 'train_cfg',
    'train_dataloader', 'tta_model', 'tta_pipeline', 'val_cfg', 'val_dataloader', 'val_evaluator', 'vis_backends',
    'visualizer', 'work_dir',
)  # fmt: skip


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file, put ``--cfg-options`` on it and set work_dir and launcher.

    Raises:
        InputError: If a file is missing, the config is not Python, or an option does not fit the config.
    """
    path = Path(args.config).expanduser()
    if not path.is_file():
        raise InputError('the config file is missing', f'looked for: {path.absolute()}', *_shipped_hint(path))
    try:
        cfg = Config.fromfile(str(path))
    except (FileNotFoundError, SyntaxError) as error:
        raise InputError(f'the config {path} cannot be read', str(error)) from error
    except TypeError as error:
        # MMEngine's word for a dict on something that is none; other mistakes in the file keep their traceback.
        if 'base' not in str(error):
            raise
        raise InputError(f'the config {path} does not fit its _base_', str(error)) from error
    except ImportError as error:
        raise InputError(f'the config {path} needs a package that cannot be imported', _import_reason(error)) from error
    options = args.cfg_options or {}
    for key in options:
        _refuse_misspelled(key, cfg)
    try:
        cfg.merge_from_dict(options)
    except AttributeError as error:
        # MMEngine descends into the mappings of a list, and into nothing else.
        raise InputError(
            f'--cfg-options does not fit the config {path}',
            'an item of a list that is no mapping cannot be set alone: give the list as a whole, key="[a,b]"',
        ) from error
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(f'--cfg-options does not fit the config {path}', str(error).strip('"\'')) from error
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', path.stem))
    return cfg


def model_of(cfg: Mapping[str, Any]) -> Any:
    """The config of the model as a Runner builds it: with the ``data_preprocessor`` that stands beside it."""
    model = copy.deepcopy(cfg['model'])
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg['data_preprocessor']))
    return model


def register_scope(cfg: Config) -> None:
    """Register the parts of the toolbox that the config is for; the others are not imported.

    Raises:
        InputError: If that toolbox is not installed.
    """
    scope = cfg.get('default_scope')
    if scope in (None, 'mmengine'):
        return
    if importlib.util.find_spec(scope) is None:
        raise InputError(f'the config is for {scope} (its default_scope), which is not installed')
    if importlib.util.find_spec(f'{scope}.utils') is not None:
        register = getattr(importlib.import_module(f'{scope}.utils'), 'register_all_modules', None)
        if register is not None:
            register(init_default_scope=False)


def apply_amp(cfg: Config) -> None:
    """Turn mixed precision on, and keep whatever constructor the config has: OLOR's promotes the wrapper.

    Raises:
        InputError: If the config's optimizer wrapper has its own kind of mixed precision.
    """
    wrapper = cfg.optim_wrapper
    name = type_name(wrapper.get('type', 'OptimWrapper'))
    if name in ('AmpOptimWrapper', 'AmpOLOROptimWrapper'):
        return
    if name not in ('OptimWrapper', 'OLOROptimWrapper'):
        raise InputError(
            f'--amp cannot be put on optim_wrapper.type={name}',
            'it is for OptimWrapper and OLOROptimWrapper; take --amp away or set another type',
        )
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def apply_auto_scale_lr(cfg: Config) -> None:
    """Let the Runner scale the learning rate to the batch size.

    Raises:
        InputError: If the config does not say for which batch size its learning rate is.
    """
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise InputError(
            '--auto-scale-lr needs the batch size that the learning rate of the config is for',
            'set it with: --cfg-options auto_scale_lr.base_batch_size=16',
        )
    cfg.auto_scale_lr.enable = True


def apply_loaders(cfg: Config, args: argparse.Namespace) -> None:
    """Set what every data loader gets: pinned memory, persistent workers, and mmpretrain's way to batch."""
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if not isinstance(loader, MutableMapping):
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            defaults = dict(pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate'))
            # A Config keeps a copy of what it is given.
            cfg[key] = ConfigDict({**defaults, **loader})
            loader = cfg[key]
        if args.no_pin_memory:
            loader['pin_memory'] = False
        # torch refuses persistent workers where there are none.
        if getattr(args, 'no_persistent_workers', False) or not loader.get('num_workers'):
            loader['persistent_workers'] = False


def _refuse_misspelled(key: str, cfg: Mapping[str, Any]) -> None:
    """Only the first part of a key is judged: deeper ones may be arguments that the config leaves at their defaults."""
    first = key.split('.')[0]
    known = {*cfg, *_RUNNER_KEYS}
    close = difflib.get_close_matches(first, known, n=1, cutoff=0.8)
    if first not in known and close:
        raise InputError(f'--cfg-options {key}: there is no {first!r} in the config; did you mean {close[0]!r}?')


def _shipped_hint(path: Path) -> list[str]:
    try:
        return [f'olor_mm ships one of this name: {shipped_config(path.name)}']
    except FileNotFoundError:
        return []


def _import_reason(error: BaseException) -> str:
    """MMEngine hides why an import failed behind one of its own; the cause says which package."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error)
