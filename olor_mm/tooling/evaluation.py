"""The options that only a test has: drawing, test-time augmentation, dumping predictions; and olor_mm's metrics."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..evaluation.loaders import TRAIN, bank_loader
from ..registry import type_name
from .errors import InputError
from .weights import check_file

__all__ = ['apply_checkpoint', 'apply_dump', 'apply_metrics', 'apply_show', 'apply_tta']

#: Metric to the options that may stand for the training set.
_METRICS = {
    'olor_mm.KNNMetric': ('bank',),
    'olor_mm.NCMMetric': ('bank', 'seen'),
    'olor_mm.SeenUnseenMetric': ('seen',),
}
#: Of these, those that do so where they are left out.
_DEFAULTS = {**_METRICS, 'olor_mm.NCMMetric': ('bank',)}


def apply_checkpoint(cfg: Config, checkpoint: str) -> None:
    """Load the checkpoint to be tested.

    Raises:
        InputError: If it is missing or incomplete.
    """
    check_file(checkpoint, 'the checkpoint to test')
    cfg.load_from = checkpoint
    cfg.resume = False


def apply_show(cfg: Config, args: argparse.Namespace) -> None:
    """Draw predictions, through the visualization hook of the config's toolbox.

    Raises:
        InputError: If the config has no such hook.
    """
    if not args.show and not args.show_dir:
        return
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise InputError(
            '--show and --show-dir need the visualization hook, which this config leaves out',
            "set it in the config: default_hooks = dict(visualization=dict(type='<toolbox>VisualizationHook'))",
        )
    scope = cfg.get('default_scope')
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    hook.update(show=args.show, interval=args.interval, wait_time=args.wait_time)
    if args.show_dir and scope == 'mmseg':
        cfg.visualizer['save_dir'] = args.show_dir
    elif args.show_dir:
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = args.show_dir


def apply_tta(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline for test-time augmentation.

    The config's ``tta_model`` and ``tta_pipeline`` are used; for mmdet and mmpretrain, whose own tools do so too,
    horizontal flips where it has none.

    Raises:
        InputError: If there is nothing to use, or if the model predicts masks: mmdet merges boxes only.
    """
    scope = cfg.get('default_scope')
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        if scope not in ('mmdet', 'mmpretrain'):
            raise InputError('--tta needs tta_model and tta_pipeline, which this config leaves out')
        cfg.setdefault('tta_model', _default_tta_model(scope))
        cfg.setdefault('tta_pipeline', _flip_pipeline(cfg, scope))
    if scope == 'mmdet' and _predicts_masks(cfg.model):
        raise InputError("--tta cannot test a model with masks: mmdet's augmented model merges boxes only")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    _innermost(cfg.test_dataloader.dataset)['pipeline'] = cfg.tta_pipeline


def apply_dump(cfg: Config, file: str) -> None:
    """Dump predictions to a pickle file besides evaluating them.

    Raises:
        InputError: If the name is not that of a pickle file.
    """
    if not file.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out writes predictions as pickle, but got {file!r}', 'give a name ending in .pkl')
    kind = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*_evaluators(cfg, 'test'), dict(type=kind, out_file_path=file)]


def apply_metrics(cfg: Config) -> None:
    """Give olor_mm's metrics of features and logits what they need: the hook, and loaders that stand in the config.

    Nothing happens to a config without such a metric.

    Raises:
        ValueError: If a metric wants the training set, and the config has none.
    """
    found = False
    for split in ('val', 'test'):
        for metric in _evaluators(cfg, split):
            if metric.get('type') not in _METRICS:
                continue
            found = True
            for option in _METRICS[metric['type']]:
                if metric.get(option, TRAIN if option in _DEFAULTS[metric['type']] else None) == TRAIN:
                    # A test has no training set left when it starts.
                    metric[option] = bank_loader(f'{split}_evaluator.{option}', TRAIN, cfg, split)
    hooks = [*(cfg.get('custom_hooks') or [])]
    named = [*hooks, *(cfg.get('default_hooks') or {}).values()]
    if found and not any(hook and type_name(hook.get('type')) == 'MetricsHook' for hook in named):
        cfg.custom_hooks = [*hooks, dict(type='olor_mm.MetricsHook')]


def _evaluators(cfg: Config, split: str) -> list[Any]:
    given = cfg.get(f'{split}_evaluator') or []
    return [given] if isinstance(given, Mapping) else list(given)


def _default_tta_model(scope: str) -> dict[str, Any]:
    if scope == 'mmpretrain':
        return dict(type='AverageClsScoreTTA')
    return dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))


def _flip_pipeline(cfg: Config, scope: str) -> list[dict[str, Any]]:
    pipeline = deepcopy(_innermost(cfg.test_dataloader.dataset)['pipeline'])
    pack = dict(pipeline[-1])
    if scope == 'mmdet':
        # Merging needs to know which way an image was flipped.
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        pack = dict(type='PackDetInputs', meta_keys=keys)
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]


def _predicts_masks(model: Any) -> bool:
    if not isinstance(model, Mapping):
        return False
    return any((key == 'mask_head' and model[key]) or _predicts_masks(model[key]) for key in model)


def _innermost(dataset: Any) -> Any:
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset
