"""Trainable subsets: which parameters, and that what is frozen is as at inference."""

import pytest
import torch
from torch import nn

from ._toy import NoisyModel, tuned

BLOCK = {'fc1.weight', 'fc1.bias', 'norm.weight', 'norm.bias', 'fc2.weight', 'fc2.bias'}
HEAD = {'head.weight', 'head.bias'}


def blocks(*indices):
    return {f'backbone.blocks.{i}.{name}' for i in indices for name in BLOCK}


LAST = {'backbone.norm.weight', 'backbone.norm.bias'}
EXPECTED = {
    'Linear': ({'type': 'Linear'}, HEAD),
    'TopK 1': ({'type': 'TopK', 'k': 1}, HEAD | LAST | blocks(3)),
    'TopK 4': ({'type': 'TopK', 'k': 4}, HEAD | LAST | blocks(0, 1, 2, 3)),
    'BitFit': (
        {'type': 'BitFit'},
        HEAD | {name for name, _ in NoisyModel().named_parameters() if name.rpartition('.')[2] == 'bias'},
    ),
    'Subset': ({'type': 'Subset', 'train': [r'blocks\.[01]\.fc1', 'patch_embed']}, HEAD | {
        'backbone.patch_embed.weight', 'backbone.patch_embed.bias', 'backbone.blocks.0.fc1.weight',
        'backbone.blocks.0.fc1.bias', 'backbone.blocks.1.fc1.weight', 'backbone.blocks.1.fc1.bias',
    }),
    'the whole model is the part': ({'type': 'Subset', 'train': r'head\.bias', 'part': ''}, {'head.bias'}),
    'and others': ({'type': 'TopK', 'k': 1, 'train': 'patch_embed.bias'}, {
        'backbone.patch_embed.bias', *HEAD, *LAST, *blocks(3),
    }),
}  # fmt: skip


@pytest.mark.parametrize('case', EXPECTED)
def test_these_are_trained(case):
    method, expected = EXPECTED[case]
    assert {name for name, p in tuned(method).named_parameters() if p.requires_grad} == expected


def test_what_the_model_freezes_stays_frozen():
    class Frozen(NoisyModel):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head.bias.requires_grad_(False)

    model = tuned('Linear', of=Frozen)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {'head.weight'}


@pytest.mark.parametrize('k', [1, 2])
def test_frozen_blocks_are_as_at_inference(k):
    torch.manual_seed(0)
    model = tuned({'type': 'TopK', 'k': k})
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seen = {}
    for i, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda _, args, out, i=i: seen.__setitem__(i, (args[0].detach(), out.detach())))
    x = torch.randn(16, 4)
    model.train()
    model.train(False)
    model.train()
    model(x, x[:, :2], mode='loss')['loss'].backward()
    for i, block in enumerate(model.backbone.blocks):
        given, made = seen[i]
        frozen = i < 4 - k
        counted = block.norm.num_batches_tracked - before[f'backbone.blocks.{i}.norm.num_batches_tracked']
        assert counted == (0 if frozen else 1)
        hidden = torch.relu(given @ block.fc1.weight.T + block.fc1.bias)
        mean, var = before[f'backbone.blocks.{i}.norm.running_mean'], before[f'backbone.blocks.{i}.norm.running_var']
        hidden = (hidden - mean) / (var + block.norm.eps).sqrt() * block.norm.weight + block.norm.bias
        expected = given + hidden @ block.fc2.weight.T + block.fc2.bias
        assert torch.allclose(made, expected, atol=1e-5) == frozen
    assert model.training
    assert model.backbone.blocks[3].training


def test_lists_that_are_walked_over_are_looked_into():
    model = tuned('Linear')
    assert model.tuning.frozen.names == ['backbone']
    assert tuned({'type': 'TopK', 'k': 2}).tuning.frozen.names == [
        'backbone.patch_embed',
        'backbone.blocks.0',
        'backbone.blocks.1',
    ]


def test_after_more_is_trained_modes_are_found_anew():
    model = tuned('Linear')
    for p in model.backbone.parameters():
        p.requires_grad_(True)
    model.tuning.frozen.find()
    model.train()
    model(torch.randn(4, 4), torch.randn(4, 2))
    assert all(module.training for module in model.modules())
    assert isinstance(model.backbone.norm, nn.LayerNorm)
