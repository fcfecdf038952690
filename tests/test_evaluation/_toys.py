"""A classifier and labelled points, laid out as those of mmpretrain, without importing it: for runs and for ranks."""

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F

CLASSES, DIM = 5, 4


def points(split, count, classes=CLASSES, seed=0):
    """Points about the centres of classes, and their labels."""
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed({'train': 100, 'val': 200}[split] + seed)
    labels = torch.arange(count) % classes
    return centres[labels] + torch.randn(count, 6, generator=generator), labels


@TRANSFORMS.register_module(force=True)
class Noise:
    """Augmentation."""

    def __init__(self, std):
        self.std = std

    def __call__(self, data):
        # Every generator moves.
        scale = self.std * (random.random() + np.random.rand())
        return {**data, 'inputs': data['inputs'] + scale * torch.randn(6)}


@DATASETS.register_module(force=True)
class Points(BaseDataset):
    """Those points."""

    def __init__(self, split='val', count=23, classes=CLASSES, seed=0, **kwargs):
        self.args = (split, count, classes, seed)
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self):
        x, labels = points(*self.args)
        return [{'inputs': row, 'gt_label': int(label)} for row, label in zip(x, labels, strict=True)]

    def prepare_data(self, idx):
        data = self.pipeline(self.get_data_info(idx))
        sample = BaseDataElement(gt_label=torch.tensor([data['gt_label']]), metainfo={'sample_idx': idx})
        return {'inputs': data['inputs'], 'data_samples': sample}


@MODELS.register_module(force=True)
class ToyClsHead(BaseModule):
    """A linear head."""

    def __init__(self, num_classes=CLASSES, in_channels=DIM, init_cfg=None):
        super().__init__(init_cfg)
        self.fc = nn.Linear(in_channels, num_classes)

    def pre_logits(self, feats):
        return feats[-1]

    def forward(self, feats):
        return self.fc(feats[-1])

    def predict(self, feats, data_samples):
        scores = F.softmax(self(feats), dim=1)
        for sample, score in zip(data_samples, scores, strict=True):
            sample.set_data({'pred_score': score, 'pred_label': score.argmax(0, keepdim=True)})
        return data_samples


@MODELS.register_module(force=True)
class ToyBody(BaseModule):
    """A layer, a batch norm and dropout."""

    def __init__(self, drop=0.2, init_cfg=None):
        super().__init__(init_cfg)
        self.fc, self.norm, self.drop = nn.Linear(6, DIM), nn.BatchNorm1d(DIM), nn.Dropout(drop)

    def forward(self, x):
        return (self.drop(torch.tanh(self.norm(self.fc(x)))),)


@MODELS.register_module(force=True)
class ToyClassifier(BaseModel):
    """A backbone and a head."""

    def __init__(self, backbone=None, head=None, init_cfg=None, data_preprocessor=None):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build({'type': 'ToyBody', **(backbone or {})})
        self.head = MODELS.build({'type': 'ToyClsHead', **(head or {})})

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        feats = self.extract_feat(inputs)
        if mode == 'predict':
            return self.head.predict(feats, data_samples)
        if mode == 'tensor':
            return feats
        return {'loss': F.cross_entropy(self.head(feats), torch.cat([each.gt_label for each in data_samples]))}


def loader(sampler=None, batch_size=5, noise=0.0, **dataset):
    """Of points, as a config has it."""
    return dict(
        dataset=dict(type='Points', pipeline=[dict(type='Noise', std=noise)] if noise else [], **dataset),
        sampler=sampler or dict(type='DefaultSampler', shuffle=False),
        batch_size=batch_size,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
    )


def classifier(seed=0, **options):
    """With weights of its own, in float32."""
    torch.manual_seed(seed)
    return ToyClassifier(**options)


@torch.no_grad()
def by_hand(model, *args):
    """Features, logits and labels of points, straight from the weights."""
    x, labels = points(*args)
    body = model.backbone
    x = (body.fc(x) - body.norm.running_mean) / (body.norm.running_var + body.norm.eps).sqrt()
    features = torch.tanh(x * body.norm.weight + body.norm.bias)
    return features, features @ model.head.fc.weight.T + model.head.fc.bias, labels


_runs = iter(range(10**6))


def run_config(work_dir, *, epochs=2, metrics=(), hooks=(), **changes):
    """A config of a run: 40 noisy points, 8 iterations an epoch."""
    config = dict(
        default_scope='mmengine',
        model=dict(type='ToyClassifier'),
        train_dataloader=loader(dict(type='DefaultSampler', shuffle=True), split='train', count=40, noise=0.1),
        val_dataloader=loader(),
        val_evaluator=list(metrics) or [dict(type='ToyAccuracy')],
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='olor_mm.ResumableRandomnessHook'), *hooks],
        randomness=dict(seed=3),
        work_dir=str(work_dir),
        log_level='ERROR',
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
    )
    config.update(changes)
    config.update(
        {key.replace('val_', 'test_', 1): config[key] for key in ('val_dataloader', 'val_evaluator', 'val_cfg')}
    )
    return Config(config)


def runner_of(config):
    """Of a name of its own: MMEngine keeps message hubs and visualizers by name."""
    config = config.copy()
    config.experiment_name = f'evaluation_{next(_runs)}'
    config.visualizer.name = f'visualizer of {config.experiment_name}'
    torch.manual_seed(0)
    return Runner.from_cfg(config)


@METRICS.register_module(force=True)
class ToyAccuracy(BaseMetric):
    """Of the predictions."""

    default_prefix = 'accuracy'

    def process(self, data_batch, data_samples):
        self.results += [bool(each['pred_label'] == each['gt_label']) for each in data_samples]

    def compute_metrics(self, results):
        return {'top1': 100 * sum(results) / len(results)}
