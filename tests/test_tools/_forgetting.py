"""A classifier, its pre-trained file and folders of images small enough to do by hand what tools/forgetting.py does."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from torch import nn

UPSTREAM, OUTPUTS, DOWN, SIDE, DIM = 4, 6, 3, 4, 8
#: The output of the original head for each upstream class.
MAP = {'ant': 4, 'bee': 0, 'cat': 5, 'dog': 2}
DOWNSTREAM = ('one', 'three', 'two')

CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['olor_mm'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3, to_rgb=False),
    backbone=dict(
        type='Blocks', norm={norm!r}, init_cfg=dict(type='Pretrained', checkpoint={pretrained!r}, prefix='backbone.')
    ),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root={data!r}, data_prefix='train', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=1.0), dict(type='PackInputs'),
    ]),
)
val_dataloader = dict(
    batch_size=5, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root={data!r}, data_prefix='val', pipeline=pipeline),
)
test_dataloader = dict(
    batch_size=5, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root={data!r}, data_prefix='test', pipeline=pipeline),
)
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


@MODELS.register_module(force=True)
class Blocks(BaseModule):
    """A stem, two blocks and a norm."""

    def __init__(self, norm='LN', init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Linear(SIDE * SIDE * 3, DIM)
        make = nn.LayerNorm if norm == 'LN' else nn.BatchNorm1d
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(DIM, DIM), make(DIM), nn.GELU()) for _ in range(2)])

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for layer in self.layers:
            x = x + layer(x)
        return (x,)


def classifier(norm='LN', outputs=OUTPUTS):
    """The model without MMEngine's loaders."""
    from mmpretrain.models import ImageClassifier

    # Fixtures of a whole module are made before a test has set its scope.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageClassifier(
            backbone=dict(type='Blocks', norm=norm),
            head=dict(type='LinearClsHead', num_classes=outputs, in_channels=DIM),
            data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3, to_rgb=False),
        )


def write_images(root, names, per_class, seed, noise=45.0):
    """Class folders of images around the colours of the class."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        centre = np.random.default_rng([number, len(names)]).integers(40, 216, (SIDE, SIDE, 3))
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            image = (centre + rng.normal(0, noise, centre.shape)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / name / f'{i}.png'), image)


def read_images(root):
    """Normalised images, flat, and labels in the order of the folders."""
    x, y = [], []
    for label, folder in enumerate(sorted(each for each in Path(root).iterdir() if each.is_dir())):
        for file in sorted(folder.iterdir()):
            image = (cv2.imread(str(file)).astype(np.float64) - 100.0) / 50.0
            x.append(image.transpose(2, 0, 1).reshape(-1))
            y.append(label)
    return np.stack(x), np.array(y)


class World:
    """Files of a fine-tuning.

    Args:
        folder: Where they go.
        norm: 'LN' or 'BN'.
    """

    def __init__(self, folder, norm='LN'):
        self.folder, self.norm = folder, norm
        for part, count, seed in (('train', 6, 1), ('val', 5, 2)):
            write_images(folder / 'up' / part, MAP, count, seed)
        for part, count, seed in (('train', 4, 3), ('val', 5, 4), ('test', 6, 5)):
            write_images(folder / 'down' / part, DOWNSTREAM, count, seed)
        torch.manual_seed(0)
        self.theta_0 = self.fill(classifier(norm), 0.3).state_dict()
        self.pretrained = folder / 'pretrained.pth'
        torch.save({'state_dict': self.theta_0}, self.pretrained)
        self.theta = self.fine_tuned(1)
        self.checkpoint = self.save('run/epoch_3.pth', self.theta)
        self.config = self.write()

    def fill(self, model, scale):
        with torch.no_grad():
            for param in model.parameters():
                param.add_(scale * torch.randn_like(param))
            for name, buffer in model.named_buffers():
                if name.endswith('running_mean'):
                    buffer.normal_()
                elif name.endswith('running_var'):
                    buffer.uniform_(0.5, 2.0)
                elif name.endswith('num_batches_tracked'):
                    buffer.fill_(7)
        return model

    def fine_tuned(self, seed):
        """theta_0 and a change, and a new head."""
        torch.manual_seed(seed)
        model = classifier(self.norm, DOWN)
        own = {k: v for k, v in self.theta_0.items() if k.startswith('backbone.')}
        model.load_state_dict(own, strict=False)
        return {k: v.clone() for k, v in self.fill(model, 0.2).state_dict().items()}

    def save(self, name, state, **meta):
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        content = {'meta': {'epoch': 3, 'iter': 9, 'dataset_meta': {'classes': DOWNSTREAM}, **meta}}
        torch.save({**content, 'state_dict': state, 'message_hub': {}}, file)
        return file

    def write(self, extra='', name='toy.py'):
        text = CONFIG.format(norm=self.norm, pretrained=str(self.pretrained), data=str(self.folder / 'down'))
        (self.folder / name).write_text(text + extra)
        return self.folder / name


# ---------------------------------------------------------------- by hand, in float64


def features(state, x, norm='LN'):
    """[N, 8] of the backbone."""
    s = {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}
    h = x @ s['backbone.stem.weight'].T + s['backbone.stem.bias']
    for i in range(2):
        linear, after = f'backbone.layers.{i}.0', f'backbone.layers.{i}.1'
        z = h @ s[f'{linear}.weight'].T + s[f'{linear}.bias']
        if norm == 'LN':
            z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
        else:
            z = (z - s[f'{after}.running_mean']) / np.sqrt(s[f'{after}.running_var'] + 1e-5)
        z = z * s[f'{after}.weight'] + s[f'{after}.bias']
        h = h + torch.nn.functional.gelu(torch.from_numpy(z)).numpy()
    return h


def logits(state, x, norm='LN'):
    """Those of a model with its own head."""
    weight, bias = (state[f'head.fc.{part}'].double().numpy() for part in ('weight', 'bias'))
    return features(state, x, norm) @ weight.T + bias


def top1(scores, labels):
    return 100 * float((scores.argmax(1) == labels).mean())


def knn(bank, bank_labels, queries, labels, k):
    """Top-1 of the weighted vote, one query at a time."""
    bank, queries = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (bank, queries))
    right = 0
    for query, label in zip(queries, labels, strict=True):
        cosines = bank @ query
        votes = np.zeros(bank_labels.max() + 1)
        for i in np.argsort(-cosines)[:k]:
            votes[bank_labels[i]] += np.exp(cosines[i] / 0.07)
        right += votes.argmax() == label
    return 100 * right / len(labels)
