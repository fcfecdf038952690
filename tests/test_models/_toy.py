"""A transformer-like backbone with drop path and batch norm, and a classifier on it, for methods that change models."""

import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from torch import nn

from tests.test_engine import _toy  # noqa: F401 - registers ToyModel


@MODELS.register_module(force=True)
class NoisyBlock(BaseModule):
    """A residual block with dropout and a batch norm."""

    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(self.norm(self.drop(torch.relu(self.fc1(x)))))


@MODELS.register_module(force=True)
class NoisyBackbone(BaseModule):
    """A stem, blocks and a last norm."""

    def __init__(self, width=8, depth=4, init_cfg=None):
        super().__init__(init_cfg)
        self.patch_embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList([NoisyBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@MODELS.register_module(force=True)
class NoisyModel(BaseModel):
    """That backbone and a head; takes the batches of ToyDataset."""

    def __init__(self, init_cfg=None, backbone=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build({'type': 'NoisyBackbone', **(backbone or {})})
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, target, mode='tensor'):
        out = self.head(self.backbone(torch.stack(list(inputs))))
        return {'loss': (out - torch.stack(list(target))).square().mean()} if mode == 'loss' else out


def tuned(method, **model):
    """NoisyModel with a method, as a config builds it."""
    return MODELS.build({'type': 'olor_mm.Tuned', 'of': 'NoisyModel', 'method': method, **model})
