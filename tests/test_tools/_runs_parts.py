"""What the toy config of _runs.py names."""

import os
import signal
import time
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS

from tests.test_engine import _toy


@DATASETS.register_module(force=True)
class ToyQuiet(_toy.ToyDataset):
    """Without augmentation."""

    def prepare_data(self, idx):
        return {key: self.get_data_info(idx)[key] for key in ('inputs', 'target')}


@METRICS.register_module(force=True)
class RunsMetric(BaseMetric):
    """Mean distance from the targets."""

    def process(self, data_batch, data_samples):
        targets = torch.stack(list(data_batch['target']))
        self.results += [(out - target).norm() for out, target in zip(data_samples, targets, strict=True)]

    def compute_metrics(self, results):
        return {'distance/error': float(torch.stack(results).mean())}


@HOOKS.register_module(force=True)
class ToySlow(Hook):
    """Makes iterations long."""

    def __init__(self, seconds):
        self.seconds = seconds

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(self.seconds)


@HOOKS.register_module(force=True)
class ToyKilled(Hook):
    """Killed while an epoch is validated, once."""

    def __init__(self, epoch):
        self.epoch = epoch

    def before_val_epoch(self, runner):
        done = Path(runner.work_dir, 'killed')
        if runner.epoch == self.epoch and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
