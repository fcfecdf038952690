"""A data set and a backbone small enough to do by hand what tools/slca.py does: 6 classes of 4x4 images."""

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmpretrain.datasets import BaseDataset
from torch import nn

CLASSES, DIM, TASKS = 6, 5, [2, 1, 3]


def images(split, per_class):
    """Images of all classes, and their labels."""
    rng = np.random.default_rng({'train': 0, 'test': 1}[split])
    centres = np.random.default_rng(7).integers(40, 216, (CLASSES, 4, 4, 3))
    labels = np.arange(CLASSES * per_class) % CLASSES
    noise = rng.normal(0, 40, (len(labels), 4, 4, 3))
    return (centres[labels] + noise).clip(0, 255).astype(np.uint8), labels


@DATASETS.register_module(force=True)
class Patches(BaseDataset):
    """Those images."""

    def __init__(self, split='train', per_class=7, labelled=True, **kwargs):
        self.split, self.per_class, self.labelled = split, per_class, labelled
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self):
        pixels, labels = images(self.split, self.per_class)
        return [
            {'img': image, **({'gt_label': int(label)} if self.labelled else {})}
            for image, label in zip(pixels, labels, strict=True)
        ]


@MODELS.register_module(force=True)
class Flat(BaseModule):
    """A linear layer on the pixels, with the same weights every time, and a dropout."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.fc = nn.Linear(48, DIM)
        self.drop = nn.Dropout(drop)

    def init_weights(self):
        super().init_weights()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(DIM, 48, generator=generator) * 0.2)
            self.fc.bias.zero_()

    def forward(self, x):
        return (self.drop(self.fc(x.flatten(1))),)


@HOOKS.register_module(force=True)
class Interrupts(Hook):
    """Ctrl-C before an iteration of a task, once."""

    when = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        head = getattr(runner.model, 'module', runner.model).head
        if Interrupts.when == (head.task, runner.iter):
            Interrupts.when = None
            raise KeyboardInterrupt


CONFIG = """
_base_ = [__import__('olor_mm').cfg('_base_/classification_runtime.py')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None, rule=None))
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='Interrupts')]
incremental = dict(num_classes=6, task_sizes=[2, 1, 3], seed=4, alignment=dict(samples=16, batch_size=8, epochs=3))
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[128.0] * 3, std=[64.0] * 3, to_rgb=False),
    backbone=dict(type='Flat'),
    head=dict(
        type='olor_mm.IncrementalClsHead', in_channels=5, init_cfg=dict(type='Constant', layer='Linear', val=0.02)
    ),
)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='Patches', serialize_data=False,
        pipeline=[dict(type='RandomFlip', prob=1.0, direction='horizontal'), dict(type='PackInputs')],
    ),
)
test_dataloader = dict(
    batch_size=5, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Patches', serialize_data=False, split='test', per_class=10, pipeline=[dict(type='PackInputs')]),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[1], gamma=0.1)]
randomness = dict(seed=11)
"""
