"""A task small enough to be run many times by tools/search.py: a network that knows the answer, and noisy labels."""

import os
import time
from pathlib import Path

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn

DIM = 4


def knows(seed=3):
    """A network of some layers, with the same weights every time."""
    layers = nn.ModuleList([nn.Linear(DIM, DIM) for _ in range(3)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(DIM, DIM, generator=generator) * 0.5)
            layer.bias.zero_()
    return layers


@MODELS.register_module(force=True)
class SearchBackbone(BaseModule):
    """That network."""

    def __init__(self):
        super().__init__()
        self.blocks = knows()

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@MODELS.register_module(force=True)
class SearchModel(BaseModel):
    """Says what it sees."""

    def __init__(self):
        super().__init__()
        self.backbone = SearchBackbone()

    def forward(self, inputs, target, mode='tensor'):
        out, target = self.backbone(torch.stack(list(inputs))), torch.stack(list(target))
        if mode == 'loss':
            return {'loss': (out - target).square().mean()}
        return list(zip(out, target, strict=True))


@DATASETS.register_module(force=True)
class SearchData(BaseDataset):
    """What the network said before, and noise on it, or another task."""

    def __init__(self, noise=0.0, other=False, seed=0, **kwargs):
        self.noise, self.other, self.seed = noise, other, seed
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self):
        generator = torch.Generator().manual_seed(self.seed)
        net, x = knows(5 if self.other else 3), torch.randn(16, DIM, generator=generator)
        y = x
        with torch.no_grad():
            for layer in net:
                y = torch.tanh(layer(y))
        y = y + self.noise * torch.randn(y.shape, generator=generator)
        return [{'inputs': a, 'target': b} for a, b in zip(x, y, strict=True)]

    def prepare_data(self, idx):
        found = self.get_data_info(idx)
        return {'inputs': found['inputs'], 'target': found['target']}


@METRICS.register_module(force=True)
class SearchMetric(BaseMetric):
    """How well it says it: 100 is perfect."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += [float((out - target).square().mean()) for out, target in data_samples]

    def compute_metrics(self, results):
        mean = sum(results) / len(results)
        return {'accuracy': 100 * (1 - mean), 'distance': mean}


@HOOKS.register_module(force=True)
class SearchGate(Hook):
    """Waits in an iteration until a file is there, so that a test can act in the meantime; fails where one says so."""

    def __init__(self, folder=None):
        self.folder = Path(folder or '.')

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        level = runner.cfg.optim_wrapper.get('rollback', {}).get('max_level')
        if (self.folder / f'fail-{level:g}').exists():
            raise RuntimeError('out of something')
        deadline = time.time() + 60
        while (self.folder / f'wait-{level:g}-{runner.iter}').exists() and time.time() < deadline:
            (self.folder / f'waits-{level:g}').write_text(str(os.getpid()))
            time.sleep(0.02)


CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['olor_mm', 'tests.test_tools._search'], allow_failed_imports=False)
model = dict(type='SearchModel')
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='SearchData', noise=1.0), collate_fn=dict(type='pseudo_collate'),
)
val_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='SearchData', seed=1), collate_fn=dict(type='pseudo_collate'),
)
val_evaluator = dict(type='SearchMetric')
val_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.3, momentum=0.9))
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, save_best='toy/accuracy', rule='greater'),
    logger=dict(type='LoggerHook', interval=2),
)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook')]
randomness = dict(seed=3)
log_level = 'INFO'
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
"""
