"""One Runner that tests many weights: checkpoints, steps of a review, mixtures."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from ...engine.added import added_by_methods
from ...engine.loading import load_from_local
from ...engine.rebuilding import unwrapped
from ...engine.trained_only import SaveTrainedHook
from ...registry import type_name
from .. import evaluation, launch
from ..distributed import prepare_launch
from ..errors import InputError
from ..loaders import retold, transforms_of_test
from ..pretrained import check_vit_names, replace_pretrained
from ..settings import model_of
from ..weights import check_file
from .origin import Origin, origin_of, source_of
from .progress import Progress

__all__ = ['Bench', 'Checkpoint', 'file_digest', 'plain_loader']

#: Hooks for training that would test other weights than those that are asked for (a checkpoint has the averages as its
#: weights), or measure again what is measured here.
_NOT_HERE = ('EMAHook', 'UpstreamHook')
_numbers = itertools.count()


class Checkpoint:
    """A checkpoint file to be looked at.

    Args:
        name: What it is called in tables.
        file: The file.

    Raises:
        InputError: If it is missing or cut off.
    """

    def __init__(self, name: str, file: str) -> None:
        self.name, self.file = name, str(Path(file).expanduser())
        if Path(self.file).is_dir():
            raise InputError(
                f'the checkpoint {file} is a folder, of shards as FSDP saves them',
                'gather it first: train, or resume, with state_dict_cfg=full',
            )
        check_file(self.file, 'the checkpoint')

    def read(self) -> dict[str, Any]:
        """Its content, with the weights under 'state_dict'.

        Raises:
            InputError: If it holds no weights by name.
        """
        content = load_from_local(self.file, 'cpu')
        state = content.get('state_dict', content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
            raise InputError(f'{self.file} is no checkpoint of a run: it holds no weights by name')
        whole = dict(content) if state is not content else {}
        return {**whole, 'state_dict': {name.removeprefix('module.'): value for name, value in state.items()}}


class Bench:
    """A config's model and tests, without training.

    Args:
        cfg: The config of the fine-tuning. It is changed.
        notes: Lines for the log.
        progress: What is told while it works.
        pretrained: ``--pretrained``. Defaults to None.

    Raises:
        InputError: If something in the config, the data or the weights is the user's to mend.

    Attributes:
        runner: The Runner.
        model: Its model, not wrapped.
        origin: theta_0.
    """

    def __init__(self, cfg: Config, notes: Sequence[str], progress: Progress, pretrained: str | None = None) -> None:
        if pretrained:
            notes = [*notes, *replace_pretrained(cfg, pretrained)]
            cfg.load_from = None
        for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
            if cfg.get(key) is None:
                raise InputError(f'{key} is not set', 'the downstream metric is what the test of the config gives')
        self.source = source_of(cfg)
        #: Training images under the transforms of the test; None where the config has none.
        self.train_loader = _train_loader(cfg)
        # While there are training images, which some metrics need.
        evaluation.apply_metrics(cfg)
        self.cfg = _without_training(cfg)
        start = self.cfg.pop('start_from')
        launch._check(Config({**self.cfg, 'load_from': start}), 'test', *(['val'] if self.has_val else []))
        check_vit_names(self.cfg)
        notes = [*notes, *prepare_launch(self.cfg)]
        self.runner: Runner = Runner.from_cfg(self.cfg)
        for note in notes:
            self.runner.logger.log(logging.INFO, note)
        self.model: Any = unwrapped(self.runner.model)
        self.origin: Origin = origin_of(Config({**self.cfg, 'load_from': start}), self.model)
        self.runner.register_hook(_Batches(progress), priority='LOWEST')

    @property
    def has_val(self) -> bool:
        """Whether the config has a validation of its own."""
        return self.cfg.get('val_dataloader') is not None

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Put a checkpoint into the model.

        Returns:
            What else it holds, such as ``meta``.

        Raises:
            InputError: If it is none of this model.
        """
        content = checkpoint.read()
        # Of what a run with SaveTrainedHook left out, the model has the pre-trained values.
        self.model.load_state_dict(self.origin.state)
        try:
            SaveTrainedHook().after_load_checkpoint(self.runner, content)
            self.model.load_state_dict(content.pop('state_dict'), strict=True)
        except RuntimeError as error:
            raise InputError(
                f'{checkpoint.file} does not fit the model of the config',
                str(error),
                'a checkpoint of a run with another config: --row NAME CONFIG CHECKPOINT',
            ) from error
        return content

    def before(self) -> Any:
        """The pre-trained model: this one with theta_0, or one of its own where a method puts something beside that."""
        if not added_by_methods(self.model):
            self.model.load_state_dict(self.origin.state)
            return self.model
        bare = {key: value for key, value in model_of(self.cfg).items() if key not in ('of', 'method')}
        with MODELS.switch_scope_and_registry(self.cfg.get('default_scope')) as registry:
            model = registry.build({**copy.deepcopy(bare), 'type': self.cfg.model.of})
        model.init_weights()
        return model.to(next(self.model.parameters()).device).eval()

    def test(self) -> dict[str, float]:
        """The metrics of the config's test, by MMEngine's own loop."""
        return _numbers_of(self.runner.test(), 'test')

    def val(self) -> dict[str, float]:
        """Those of the validation."""
        return _numbers_of(self.runner.val(), 'val')

    def record(self, *splits: str) -> dict[str, Any]:
        """What results depend on besides the weights: parts of the config."""
        keys = [
            'model',
            'data_preprocessor',
            'default_scope',
            *(f'{s}_{part}' for s in splits for part in ('dataloader', 'evaluator', 'cfg')),
        ]
        return {key: self.cfg.get(key) for key in keys} | {'theta_0': self.theta_0_digest}

    @cached_property
    def theta_0_digest(self) -> str:
        """Of the values of theta_0."""
        return _state_digest(self.origin)


