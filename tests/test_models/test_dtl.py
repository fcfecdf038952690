"""DTL and DTL+: identity at the start, the algorithm written out, what is made, trained and kept in memory."""

import copy
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.utils.checkpoint import checkpoint

from olor_mm.models.dtl_side import CARRIED, theta
from tests.test_engine import _toy  # noqa: F401 - registers ToyBackbone
from tests.test_models._dtl import DENSE_SWIN, DENSE_VIT, SWIN, VIT, build, images, shake, written_out

pytest.importorskip('mmpretrain.models')

CLS = {**VIT, 'out_type': 'cls_token', 'final_norm': True}
#: A backbone, the size of its images, and M.
BACKBONES = {
    'ViT': (VIT, (32, 24), 3),
    'ViT, class token': (CLS, (32, 24), 2),
    'Swin': (SWIN, (32, 48), 4),
    'mmseg ViT': (DENSE_VIT, (32, 24), 2),
    'mmseg ViT without a class token': ({**DENSE_VIT, 'with_cls_token': False}, (32, 24), 4),
    'mmseg Swin': ({'type': 'mmseg.SwinTransformer', **DENSE_SWIN}, (32, 32), 4),
    'mmdet Swin': ({'type': 'mmdet.SwinTransformer', **DENSE_SWIN}, (32, 48), 6),
}


def with_dtl(name='ViT', plus=True, **options):
    """A model whose side network does something, images for it, and M."""
    backbone, size, start_block = BACKBONES[name]
    pytest.importorskip(f'{backbone["type"].split(".")[0]}.models')
    method = {'type': 'DTL', 'rank': 2, 'start_block': start_block, 'plus': plus, **options}
    return shake(build(backbone, method)), images(*size), start_block


def plain(model):
    """The same frozen model without DTL."""
    twin = copy.deepcopy(model)
    twin.backbone.dtl.release()
    return twin


def gradients(model, loss):
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(params, torch.autograd.grad(loss, params.values()), strict=True))


@pytest.mark.parametrize('plus', [False, True])
@pytest.mark.parametrize('name', BACKBONES)
def test_it_is_the_algorithm_and_at_the_start_the_plain_model(name, plus):
    model, x, start_block = with_dtl(name, plus, **({'kernel_size': 5} if plus and name == 'Swin' else {}))
    out = model(x)
    expected_out = written_out(model, x, start_block)
    torch.testing.assert_close(out, expected_out, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(out, plain(model)(x))
    found, expected = (gradients(model, value.square().sum()) for value in (out, expected_out))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9)
        # Nothing was made that has no part in it.
        assert value.abs().max() > 0, key
    with torch.no_grad():
        for side in model.backbone.dtl.sides.values():
            side.up.zero_()
    assert torch.equal(model(x), plain(model)(x))


@pytest.mark.parametrize('plus', [False, True])
def test_a_new_side_network_adds_nothing_and_can_begin(plus):
    model, x = build(VIT, {'type': 'DTL', 'start_block': 3, 'plus': plus}), images(32, 24)
    out = model(x)
    assert torch.equal(out, plain(model)(x))
    found = gradients(model, out.square().sum())
    for name, p in model.named_parameters():
        if '.dtl.' in name:
            # As torch draws linear layers and convolutions.
            bound = 1 / 16**0.5 if name.endswith('.down') else 1 / 3
            assert not p.any() if name.endswith('.up') else 0.5 * bound < p.abs().max() <= bound
            assert found[name].any() == name.endswith('.up')


SIZES = {
    'ViT-B': ('base', {}, 36_864),
    'ViT-B, DTL+': ('base', {'plus': True}, 43_776),
    'ViT-B, DTL+, size 5': ('base', {'plus': True, 'kernel_size': 5}, 56_064),
    'Swin-B': ('swin', {'rank': 4, 'start_block': 15}, 90_112),
    'Swin-B, DTL+': ('swin', {'rank': 4, 'start_block': 15, 'plus': True}, 90_112 + 9 * (512 + 1024)),
}


