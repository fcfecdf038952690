"""``incremental`` of a config: which classes come when, how the heads are aligned, and the config of each task."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..._options import check_known
from ...engine.trained_only import needs_pretrained
from ...models.incremental import Alignment, TaskSplit
from ...registry import type_name
from .. import launch
from ..errors import InputError
from ..loaders import in_order, retold, transforms_of_test
from ..weights import is_pretrained

__all__ = [
    'IncrementalSettings',
    'check_config',
    'forget_pretrained',
    'statistics_loader',
    'task_config',
    'task_dir',
    'task_file',
]

_HEAD = 'olor_mm.IncrementalClsHead'
_SUBSET = 'olor_mm.ClassSubset'
_EACH_TASK = 'olor_mm.TaskAccuracy'
_ANCHORS = ('task', 'pretrained')


@dataclass
class IncrementalSettings:
    """The settings of a class-incremental run, as they stand in a config under ``incremental``.

    Args:
        num_classes: How many classes the data set has; labels from there on are left out.
        num_tasks: How many tasks of equal size. Defaults to None: ``task_sizes`` says it.
        task_sizes: How many classes each task has. Defaults to None.
        seed: Of the order of the classes. Defaults to 1993, the first of the three that SLCA's authors give; None
            keeps the order of the labels.
        alignment: Options of :class:`~olor_mm.models.incremental.Alignment`; None for no alignment. Defaults to {}.
        ridge: What is added to the diagonals of the covariances, in units of squared features. Defaults to 1e-4.
        olor_anchor: With OLOR, what weights are pulled back to: 'task', those at the start of each task, or
            'pretrained', those at the start of the first. Defaults to 'task'.
        later: Settings of the config that are others from the second task on, such as
            ``dict(train_cfg=dict(max_epochs=10))``. Defaults to {}.
        metric: What of the test's metrics is the accuracy. Defaults to 'accuracy/top1'.

    Raises:
        ValueError: If an option is unknown or cannot be right; the message names option, value and remedy.
    """

    num_classes: int
    num_tasks: int | None = None
    task_sizes: Sequence[int] | None = None
    seed: int | None = 1993
    alignment: Any = field(default_factory=dict)
    ridge: float = 1e-4
    olor_anchor: str = 'task'
    later: Mapping[str, Any] = field(default_factory=dict)
    metric: str = 'accuracy/top1'

    def __post_init__(self) -> None:
        try:
            self.split = TaskSplit.make(self.num_classes, self.num_tasks, self.task_sizes, self.seed)
            self.options = None if self.alignment is None else Alignment.from_cfg(self.alignment)
        except ValueError as error:
            raise ValueError(f'incremental.{error}') from None
        ridge = self.ridge
        if not isinstance(ridge, (int, float)) or isinstance(ridge, bool) or not 0 < ridge < math.inf:
            raise ValueError(f'incremental.ridge={ridge!r} must be a number above 0, such as 1e-4')
        if self.olor_anchor not in _ANCHORS:
            raise ValueError(f"incremental.olor_anchor={self.olor_anchor!r} must be 'task' or 'pretrained'")
        if not isinstance(self.later, Mapping):
            raise ValueError(
                f'incremental.later={self.later!r} must be a dict of settings, such as dict(train_cfg=...)'
            )
        if not isinstance(self.metric, str):
            raise ValueError(f"incremental.metric={self.metric!r} must be a metric's name, such as 'accuracy/top1'")

    @classmethod
    def from_cfg(cls, cfg: object) -> IncrementalSettings:
        """Settings from the dict of a config."""
        if not isinstance(cfg, Mapping):
            raise ValueError(
                f'incremental={cfg!r} must be a dict, such as dict(num_classes=100, num_tasks=10): tools/slca.py runs '
                'configs that have one, as those in configs/slca'
            )
        check_known('incremental', cfg, [each.name for each in fields(cls)])
        if 'num_classes' not in cfg:
            raise ValueError('incremental.num_classes is not set: give the number of classes, such as 100')
        return cls(**{str(option): value for option, value in cfg.items()})


def check_config(cfg: Config, settings: IncrementalSettings) -> None:
    """See that a config can be run task after task.

    Raises:
        InputError: If it cannot.
    """
    head = (cfg.get('model') or {}).get('head') or {}
    if type_name(head.get('type')) != type_name(_HEAD):
        raise InputError(
            f'model.head.type={head.get("type")!r}: a class-incremental run needs a head that grows',
            f'set model.head=dict(_delete_=True, type={_HEAD!r}, in_channels=...)',
        )
    for key in ('train_dataloader', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(key) is None:
            raise InputError(f'{key} is not set', 'each task is trained, and tested on all classes seen so far')
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook.get('type')) == 'EMAHook':
            raise InputError(
                'custom_hooks: EMAHook tests other weights than those that the statistics of classes are of',
                'take it out of the config',
            )
    if needs_pretrained(cfg):
        raise InputError(
            'custom_hooks: SaveTrainedHook leaves out of checkpoints what later tasks and resumed ones start from',
            'take it out of the config',
        )
    rollback = (cfg.get('optim_wrapper') or {}).get('rollback') or {}
    if settings.olor_anchor == 'pretrained' and not rollback:
        raise InputError(
            "incremental.olor_anchor='pretrained', but optim_wrapper has no rollback",
            'set optim_wrapper.constructor=olor_mm.OLOROptimWrapperConstructor and optim_wrapper.rollback, or leave '
            'olor_anchor out',
        )
    if settings.olor_anchor == 'pretrained' and rollback.get('anchor') is not None:
        raise InputError(
            f"incremental.olor_anchor='pretrained' and optim_wrapper.rollback.anchor={rollback['anchor']!r} both say "
            'what weights are pulled back to',
            'leave one of them out',
        )


def task_dir(root: Path, task: int) -> Path:
    """The work dir of a task."""
    return root / f'task_{task}'


def task_file(root: Path, task: int) -> Path:
    """What is kept of a finished task: its weights, the statistics of its classes, its aligned heads."""
    return task_dir(root, task) / 'task.pth'


def task_config(cfg: Config, settings: IncrementalSettings, task: int, root: Path) -> Config:
    """The config of one task, for an ordinary Runner.

    Args:
        cfg: That of the whole run.
        settings: Its ``incremental``.
        task: From 0 on.
        root: The work dir of the run.
    """
    cfg, split = copy.deepcopy(cfg), settings.split
    if task:
        cfg.merge_from_dict(copy.deepcopy(dict(settings.later)))
        cfg.load_from = str(task_file(root, task - 1))
    cfg.work_dir, cfg.resume = str(task_dir(root, task)), False
    cfg.model.head.update(tasks=split.record(), task=task)
    for key, labels in (('train', split.tasks[task]), ('val', split.seen(task)), ('test', split.seen(task))):
        loader = cfg.get(f'{key}_dataloader')
        if loader is not None:
            loader.dataset = ConfigDict(type=_SUBSET, dataset=loader.dataset, classes=list(labels))
    cfg.test_evaluator = _with_each_task(cfg.test_evaluator, split.record())
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is not None:
        # Each task draws its own order of images, and initial values of its own.
        cfg.randomness = ConfigDict({**randomness, 'seed': randomness['seed'] + task})
    if task and settings.olor_anchor == 'pretrained':
        cfg.optim_wrapper.rollback.anchor = str(root / 'start.pth')
    return cfg


def _with_each_task(evaluator: Any, tasks: Sequence[Sequence[int]]) -> Any:
    """A config's evaluator that tells the accuracy on each task too."""
    own = ConfigDict(type=_EACH_TASK, tasks=tasks)
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        return ConfigDict({**evaluator, 'metrics': _with_each_task(evaluator['metrics'], tasks)})
    return [*evaluator, own] if isinstance(evaluator, (list, tuple)) else [evaluator, own]


def forget_pretrained(cfg: Config) -> None:
    """Take the files that a run starts from out of a config whose weights come from a checkpoint.

    What else ``init_cfg`` says stays: a task's head is new.
    """
    for node in launch._mappings(cfg.get('model')):
        entries = node.get('init_cfg')
        if isinstance(entries, Mapping) and is_pretrained(entries):
            node['init_cfg'] = None
        elif isinstance(entries, (list, tuple)):
            node['init_cfg'] = [entry for entry in entries if not is_pretrained(entry)] or None
        if isinstance(node.get('pretrained'), str):
            node['pretrained'] = None


def statistics_loader(cfg: Config) -> ConfigDict:
    """The loader of a task's training images under the transforms of the test; each image once, shared out to ranks."""
    data = copy.deepcopy(cfg.train_dataloader.dataset)
    data.dataset = retold(data.dataset, transforms_of_test(cfg))
    data.test_mode = True
    return in_order(cfg.test_dataloader, data)