def _train_loader(cfg: Config) -> dict[str, Any] | None:
    if cfg.get('train_dataloader') is None:
        return None
    dataset = retold(cfg.train_dataloader.dataset, transforms_of_test(cfg))
    # Some of them stand for all.
    return {**plain_loader(cfg, shuffle=True), 'dataset': dataset}


def plain_loader(cfg: Config, shuffle: bool = False) -> dict[str, Any]:
    """The config of a loader as the test has it, without its data set: each image once."""
    loader = {key: value for key, value in cfg.test_dataloader.items() if key not in ('dataset', 'batch_sampler')}
    further = dict(sampler=dict(type='DefaultSampler', shuffle=shuffle), drop_last=False, persistent_workers=False)
    return {**loader, **further, 'pin_memory': loader.get('pin_memory', False) and get_device() != 'cpu'}


def _without_training(cfg: Config) -> Config:
    cfg = copy.deepcopy(cfg)
    cfg.start_from = None if cfg.get('resume') else cfg.get('load_from')
    cfg.load_from, cfg.resume = None, False
    cfg.train_cfg = cfg.train_dataloader = cfg.optim_wrapper = cfg.param_scheduler = None
    if any(cfg.get(f'val_{part}') is None for part in ('dataloader', 'evaluator', 'cfg')):
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.pop('runner_type', None)
    cfg.pop('strategy', None)
    cfg.custom_hooks = [h for h in cfg.get('custom_hooks') or [] if type_name(h.get('type')) not in _NOT_HERE]
    cfg.default_hooks = {**(cfg.get('default_hooks') or {}), 'checkpoint': None}
    for split in ('val', 'test'):
        if get_device() == 'cpu' and cfg.get(f'{split}_dataloader'):
            # torch warns of it in each loop.
            cfg[f'{split}_dataloader'].pin_memory = False
    # What matters is shown by the tool itself.
    cfg.log_level = 'WARNING'
    # MMEngine keeps message hubs and visualizers by name.
    cfg.experiment_name = f'{Path(cfg.filename or "run").stem}_forgetting_{next(_numbers)}'
    return cfg


class _Batches(Hook):
    """Tells the progress of a loop."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._progress.batch(batch_idx + 1, len(runner.test_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._progress.batch(batch_idx + 1, len(runner.val_dataloader))


def _numbers_of(metrics: Mapping[str, Any], split: str) -> dict[str, float]:
    found = {name: float(value) for name, value in metrics.items() if isinstance(value, (Real, Tensor))}
    if not found:
        raise InputError(f'the {split}_evaluator of the config gives no number', 'set one that does, such as Accuracy')
    return found


@cache
def _digest(file: str, size: int, changed: int) -> str:
    found = hashlib.sha256()
    with open(file, 'rb') as stream:
        while block := stream.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def file_digest(file: str) -> str:
    """SHA-256 of a file's content; it is read once as long as it does not change."""
    path = Path(file).expanduser()
    found = path.stat()
    return _digest(str(path.absolute()), found.st_size, found.st_mtime_ns)


def _state_digest(origin: Origin) -> str:
    found = hashlib.sha256(json.dumps([origin.params, origin.buffers]).encode())
    for name in [*origin.params, *origin.buffers]:
        value = origin.state[name].contiguous().flatten()
        found.update(value.view(torch.uint8).numpy().tobytes() if value.numel() else b'')
    return found.hexdigest()
