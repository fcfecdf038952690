"""A ViT laid out as mmpretrain's and mmseg's are, without importing them: for whole runs, and for several processes."""

import torch
from mmengine.model import BaseModel, BaseModule, ModuleList
from mmengine.registry import MODELS
from torch import nn

from tests.test_engine import _toy  # noqa: F401 - registers ToyDataset


class Attention(nn.Module):
    """One head."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v)


class MLP(nn.Module):
    """mmcv's FFN."""

    def __init__(self, width):
        super().__init__()
        first = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.0))
        self.layers = nn.Sequential(first, nn.Linear(2 * width, width), nn.Dropout(0.0))

    def forward(self, x):
        return self.layers(x)


class Block(BaseModule):
    """With the trap of mmpretrain's: ``init_weights`` draws the MLP again."""

    def __init__(self, width, post_norm=False):
        super().__init__()
        self.ln1, self.attn, self.ln2, self.ffn = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width), MLP(width)
        self.post_norm = post_norm

    def init_weights(self):
        super().init_weights()
        for m in self.ffn.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.normal_(m.bias, std=1e-6)

    def forward(self, x):
        if self.post_norm:
            return x + self.ln2(self.ffn(x + self.ln1(self.attn(x))))
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


@MODELS.register_module(force=True)
class ToyViT(BaseModule):
    """Four numbers are four patches; the outputs are those of the blocks ``out_indices``."""

    def __init__(self, width=8, depth=4, out_indices=(-1,), post_norm=False, freeze=0, init_cfg=None):
        super().__init__(init_cfg)
        self.num_layers = depth
        self.out_indices = [i % depth for i in out_indices]
        self.patch_embed = nn.Linear(1, width)
        self.pos_embed = nn.Parameter(torch.randn(1, 4, width))
        self.layers = ModuleList([Block(width, post_norm) for _ in range(depth)])
        self.ln1 = nn.LayerNorm(width)
        self.frozen_stages = freeze

    def train(self, mode=True):
        super().train(mode)
        for block in self.layers[: self.frozen_stages]:
            block.requires_grad_(False)
        return self

    def forward(self, x):
        x = self.patch_embed(x.unsqueeze(-1)) + self.pos_embed
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == len(self.layers) - 1:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)


@MODELS.register_module(force=True)
class ViTModel(BaseModel):
    """A backbone and a head; takes the batches of ToyDataset."""

    def __init__(self, init_cfg=None, backbone=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build({'type': 'ToyViT', **(backbone or {})})
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, target=None, mode='tensor'):
        outs = self.backbone(inputs if isinstance(inputs, torch.Tensor) else torch.stack(list(inputs)))
        if mode != 'loss':
            return outs
        return {'loss': (self.head(outs[-1].mean(1)) - torch.stack(list(target))).square().mean()}


def expanded(backbone=None, **method):
    """ViTModel with new blocks, as a config builds it."""
    cfg = {'type': 'BlockExpansion', **method}
    return MODELS.build({'type': 'olor_mm.Tuned', 'of': 'ViTModel', 'method': cfg, 'backbone': backbone or {}})


def pretrained(**backbone):
    """ViTModel without new blocks, all of whose weights are random: norms and biases too."""
    model = ViTModel(backbone=backbone)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model