@pytest.mark.parametrize('case', SIZES)
def test_as_many_parameters_as_the_papers(case):
    kind, options, expected = SIZES[case]
    changes = {'arch': 'base', 'img_size': 224, 'patch_size': 16}
    backbone = {**VIT, **changes} if kind == 'base' else {'type': 'mmpretrain.SwinTransformer', 'arch': 'base'}
    # Swin reads numbers back while it is built.
    with torch.device('meta' if kind == 'base' else 'cpu'):
        config = {'type': 'olor_mm.Tuned', 'of': 'OneOutput', 'method': {'type': 'DTL', **options}}
        model = MODELS.build({**config, 'backbone': backbone, 'channels': 768})
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trained.items() if name.startswith('backbone.')) == expected
    assert {name.split('.')[0] for name in trained} == {'backbone', 'head'}
    assert all('.dtl.' in name for name in trained if name.startswith('backbone.'))
    docs = (Path(__file__).resolve().parents[2] / 'docs' / 'methods.md').read_text()
    said = ', '.join(f'{key}={value!r}' for key, value in {'type': 'DTL', **options}.items())
    assert f'| `dict({said})` | {expected:,} |' in docs


@pytest.mark.parametrize('beta', [1.0, 100.0])
def test_theta_and_its_derivatives(beta):
    h = torch.linspace(-0.1, 0.1, 41, dtype=torch.double, requires_grad=True)
    found, expected = theta(h, beta), h / (1 + torch.exp(-beta * h))
    for _ in range(3):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        found, expected = (torch.autograd.grad(y.sum(), h, create_graph=True)[0] for y in (found, expected))
    with torch.no_grad():
        assert torch.equal(theta(h, beta), h * torch.sigmoid(beta * h))


