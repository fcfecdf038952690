"""LoRA merged into the weights: equal outputs, an ordinary model, and back again."""

import copy

import pytest
import torch

from olor_mm.models import merge, unmerge

from ._attention import AttentionModel, adapted

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
KINDS = ['fused', 'split', 'torch']
OPTIONS = [{}, {'targets': ['attn', r'fc[12]$'], 'rows': 'k', 'dropout': 0.0}]


@pytest.mark.parametrize('options', OPTIONS, ids=['default', 'many'])
@pytest.mark.parametrize('kind', KINDS)
def test_merged_is_the_plain_model(kind, options):
    model = adapted(kind, alpha=1, **options).eval()
    state, expected = copy.deepcopy(model.state_dict()), model(X)
    params = dict(model.named_parameters())
    merge(model)
    torch.testing.assert_close(model(X), expected, rtol=1e-6, atol=1e-6)
    base = AttentionModel(backbone={'kind': kind}).eval()
    base.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(base(X), model(X))
    assert type(model.backbone.blocks[0].attn) is type(base.backbone.blocks[0].attn)
    unmerge(model)
    assert torch.equal(model(X), expected)
    assert model.state_dict().keys() == state.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert all(params[name] is p for name, p in model.named_parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = adapted(alpha=1).to(dtype)
    layer = model.backbone.blocks[0].attn.qkv
    low_rank, w = layer.lora, layer.weight.detach().clone()
    up = torch.zeros(24, 4)
    up[:8, :2], up[16:, 2:] = low_rank.b[0].float(), low_rank.b[1].float()
    expected = (w.float() + 0.5 * up @ low_rank.a.flatten(0, 1).float()).to(dtype)
    merge(model)
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=0)
    unmerge(model)
    assert torch.equal(layer.weight, w)


@pytest.mark.parametrize('kind', KINDS)
def test_merged_it_can_be_trained(kind):
    model = adapted(kind)
    merge(model)
    model.train()(X).sum().backward()
    assert model.head.weight.grad.any()


def test_a_copy_is_unmerged_by_itself():
    model = adapted().eval()
    expected = model(X)
    merge(model)
    twin = copy.deepcopy(model)
    unmerge(twin)
    assert torch.equal(twin(X), expected)
    assert not hasattr(model.backbone.blocks[0].attn.qkv, 'lora')


@pytest.mark.parametrize('kind', KINDS)
def test_what_was_saved_merged_is_a_new_start(kind):
    model = adapted(kind).eval()
    merge(model)
    other = adapted(kind, seed=1).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(other(X), model(X), rtol=1e-6, atol=1e-6)


def test_what_cannot_be():
    model = adapted()
    with pytest.raises(ValueError, match='it is not merged'):
        unmerge(model)
    with pytest.raises(ValueError, match='no layer of it is adapted'):
        merge(AttentionModel())
    merge(model)
    with pytest.raises(ValueError, match='merged already'):
        merge(model)
