"""Trainable subsets: which parameters, and that what is frozen is as at inference."""

import copy

import pytest
import torch
from mmengine.model import BaseModel, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

from olor_mm.models import summary

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


@MODELS.register_module(force=True)
class Parts(BaseModel):
    """Modules without parameters at every place where one can be."""

    def __init__(self, sync=False):
        super().__init__()
        norm = nn.SyncBatchNorm if sync else nn.BatchNorm1d
        self.noise = nn.Dropout(0.1)
        self.backbone = nn.Module()
        self.backbone.scale = norm(4, affine=False)
        self.backbone.cls_token = nn.Parameter(torch.ones(4))
        self.backbone.drop_after_pos = nn.Dropout(0.1)
        self.backbone.layer1 = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), norm(4, affine=False), norm(4))
        self.backbone.before = nn.Dropout(0.1)
        self.backbone.block = nn.Linear(4, 4)
        self.backbone.after = nn.Dropout(0.1)
        self.backbone.norm = norm(4)
        self.backbone.last = norm(4, affine=False)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        part = self.backbone
        x = part.layer1(part.drop_after_pos(part.scale(self.noise(x)) + part.cls_token))
        x = part.norm(part.after(part.block(part.before(x))))
        return self.head(self.dropout(part.last(x)))


def training(model):
    return {name for name, module in model.named_modules() if module.training and not [*module.children()]}


ALL = {name for name, module in Parts().named_modules() if not [*module.children()]} | {'tuning'}
IN_FRONT = {f'backbone.{name}' for name in ('scale', 'drop_after_pos', *(f'layer1.{i}' for i in range(4)))}
MODES = {
    'Full': ('Full', set()),
    'nothing of the backbone': ('Linear', {name for name in ALL if name.startswith('backbone')}),
    'the block': ({'type': 'Subset', 'train': 'block'}, IN_FRONT | {'backbone.norm'}),
    'the norm': ({'type': 'Subset', 'train': r'backbone\.norm'}, IN_FRONT | {'backbone.before', 'backbone.block'}),
    'the token': ({'type': 'Subset', 'train': 'cls_token'}, {
        *(f'backbone.layer1.{i}' for i in range(4)), 'backbone.block', 'backbone.norm',
    }),
}  # fmt: skip


@pytest.mark.parametrize('sync', [False, True])
@pytest.mark.parametrize('case', MODES)
def test_modules_without_parameters_go_with_what_is_frozen_around_them(case, sync):
    method, asleep = MODES[case]
    model = tuned(method, of='Parts', sync=sync)
    if sync:
        # As the Runner does on one process, and puts other modules in the place of these.
        model = revert_sync_batchnorm(model)
    for one in (model, copy.deepcopy(model)):
        one.train()
        assert training(one) == ALL - asleep
        one.backbone.train()
        before = {name: buffer.clone() for name, buffer in one.named_buffers()}
        one(torch.randn(8, 4))
        counted = {name.rpartition('.')[0] for name, b in one.named_buffers() if not torch.equal(b, before[name])}
        norms = {name for name, module in one.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)}
        assert counted == norms - asleep


def test_activation_checkpointing_behind_what_is_frozen():
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = tuned({'type': 'TopK', 'k': 2})
        if checkpointed:
            turn_on_activation_checkpointing(model, [f'backbone.blocks.{i}' for i in range(4)])
        model.train()
        x = torch.randn(8, 4)
        torch.manual_seed(1)
        model(x, x[:, :2], mode='loss')['loss'].backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert {name for name, grad in grads[0].items() if grad is not None} == HEAD | LAST | blocks(2, 3)
    for name, grad in grads[0].items():
        assert (grad is None) == (grads[1][name] is None), name
        assert grad is None or torch.equal(grad, grads[1][name]), name


def test_sync_batchnorm_is_converted_with_what_is_frozen():
    model = tuned({'type': 'Subset', 'train': 'block'}, of='Parts')
    model = convert_sync_batchnorm(model)
    model.train()
    assert not model.backbone.norm.training
    assert isinstance(model.backbone.norm, nn.SyncBatchNorm)


def test_what_is_unfrozen_by_hand_wakes_up():
    model = tuned({'type': 'TopK', 'k': 1})
    model.backbone.blocks[2].requires_grad_(True)
    model.train()
    assert [block.training for block in model.backbone.blocks] == [False, False, True, True]


def test_shared_parameters_are_counted_once():
    class Tied(NoisyModel):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head.weight = nn.Parameter(torch.zeros(2, 8))
            self.second = nn.Linear(8, 2)
            self.second.weight = self.head.weight

    model = tuned('Linear', of=Tied)
    of = sum(p.numel() for p in model.backbone.parameters())
    rows = [line.split() for line in summary(model).splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ['backbone', f'{of:,}', '0'], ['head', '18', '18'], ['second', '2', '2'], ['all', f'{of + 20:,}', '20'],
    ]  # fmt: skip
