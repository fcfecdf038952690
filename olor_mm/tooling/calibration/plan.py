"""What a calibration reads and trains: the config without its evaluation, the split of PCV, the config of each fold."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from ...registry import type_name
from ..errors import InputError
from ..loaders import in_order, retold, transforms_of_test

__all__ = ['Fold', 'Plan', 'check_config', 'loader_of', 'model_config', 'training_only']

_SUBSET, _HOLD_OUT = 'olor_mm.ClassSubset', 'olor_mm.HoldOut'
_TRAIN = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
_VAL = ('val_dataloader', 'val_cfg', 'val_evaluator')
_TEST = ('test_dataloader', 'test_cfg', 'test_evaluator')
_SHARDED = ('FSDPStrategy', 'OLORFSDPStrategy', 'DeepSpeedStrategy', 'ColossalAIStrategy')


@dataclass(frozen=True)
class Fold:
    """A split of the classes that were fine-tuned on.

    Attributes:
        seen: Pseudo-seen: those that the fold is fine-tuned on.
        absent: Pseudo-absent.
    """

    seen: list[int]
    absent: list[int]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        seen: S, the labels of the training images.
        methods: Of 'alg' and 'pcv'.
        folds: Of PCV.
        share: How much of each class is held out from the training of the folds.
        seed: Of the split and of what is held out.
    """

    seen: list[int]
    methods: tuple[str, ...]
    folds: list[Fold]
    share: float
    seed: int

    @classmethod
    def make(cls, seen: Sequence[int], methods: Sequence[str], folds: int, share: float, seed: int) -> Plan:
        """Draw the folds: the larger half of S is pseudo-seen; each fold draws anew."""
        drawn = []
        for fold in range(folds if 'pcv' in methods else 0):
            # RandomState draws the same in every version of numpy.
            order = np.random.RandomState([seed, fold]).permutation(sorted(seen)).tolist()
            half = (len(order) + 1) // 2
            drawn.append(Fold(sorted(order[:half]), sorted(order[half:])))
        return cls(sorted(seen), tuple(methods), drawn, share, seed)

    def record(self) -> dict[str, Any]:
        """As plain values, for a file."""
        folds = [dict(seen=fold.seen, absent=fold.absent) for fold in self.folds]
        return dict(seen=self.seen, folds=folds, share=self.share, seed=self.seed)

    def fold_config(self, training: Config, fold: int, root: Path) -> Config:
        """The config of one fold, for an ordinary Runner.

        Args:
            training: Of :func:`training_only`.
            fold: From 0 on.
            root: The work dir of the calibration.
        """
        cfg = copy.deepcopy(training)
        for key in _TEST:
            cfg[key] = None
        cfg.work_dir, cfg.resume = str(fold_dir(root, fold)), False
        data = ConfigDict(type=_HOLD_OUT, dataset=cfg.train_dataloader.dataset, share=self.share, seed=self.seed)
        cfg.train_dataloader.dataset = ConfigDict(type=_SUBSET, dataset=data, classes=self.folds[fold].seen)
        saving = (cfg.get('default_hooks') or {}).get('checkpoint')
        if isinstance(saving, dict):
            # There is nothing to choose the best epoch by.
            saving.update(save_best=None, rule=None)
        return cfg


def fold_dir(root: Path, fold: int) -> Path:
    """The work dir of a fold."""
    return root / 'pcv' / f'fold_{fold}'


def check_config(cfg: Config) -> None:
    """See that a config can be calibrated.

    Raises:
        InputError: If it cannot.
    """
    if not (cfg.get('model') or {}).get('head'):
        raise InputError(
            'the model of the config has no head',
            'a classifier of mmpretrain is calibrated, with a head over all classes',
        )
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'test_dataloader'):
        if cfg.get(key) is None:
            raise InputError(
                f'{key} is not set', 'gamma comes from the training images, under the transforms of the test'
            )
    strategy = type_name((cfg.get('strategy') or {}).get('type'))
    if strategy in _SHARDED:
        raise InputError(
            f'strategy.type={strategy}: a model in shards is not calibrated', 'take the strategy out of the config'
        )


def training_only(cfg: Config) -> Config:
    """A copy in which nothing of the evaluation is left but the transforms of the test.

    What is calculated from it cannot read images or labels of the evaluation.
    """
    cfg = copy.deepcopy(cfg)
    pipeline = copy.deepcopy(transforms_of_test(cfg))
    options = {key: value for key, value in cfg.test_dataloader.items() if key != 'dataset'}
    for key in (*_VAL, *_TEST):
        cfg[key] = None
    cfg.pop('tta_model', None)
    cfg.pop('tta_pipeline', None)
    cfg.calibration = ConfigDict(pipeline=pipeline, loader=options)
    return cfg


def model_config(cfg: Config, root: Path, load_from: str | None) -> Config:
    """The config of a Runner that has a model and nothing to run."""
    cfg = copy.deepcopy(cfg)
    for key in (*_TRAIN, *_VAL, *_TEST):
        cfg[key] = None
    cfg.work_dir, cfg.resume, cfg.load_from = str(root), False, load_from
    return cfg


def seen_classes(training: Config) -> list[int]:
    """The labels that training images have.

    Raises:
        InputError: If an image has none, or several, or there is no image.
    """
    from ...datasets import labels_of

    dataset: Any = DATASETS.build(retold(training.train_dataloader.dataset, []))
    labels = sorted(set(labels_of(dataset)))
    if not labels:
        raise InputError('train_dataloader.dataset is empty', 'gamma comes from the training images')
    return labels


def loader_of(training: Config, seen: Sequence[int], held_out: Mapping[str, Any] | None = None) -> ConfigDict:
    """The loader of training images under the transforms of the test, each image once.

    Args:
        training: Of :func:`training_only`.
        seen: The labels whose images are shown.
        held_out: ``share`` and ``seed``, for the images that are held out alone. Defaults to None: all.
    """
    kept = training.calibration
    data = retold(training.train_dataloader.dataset, kept.pipeline)
    if held_out is not None:
        data = ConfigDict(type=_HOLD_OUT, dataset=data, held_out=True, **held_out)
    return in_order(kept.loader, ConfigDict(type=_SUBSET, dataset=data, classes=list(seen), test_mode=True))