def test_theta_in_half_precision_is_finite_where_its_argument_is_not():
    h = torch.tensor([-4000.0, -1.0, 0.0, 1e-3, 4000.0], dtype=torch.half, requires_grad=True)
    theta(h, 100.0).sum().backward()
    wide = h.detach().double().requires_grad_()
    (wide * torch.sigmoid(100 * wide)).sum().backward()
    torch.testing.assert_close(h.grad.double(), wide.grad, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- memory


def held(run, model):
    """Bytes that a forward pass leaves for the backward pass, those of parameters left out, and its output."""
    sizes, known = {}, {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def pack(y):
        sizes[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        out = run()
    return {place: size for place, size in sizes.items() if place not in known}, out


def blocks_of(backbone):
    return [block for stage in getattr(backbone, 'stages', [backbone]) for block in
            (stage.layers if stage is backbone else stage.blocks)]  # fmt: skip


@pytest.mark.parametrize('backbone', [VIT, SWIN], ids=['ViT', 'Swin'])
def test_the_later_it_starts_the_less_is_held_and_nothing_in_front(backbone):
    x, depth, amounts = images(32, 32), 4 if backbone is VIT else 6, []
    for start_block in range(1, depth + 1):
        model = shake(build(backbone, {'type': 'DTL', 'start_block': start_block}))
        graphs = []
        for block in blocks_of(model.backbone):
            block.register_forward_pre_hook(lambda _, args, graphs=graphs: graphs.append(args[0].requires_grad))
        amounts.append(sum(held(lambda model=model: model(x), model)[0].values()))
        assert graphs == [i >= start_block for i in range(depth)]
    assert all(earlier > later for earlier, later in pairwise(amounts)), amounts
    full, linear = (build(backbone, method) for method in ('Full', 'Linear'))
    full, linear = (sum(held(lambda model=model: model(x), model)[0].values()) for model in (full, linear))
    assert linear < amounts[-1] < 0.5 * full
    assert amounts[0] < full


def test_a_block_in_front_leaves_its_input_and_what_the_rank_takes():
    """By hand: x and x A^T of each block, h of the last, and what pooling, norm and head keep."""
    widths, tokens, rank, size = 16, 2 * (1 + 12), 2, 8
    model = shake(build(VIT, {'type': 'DTL', 'start_block': 4, 'rank': rank}))
    kept, _ = held(lambda: model(images(32, 24)), model)
    inputs = 4 * tokens * (widths + rank) * size
    states = tokens * widths * size
    rest = sum(kept.values()) - inputs - states
    # One block alone keeps about ten times as much.
    assert 0 <= rest < 1.5 * states


@pytest.mark.parametrize('name', ['ViT', 'Swin'])
def test_the_state_lives_on_where_autograd_needs_it_and_nowhere_else(name):
    """It goes with the stream's tensors, some of which are kept for A's gradient."""
    model, x, start_block = with_dtl(name)
    states = {}
    for i in model.backbone.dtl.places:
        blocks_of(model.backbone)[i].register_forward_hook(
            lambda _, __, out, i=i: states.__setitem__(i, weakref.ref(getattr(out, CARRIED).h))
        )
    out = model(x)
    assert {i for i, state in states.items() if state() is not None} == {i for i in states if i >= start_block - 1}
    del out
    assert not any(state() is not None for state in states.values())


# ---------------------------------------------------------------- state between the blocks


class Checkpointed(nn.Module):
    def __init__(self, block, reentrant):
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, *args):
        return checkpoint(self.block, *args, use_reentrant=self.reentrant)


def checkpointed(model, reentrant=False):
    twin = copy.deepcopy(model)
    for blocks in [stage.blocks for stage in getattr(twin.backbone, 'stages', ())] or [twin.backbone.layers]:
        for i, block in enumerate(blocks):
            blocks[i] = Checkpointed(block, reentrant)
    return twin


@pytest.mark.parametrize(('name', 'start_block'), [('ViT', 1), ('Swin', 4)])
def test_images_of_several_sizes_and_blocks_run_twice(name, start_block):
    """One backward pass through forward passes of other sizes and batches, with and without checkpointing."""
    model = with_dtl(name, start_block=start_block)[0]
    inputs = [images(*size, batch=n, seed=n) for n, size in enumerate([(32, 32), (48, 64), (64, 32)], start=1)]
    losses = [model(x).square().sum() for x in inputs]
    each = [gradients(model, model(x).square().sum()) for x in inputs]
    together = gradients(model, sum(losses))
    twin = checkpointed(model)
    again = gradients(twin, sum(twin(x).square().sum() for x in inputs))
    for key, value in together.items():
        torch.testing.assert_close(value, sum(grads[key] for grads in each))
    for value, other in zip(together.values(), again.values(), strict=True):
        torch.testing.assert_close(value, other)


def test_a_checkpoint_that_loses_the_state_is_refused():
    model = checkpointed(with_dtl()[0], reentrant=True)
    model.backbone.patch_embed.requires_grad_(True)
    with pytest.raises(RuntimeError, match='use_reentrant=False'):
        model(images(32, 24)).sum().backward()


def test_nested_passes_and_broken_ones_disturb_nothing():
    model, x, _ = with_dtl()
    expected = model(x)
    other = images(48, 64, batch=1, seed=3)
    calls = []

    def within(_, args):
        if not calls:
            calls.append(None)
            calls.append(model(other))

    def broken(*_):
        raise ZeroDivisionError

    handle = model.backbone.layers[2].register_forward_pre_hook(within)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    handle.remove()
    torch.testing.assert_close(calls[1], model(other), rtol=0, atol=0)
    handle = model.backbone.layers[2].register_forward_pre_hook(broken)
    with pytest.raises(ZeroDivisionError):
        model(other)
    handle.remove()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_a_copy_has_a_side_network_of_its_own():
    model, x, _ = with_dtl()
    twin, expected = copy.deepcopy(model), model(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        for p in twin.backbone.dtl.parameters():
            p.zero_()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert torch.equal(twin(x), plain(twin)(x))


def test_training_and_inference_are_the_same_network():
    model, x, _ = with_dtl('Swin')
    training = [model(x) for _ in range(2)]
    model.eval()
    with torch.no_grad():
        assert all(torch.equal(out, model(x)) for out in training)
    assert not any(p.requires_grad for p in model.backbone.norm2.parameters())


def test_autocast_leaves_the_stream_in_its_dtype():
    model, x, _ = with_dtl()
    model, x = model.float(), x.float()
    seen = []
    for block in model.backbone.layers:
        block.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        plain(model)(x)
        expected, seen[:] = list(seen), []
        out = model(x)
    assert seen == expected
    torch.testing.assert_close(out.float(), model(x), rtol=0.1, atol=0.1)
    assert all(torch.isfinite(g).all() for g in gradients(model, out.float().sum()).values())


# ---------------------------------------------------------------- weights


def test_weights_of_before_are_read_and_tuned_ones_come_back():
    model, x, _ = with_dtl()
    tuned = model.state_dict()
    before = {key.replace('ln2', 'ln1') if key.startswith('backbone.ln') else key: value + 0.1 for key, value in
              tuned.items() if '.dtl.' not in key}  # fmt: skip
    fresh = build(VIT, {'type': 'DTL', 'start_block': 3, 'plus': True}, seed=5)
    fresh.load_state_dict(before)
    # The norm of the mean is the one that pre-training has for all tokens.
    torch.testing.assert_close(fresh.backbone.ln2.weight, before['backbone.ln1.weight'], rtol=0, atol=0)
    torch.testing.assert_close(fresh.backbone.ln2.bias, before['backbone.ln1.bias'], rtol=0, atol=0)
    assert torch.equal(fresh(x), plain(fresh)(x))
    fresh.load_state_dict({**tuned, 'backbone.ln1.weight': before['backbone.ln1.weight']}, strict=False)
    assert torch.equal(fresh(x), model(x))
    fresh.load_state_dict(tuned)


OTHERS = {
    'rank': ({'rank': 4}, r'dtl\.sides\.0\.down of DTL is \(2, 16\) in the checkpoint and \(4, 16\) in the model'),
    'kernel': ({'kernel_size': 5}, r'convs\.0\.weight of DTL is \(16, 1, 3, 3\)'),
    'no convolution': ({'plus': False}, 'of DTL with 1 convolutions, the model has 0: set plus'),
    'M': ({'start_block': 2}, r'start_block=3, beta=100\.0 in it and start_block=2, beta=100\.0 in the model'),
    'beta': ({'beta': 10}, r'beta=10\.0 in the model; set start_block and beta'),
}


@pytest.mark.parametrize('load', [load_state_dict, nn.Module.load_state_dict])
@pytest.mark.parametrize('case', OTHERS)
def test_weights_of_other_options_are_refused(case, load):
    """MMEngine's loader only warns of other shapes, and nobody sees another M."""
    options, message = OTHERS[case]
    method = {'type': 'DTL', 'start_block': 3, 'plus': True}
    tuned = build(VIT, method).state_dict()
    with pytest.raises(ValueError, match=message):
        load(build(VIT, {**method, **options}), tuned, strict=False)


@pytest.mark.parametrize('name', ['ViT', 'mmseg ViT', 'mmdet Swin'])
def test_initialisation_by_the_model_keeps_the_identity(name):
    model, x, _ = with_dtl(name)
    with torch.no_grad():
        for side in model.backbone.dtl.sides.values():
            side.up.zero_()
    drawn = {key: value.clone() for key, value in model.backbone.dtl.state_dict().items()}
    model.backbone.init_weights()
    for key, value in model.backbone.dtl.state_dict().items():
        assert torch.equal(value, drawn[key])
    assert torch.equal(model(x), plain(model)(x))


# ---------------------------------------------------------------- what is refused

WRONG = {
    'rank': ({'rank': 0}, 'rank=0 must be the rank'),
    'M': ({'start_block': 0}, 'start_block=0 must be the number of a block'),
    'M is no number': ({'start_block': 2.5}, 'start_block=2.5 must be'),
    'M too large': ({'start_block': 5}, 'start_block=5, but there are 4 blocks'),
    'plus': ({'plus': 'yes'}, "plus='yes' must be True"),
    'size': ({'plus': True, 'kernel_size': 0}, "kernel_size=0 must be the size of DTL\\+'s convolution"),
    'size without': ({'kernel_size': 5}, 'kernel_size=5 does nothing without'),
    'beta': ({'beta': 0}, 'beta=0 must be a number above 0'),
    'a typo': ({'start_blok': 3}, "no option 'start_blok', did you mean 'start_block'"),
    'part': ({'part': 'bakbone'}, "part='bakbone': OneOutput has no 'bakbone'"),
    'another part': ({'part': 'head'}, "part='head': ModuleList is neither a VisionTransformer"),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        build(VIT, {'type': 'DTL', 'start_block': 3, **options})


def test_models_without_an_output_for_it_are_refused():
    with pytest.raises(ValueError, match=r'start_block=4 is behind block 2, .* say 2 at most'):
        build(DENSE_VIT, {'type': 'DTL', 'start_block': 4}, out_indices=(0, 1), final_norm=False)
    with pytest.raises(ValueError, match=r"reads the class token, .* out_type='avg_featmap'"):
        build(CLS, {'type': 'DTL', 'start_block': 4, 'plus': True})
    with pytest.raises(ValueError, match=r'has a part named .dtl. already'):
        build(VIT, [{'type': 'DTL', 'start_block': 3}, {'type': 'DTL', 'start_block': 4}])
    with pytest.raises(ValueError, match=r'ToyBackbone is neither .* use LoRA, BitFit or TopK'):
        build({'type': 'ToyBackbone'}, {'type': 'DTL', 'start_block': 3}, channels=8)


def test_behind_the_last_output_nothing_is_made():
    model = build(DENSE_VIT, {'type': 'DTL', 'start_block': 2}, out_indices=(0, 2), final_norm=False)
    assert [*model.backbone.dtl.sides] == ['0', '1', '2']
    assert not {key for key, value in gradients(model, model(images(32, 24)).sum()).items() if value is None}


def test_masked_tokens_have_no_grid():
    model, x, _ = with_dtl()
    model.backbone.layers[0].register_forward_pre_hook(lambda _, args: (args[0][:, :5],))
    with pytest.raises(ValueError, match=r'has 5 tokens, .* Say plus=False'):
        model(x)
