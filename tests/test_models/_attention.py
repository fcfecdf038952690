"""A small transformer whose attention takes its q, k and v in the ways that the toolboxes have, and a classifier."""

import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.test_engine import _toy  # noqa: F401 - registers ToyDataset


class Fused(nn.Module):
    """One layer makes q, k and v, as in mmpretrain's ViT; ``split`` puts the bias together as BEiT does."""

    def __init__(self, width, split):
        super().__init__()
        self.width = width
        self.qkv = nn.Linear(width, 3 * width, bias=not split)
        self.proj = nn.Linear(width, width)
        if split:
            self.q_bias = nn.Parameter(torch.randn(width))
            self.v_bias = nn.Parameter(torch.randn(width))

    def forward(self, x):
        if hasattr(self, 'q_bias'):
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
            made = functional.linear(x, self.qkv.weight, bias)
        else:
            made = self.qkv(x)
        q, k, v = made.split(self.width, -1)
        return self.proj(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)


class Torch(nn.Module):
    """torch's own attention, as in mmseg's ViT and DETR."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x)[0]


class Block(BaseModule):
    """Attention and two linear layers."""

    def __init__(self, width, kind):
        super().__init__()
        self.attn = Torch(width) if kind == 'torch' else Fused(width, kind == 'split')
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.fc2(torch.relu(self.fc1(x)))


@MODELS.register_module(force=True)
class AttentionBackbone(BaseModule):
    """A stem, blocks and a batch norm."""

    def __init__(self, width=8, depth=2, kind='fused', checkpointed=False, init_cfg=None):
        super().__init__(init_cfg)
        self.checkpointed = checkpointed
        self.patch_embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList([Block(width, kind) for _ in range(depth)])
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        x = self.patch_embed(x)[:, None] * torch.linspace(0.5, 1.5, 3)[:, None]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.norm(x.mean(1))


@MODELS.register_module(force=True)
class AttentionModel(BaseModel):
    """That backbone and a head; takes the batches of ToyDataset."""

    def __init__(self, init_cfg=None, backbone=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build({'type': 'AttentionBackbone', **(backbone or {})})
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, target=None, mode='tensor'):
        x = inputs if isinstance(inputs, torch.Tensor) else torch.stack(list(inputs))
        out = self.head(self.backbone(x))
        return {'loss': (out - torch.stack(list(target))).square().mean()} if mode == 'loss' else out


def adapted(kind='fused', seed=0, filled=True, **options):
    """AttentionModel with LoRA, its B not zero where ``filled``."""
    torch.manual_seed(seed)
    method = {'type': 'LoRA', 'rank': 2, **options}
    model = MODELS.build(
        {'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'method': method, 'backbone': {'kind': kind}}
    )
    if filled:
        fill(model)
    return model


def fill(model):
    """Random values for every B."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in model.tuning.added and name.endswith('.b'):
                p.normal_()
