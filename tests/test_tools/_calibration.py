"""A classifier small enough to do by hand what tools/calibrate.py does: 6 classes of 4x4 images, fine-tuned on 4."""

from typing import ClassVar

import numpy as np
import torch
from mmengine.registry import DATASETS

from tests.test_tools._incremental import CLASSES, DIM, Patches, images

SEEN, ABSENT = [0, 2, 3, 5], [1, 4]
TRAIN, TEST = 20, 10


@DATASETS.register_module(force=True)
class Watched(Patches):
    """Patches that say what was read of them."""

    #: (split, place) of each image that was read.
    reads: ClassVar[list] = []
    #: What is done to the images and labels of the test: None, 'noise', 'raise'.
    poison: ClassVar[str | None] = None

    def load_data_list(self):
        found = super().load_data_list()
        if self.split == 'test' and Watched.poison == 'noise':
            rng = np.random.default_rng(5)
            for sample in found:
                sample['img'] = rng.integers(0, 256, sample['img'].shape, dtype=np.uint8)
                sample['gt_label'] = int(rng.integers(CLASSES))
        if self.split == 'test' and Watched.poison == 'raise':
            raise RuntimeError('the labels of the test were read')
        return found

    def prepare_data(self, idx):
        Watched.reads.append((self.split, idx))
        return super().prepare_data(idx)


def pixels(split, per_class):
    """Images as the model is given them, (N, 48), and their labels."""
    found, labels = images(split, per_class)
    x = torch.from_numpy(found.astype(np.float32)).permute(0, 3, 1, 2).sub(128).div(64)
    return x.flatten(1), torch.from_numpy(labels)


def by_hand(state, x):
    """Features and logits."""
    features = x @ state['backbone.fc.weight'].T + state['backbone.fc.bias']
    return features, features @ state['head.fc.weight'].T + state['head.fc.bias']


def pretrained():
    """Weights whose head knows all classes: least squares on the training images."""
    generator = torch.Generator().manual_seed(3)
    state = {
        'backbone.fc.weight': torch.randn(DIM, 48, generator=generator) * 0.2,
        'backbone.fc.bias': torch.zeros(DIM),
    }
    x, y = pixels('train', TRAIN)
    features = x @ state['backbone.fc.weight'].T
    inputs = torch.cat([features, torch.ones(len(x), 1)], dim=1)
    # Rounded, so that it is the same every time.
    solved = torch.linalg.lstsq(inputs, 3 * torch.eye(CLASSES)[y]).solution.mul(1024).round().div(1024)
    return {**state, 'head.fc.weight': solved[:-1].T.contiguous(), 'head.fc.bias': solved[-1].clone()}


CONFIG = f"""
_base_ = [__import__('olor_mm').cfg('_base_/classification_runtime.py')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None, rule=None))
load_from = 'LOAD_FROM'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[128.0] * 3, std=[64.0] * 3, to_rgb=False),
    backbone=dict(type='Flat'),
    head=dict(type='LinearClsHead', num_classes={CLASSES}, in_channels={DIM}),
)
patches = dict(type='Watched', per_class={TRAIN}, serialize_data=False, pipeline=[
    dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')])
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='olor_mm.ClassSubset', dataset=patches, classes={SEEN}),
)
test_dataloader = dict(
    batch_size=7, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Watched', serialize_data=False, split='test', per_class={TEST},
                 pipeline=[dict(type='PackInputs')]),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
randomness = dict(seed=11)
"""


def on_rank(rank, argv):
    """Calibrate as one of several processes: what it has found, and its share of what was read."""
    from olor_mm.tooling.calibration import command

    found = []
    original = command.estimate

    def estimate(*args):
        found.append(original(*args))
        return found[0]

    command.estimate = estimate
    command.calibrate([*argv, '--launcher', 'pytorch', '--cfg-options', 'env_cfg.dist_cfg.backend=gloo'])
    _, gammas, folds, bench = found[0]
    return gammas, [None if fold is None else fold.gamma for fold in folds], bench.model.state_dict(), Watched.reads
