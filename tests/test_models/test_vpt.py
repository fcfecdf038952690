"""VPT against the forward pass of each ViT written out with torch.cat, and what its hooks have to survive."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import load_checkpoint
from mmpretrain.models import (
    BEiTViT,
    DeiT3,
    DistilledVisionTransformer,
    MAEViT,
    MoCoV3ViT,
    ResNet,
    RevVisionTransformer,
    SwinTransformer,
    VisionTransformer,
    ViTEVA02,
    ViTSAM,
)
from mmpretrain.models.utils import resize_pos_embed
from mmseg.models.backbones import BEiT as SegBEiT
from mmseg.models.backbones import VisionTransformer as SegViT
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from olor_mm.models import VPT
from tests.test_engine._toy import ToyDataset, make_runner, toy_config, weights

P, D, DEPTH, PATCH, SIZE = 5, 16, 3, 8, 24
ARCH = {'embed_dims': D, 'num_layers': DEPTH, 'num_heads': 2, 'feedforward_channels': 24}
SEG = {'embed_dims': D, 'num_layers': DEPTH, 'num_heads': 2, 'mlp_ratio': 2}
ALL = [*range(DEPTH)]
#: Class, options, number of tokens in front of the prompts.
VITS = {
    'class token': (VisionTransformer, {}, 1),
    'all outputs': (VisionTransformer, {'out_indices': [*ALL], 'out_type': 'raw'}, 1),
    'maps': (VisionTransformer, {'out_indices': [*ALL], 'out_type': 'featmap', 'final_norm': False}, 1),
    'means': (VisionTransformer, {'out_type': 'avg_featmap'}, 1),
    'no class token': (VisionTransformer, {'out_type': 'avg_featmap', 'with_cls_token': False}, 0),
    'CLIP': (VisionTransformer, {'pre_norm': True}, 1),
    'DINOv2': (
        VisionTransformer,
        {'layer_scale_init_value': 0.1, 'layer_cfgs': {'ffn_type': 'swiglu_fused'}, 'out_type': 'avg_featmap'},
        1,
    ),
    'DeiT, distilled': (DistilledVisionTransformer, {'out_indices': [*ALL]}, 2),
    'DeiT, maps': (DistilledVisionTransformer, {'out_type': 'featmap'}, 2),
    'DeiT III': (DeiT3, {}, 1),
    'DeiT III without a class token': (DeiT3, {'with_cls_token': False, 'out_type': 'featmap'}, 0),
    'MoCo v3': (MoCoV3ViT, {}, 1),
    'mmseg': (SegViT, {'out_indices': ALL, 'final_norm': True}, 1),
    'mmseg, all options': (
        SegViT,
        {'out_indices': [0, 2], 'output_cls_token': True, 'out_origin': True, 'pre_norm': True},
        1,
    ),
    'mmseg without a class token': (SegViT, {'with_cls_token': False, 'out_indices': ALL}, 0),
    'mmseg with checkpointing': (SegViT, {'with_cp': True}, 1),
    'mmseg, not to the end': (SegViT, {'out_indices': [0, 1]}, 1),
}  # fmt: skip


class Classifier(BaseModel):
    """A backbone and a linear head on the sum of what it gives."""

    def __init__(self, kind=VisionTransformer, options=None, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = kind(**(options or {}))
        self.head = nn.Linear(D, 2)

    def forward(self, inputs, target=None, mode='tensor'):
        inputs = torch.stack(list(inputs))
        (features,) = self.backbone(inputs)
        out = self.head(features)
        return {'loss': (out - torch.stack(list(target))).square().mean()} if mode == 'loss' else out


MODELS.register_module(module=Classifier, force=True, name='PromptedClassifier')


@DATASETS.register_module(force=True)
class ImageDataset(ToyDataset):
    def prepare_data(self, idx):
        data = self.get_data_info(idx)
        return {'inputs': data['inputs'].reshape(1, 2, 2).repeat(3, SIZE // 2, SIZE // 2), 'target': data['target']}


def options_of(kind, options):
    if kind in (SegViT, SegBEiT):
        return {**SEG, 'img_size': SIZE, 'patch_size': PATCH, **copy.deepcopy(options)}
    return {'arch': ARCH, 'img_size': SIZE, 'patch_size': PATCH, **copy.deepcopy(options)}


def build(kind=VisionTransformer, options=None, **method):
    """A tuned model whose every parameter is random: mmpretrain starts position embeddings at 0."""
    torch.manual_seed(0)
    cfg = {'type': 'olor_mm.Tuned', 'of': Classifier, 'kind': kind, 'options': options_of(kind, options or {})}
    model = MODELS.build({**cfg, 'method': {'type': 'VPT', 'tokens': P, **method}})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'prompt' not in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator) + ('ln' in name and 'weight' in name))
    return model.eval()


def prompts_of(model):
    return [p for name, p in model.named_parameters() if name.endswith('prompt.tokens')]


def images(batch=2, height=SIZE, width=SIZE, seed=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def flat(outputs):
    """Tensors of a nest of tuples and lists, in order."""
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for each in outputs for t in flat(each)]


def embed(vit, x):
    """Tokens before the first block, by the parts of the model."""
    x, grid = vit.patch_embed(x)
    if isinstance(vit, SegViT):
        place = vit.resize_pos_embed(vit.pos_embed, grid, (SIZE // PATCH, SIZE // PATCH), 'bicubic')
        place = vit.pos_embed if x.shape[1] + 1 == vit.pos_embed.shape[1] else place
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + place
        x = x if vit.with_cls_token else x[:, 1:]
        return (vit.pre_ln(x) if vit.pre_norm else x), grid
    late = isinstance(vit, DeiT3)
    front = [getattr(vit, name, None) for name in ('cls_token', 'dist_token')]
    front = [token.expand(len(x), -1, -1) for token in front if token is not None]
    x = x if late else torch.cat([*front, x], 1)
    count = 0 if late else len(front)
    x = x + resize_pos_embed(vit.pos_embed, vit.patch_resolution, grid, vit.interpolate_mode, count)
    x = torch.cat([*front, x], 1) if late else x
    return (vit.pre_norm(x) if hasattr(vit, 'pre_norm') else x), grid


def expected(vit, x, extra, prompts):
    """The authors' forward pass: prompts behind the class token, put in once or exchanged before every block."""
    x, grid = embed(vit, x)
    norm = getattr(vit, 'ln1', None) if not isinstance(vit, SegViT) else vit.norm1 if vit.final_norm else None
    seen = [x]
    x = torch.cat([x[:, :extra], prompts[0].expand(len(x), -1, -1), x[:, extra:]], 1)
    for i, block in enumerate(vit.layers):
        if 0 < i < len(prompts):
            x = torch.cat([x[:, :extra], prompts[i].expand(len(x), -1, -1), x[:, extra + P :]], 1)
        # Without its hooks.
        x = type(block).forward(block, x)
        last = norm(x) if i == DEPTH - 1 and norm is not None else x
        seen.append(torch.cat([last[:, :extra], last[:, extra + P :]], 1))
    if not isinstance(vit, SegViT):
        return flat([vit._format_output(seen[i + 1], grid) for i in vit.out_indices])
    outputs = []
    for i in [-1, *vit.out_indices] if vit.out_origin else vit.out_indices:
        image = seen[i + 1][:, extra:].transpose(1, 2).reshape(len(x), D, *grid)
        outputs += [image, seen[i + 1][:, 0]] if vit.output_cls_token else [image]
    return outputs


def loss_of(outputs):
    return sum((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum() for out in flat(outputs))


def grads_of(model, outputs):
    # Reentrant checkpointing, which is mmseg's, knows no torch.autograd.grad.
    model.zero_grad()
    loss_of(outputs).backward()
    return [p.grad.clone() for name, p in model.named_parameters() if 'prompt' in name]


@pytest.mark.parametrize('deep', [True, False], ids=['deep', 'shallow'])
@pytest.mark.parametrize('case', VITS)
def test_outputs_and_gradients_are_those_of_the_forward_written_out(case, deep):
    kind, options, extra = VITS[case]
    model = build(kind, options, deep=deep)
    prompts = prompts_of(model)
    vit = model.backbone
    assert len(prompts) == (1 if not deep else 2 if 'not to the end' in case else DEPTH)
    first = []
    vit.layers[0].ln1.register_forward_pre_hook(lambda _, args: first.append(args[0]))
    # A batch of one size, and one of another, whose position embeddings are resized.
    for x in (images(), images(3, SIZE + 2 * PATCH, SIZE)):
        first.clear()
        ours, theirs = flat(vit(x)), expected(vit, x, extra, prompts)
        assert len(ours) == len(theirs)
        # Attention knows no order; the place is the authors' all the same.
        torch.testing.assert_close(first[0][:, extra : extra + P], prompts[0].expand(len(x), -1, -1), rtol=0, atol=0)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * max(1, other.abs().max().item()))
        grads = [grads_of(model, outputs) for outputs in (ours, theirs)]
        for one, other in zip(*grads, strict=True):
            assert other.abs().max() > 0
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_mae_masks_as_ever():
    model = build(MAEViT, {})
    torch.manual_seed(5)
    ours = model.backbone(images(), mask=True)
    assert ours[0].shape == (2, 1 + (SIZE // PATCH) ** 2 // 4, D)
    torch.testing.assert_close(
        model.backbone(images(), mask=None), tuple(expected(model.backbone, images(), 1, prompts_of(model)))
    )


@pytest.mark.parametrize('deep', [True, False])
@pytest.mark.parametrize('kind', [VisionTransformer, SegViT])
def test_attention_sees_the_prompts_and_nobody_else(kind, deep):
    model = build(kind, deep=deep)
    seen, given = [], []
    for block in model.backbone.layers:
        block.attn.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[1], out.shape[1])))
        block.register_forward_hook(lambda _, args, out: given.append(out.shape[1]))
    model.backbone(images())
    n = 1 + (SIZE // PATCH) ** 2
    assert seen == [(n + P, n + P)] * DEPTH
    assert given == [n] * DEPTH


@pytest.mark.parametrize(('deep', 'count'), [(False, 10 * 768), (True, 12 * 10 * 768)])
def test_a_vit_b_trains_prompts_and_head(deep, count):
    method = {'type': 'VPT', 'tokens': 10, 'deep': deep}
    with torch.device('meta'):
        model = MODELS.build({'type': 'olor_mm.Tuned', 'of': Classifier, 'method': method})
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {f'backbone.layers.{i}.prompt.tokens' for i in range(12 if deep else 1)}
    assert trained.keys() == {'head.weight', 'head.bias'} | names
    assert sum(trained[name].numel() for name in names) == count
    assert f'{count:,} parameters' in model.tuning.methods[0].report(model)


@pytest.mark.parametrize(
    ('kind', 'patch', 'width'), [(VisionTransformer, 8, 16), (VisionTransformer, 4, 64), (SegViT, 6, 32)]
)
def test_prompts_start_as_the_authors_have_them(kind, patch, width):
    arch = {'embed_dims': width} if kind is SegViT else {'arch': {**ARCH, 'embed_dims': width}}
    for p in prompts_of(build(kind, {'patch_size': patch, **arch}, tokens=500)):
        bound = math.sqrt(6 / (3 * patch * patch + width))
        assert 0.99 * bound < p.abs().max() <= bound
        assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert abs(p.mean().item()) < 0.03 * bound


def test_prompts_are_dropped_out_and_what_is_frozen_is_not():
    model = build(VisionTransformer, {'drop_rate': 0.5, 'drop_path_rate': 0.5}, tokens=400, dropout=0.5)
    seen = []
    for block in model.backbone.layers:
        block.ln1.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 1:401]))
    kept = model.backbone(images())
    for prompts, p in zip(seen, prompts_of(model), strict=True):
        torch.testing.assert_close(prompts, p.expand(2, -1, -1), rtol=0, atol=0)
    seen.clear()
    model.train()
    model.backbone(images())
    for prompts, p in zip(seen, prompts_of(model), strict=True):
        zero = prompts == 0
        assert zero.float().mean().item() == pytest.approx(0.5, abs=0.02)
        # Each image has its own.
        assert (zero[0] != zero[1]).any()
        torch.testing.assert_close(prompts[~zero], (2 * p).expand(2, -1, -1)[~zero])
    for block in model.backbone.layers:
        block.prompt.dropout.p = 0
    torch.testing.assert_close(model.backbone(images()), kept, rtol=0, atol=0)


@pytest.mark.parametrize('deep', [True, False])
def test_passes_do_not_mix(deep):
    """Several before one backward, one inside another, and one after another that failed."""
    model = build(deep=deep)
    vit, one, other = model.backbone, images(seed=3), images(4, SIZE + PATCH, seed=4)
    alone = [vit(one), vit(other)]
    both = grads_of(model, [vit(one), vit(other)])
    for got, *parts in zip(both, *(grads_of(model, outputs) for outputs in alone), strict=True):
        torch.testing.assert_close(got, sum(parts), rtol=1e-4, atol=1e-5)

    inner = []

    def run_another(*_):
        if not inner:
            inner.append(None)
            inner.append(vit(other))

    handle = vit.layers[1].ln1.register_forward_pre_hook(run_another)
    torch.testing.assert_close(vit(one), alone[0], rtol=0, atol=0)
    torch.testing.assert_close(inner[1], alone[1], rtol=0, atol=0)
    handle.remove()

    def fail(*_):
        raise KeyError('out of memory, say')

    handle = vit.layers[2].attn.register_forward_hook(fail)
    with pytest.raises(KeyError):
        vit(other)
    handle.remove()
    torch.testing.assert_close(vit(one), alone[0], rtol=0, atol=0)


@pytest.mark.parametrize('deep', [True, False])
def test_blocks_that_run_again_for_the_backward(deep):
    model = build(deep=deep)
    before = model.backbone(images())
    wanted = grads_of(model, before)
    for i, block in enumerate(model.backbone.layers):
        model.backbone.layers[i] = checkpoint_wrapper(block, CheckpointImpl.NO_REENTRANT)
    # Another pass in between: nothing is left over from the first.
    outputs, _ = model.backbone(images()), model.backbone(images(3, SIZE + PATCH))
    torch.testing.assert_close(outputs, before)
    torch.testing.assert_close(grads_of(model, outputs), wanted)


def test_shallow_prompts_that_get_lost_are_told():
    vit = build(deep=False).backbone
    x, _ = embed(vit, images())
    x = vit.layers[0](x)
    assert vit.layers[1](x).shape == x.shape
    with pytest.raises(RuntimeError, match=r'the prompts\s.*are lost.*model\.method\.deep=True'):
        vit.layers[1](x.clone())
    again = checkpoint(vit.layers[1], x, use_reentrant=True)
    with pytest.raises(RuntimeError, match='are lost'):
        again.sum().backward()


@pytest.mark.parametrize('deep', [True, False])
def test_a_copy_is_a_model_of_its_own(deep):
    model = build(deep=deep)
    outputs = model.backbone(images())
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin.backbone(images()), outputs)
    with torch.no_grad():
        for p in prompts_of(twin):
            p.copy_(p.roll(1, 1))
    assert not torch.allclose(twin.backbone(images())[0], outputs[0], atol=1e-4)
    torch.testing.assert_close(model.backbone(images()), outputs)
    wrong = {name: value[1:] if 'prompt' in name else value for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='has 4 prompt tokens'):
        twin.load_state_dict(wrong)


@pytest.mark.parametrize('deep', [True, False])
def test_half_precision(deep):
    model = build(deep=deep)
    full = model.backbone(images())[0]
    with torch.autocast('cpu', torch.bfloat16):
        out = model.backbone(images())
        grads = grads_of(model, out)
    assert all(grad.dtype == torch.float32 for grad in grads)
    torch.testing.assert_close(out[0].float(), full, rtol=0.1, atol=0.1)
    # The dtype of the tokens stays, whatever that of the prompts is.
    (put_in,) = model.backbone.layers[0].prompt._put_in(nn.Module(), (torch.zeros(1, 2, D, dtype=torch.bfloat16),))
    assert put_in.dtype == torch.bfloat16
    half = copy.deepcopy(model).bfloat16().backbone(images().bfloat16())[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.2)


@pytest.mark.parametrize('deep', [True, False])
@pytest.mark.parametrize('case', ['class token', 'mmseg, not to the end'])
def test_all_that_is_trained_is_used(case, deep):
    """DistributedDataParallel would stop at the second iteration."""
    kind, options, _ = VITS[case]
    model = build(kind, options, deep=deep).train()
    model.head.requires_grad_(False)
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model.backbone)
        for _ in range(2):
            loss_of(wrapped(images())).backward()
    finally:
        dist.destroy_process_group()
    assert all(p.grad.abs().max() > 0 for p in prompts_of(model))


@pytest.mark.slow
def test_compiled():
    model = build(deep=False)
    out = model.backbone(images())
    compiled = torch.compile(model.backbone, backend='eager')(images())
    torch.testing.assert_close(compiled, out)
    torch.testing.assert_close(grads_of(model, compiled), grads_of(model, out))


def test_checkpoints(tmp_path):
    model = build()
    plain = Classifier(options=options_of(VisionTransformer, {}))
    assert not model.load_state_dict(plain.state_dict(), strict=True).missing_keys
    before = [p.clone() for p in prompts_of(model)]
    torch.testing.assert_close(prompts_of(model), before, rtol=0, atol=0)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'tuned.pth')
    twin = build(dropout=0.1)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    load_checkpoint(twin, str(tmp_path / 'tuned.pth'), strict=True)
    torch.testing.assert_close(twin.backbone(images()), model.backbone(images()), rtol=0, atol=0)
    # MMEngine's loader is not strict.
    wrong = {
        'has 5 prompt tokens in a block, the model has 6: set model.method.tokens=5': build(tokens=6),
        'are of VPT-Deep in 3 blocks, those of the model of VPT-Shallow': build(deep=False),
        'those of the model of VPT-Deep in 2 blocks': build(options={'out_indices': [1]}),
    }
    for message, other in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_checkpoint(other, str(tmp_path / 'tuned.pth'))
        with pytest.raises(ValueError, match=message):
            load_checkpoint(other.backbone, str(tmp_path / 'tuned.pth'), revise_keys=[(r'^backbone\.', '')])


def test_a_run_resumes_exactly(tmp_path):
    model = {
        'type': 'olor_mm.Tuned',
        'of': 'PromptedClassifier',
        'method': {'type': 'VPT', 'tokens': 2, 'dropout': 0.2},
    }
    model['options'] = options_of(VisionTransformer, {})
    changes = {'train_dataloader': {'dataset': {'type': 'ImageDataset'}}}
    whole = make_runner(toy_config(tmp_path / 'whole', model=model, **changes))
    whole.train()
    resumed = make_runner(toy_config(tmp_path / 'resumed', model=model, **changes))
    resumed._resume, resumed._load_from = True, str(tmp_path / 'whole' / 'epoch_2.pth')
    resumed.train()
    start = build(tokens=2)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)
        assert ('prompt' in name or 'head' in name) or not torch.equal(value, start.state_dict()[name])


@pytest.mark.parametrize('train', [(), r'layers\.[01]\.ln1'])
def test_prompts_are_not_pulled_back(train):
    model = build(train=train)
    cfg = {
        'constructor': 'olor_mm.OLOROptimWrapperConstructor',
        'optimizer': {'type': 'SGD', 'lr': 0.1},
        'rollback': {'max_level': 0.1, 'power': 2},
    }
    if not train:
        with pytest.raises(ValueError, match='nothing to pull back; unfreeze them'):
            build_optim_wrapper(model, cfg)
        return
    levels = build_optim_wrapper(model, cfg).rollback_session.levels
    names = {name for name, p in model.named_parameters() if p in levels and p.requires_grad}
    assert names == {f'backbone.layers.{i}.ln1.{kind}' for i in (0, 1) for kind in ('weight', 'bias')}
    # The layers are those of the model without prompts.
    assert sorted({levels[model.get_parameter(name)] for name in names}) == pytest.approx(
        sorted(0.1 * (1 - i / DEPTH) ** 2 for i in (1, 2))
    )


REFUSED = {
    'EVA-02': (ViTEVA02, {}, 'AttentionWithRoPE for attention.*rotations'),
    'BEiT': (BEiTViT, {}, 'BEiTAttention for attention.*relative'),
    'BEiT of mmseg': (SegBEiT, {'img_size': (SIZE, SIZE)}, 'BEiTAttention for attention'),
    'SAM': (ViTSAM, {'arch': {**ARCH, 'global_attn_indexes': [2]}}, 'Attention for attention.*windows'),
    'reversible': (RevVisionTransformer, {}, 'blocks that take x1, x2'),
    'Swin': (SwinTransformer, None, "no list of blocks called 'layers'.*type='PaddingPrompt'"),
    'a ConvNet': (ResNet, {'depth': 18}, "no list of blocks called 'layers'.*type='LoRA'"),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_models_it_cannot_take_are_refused(case):
    kind, options, message = REFUSED[case]
    options = options or {} if kind in (SwinTransformer, ResNet) else options_of(kind, options)
    with pytest.raises(ValueError, match=message):
        MODELS.build({'type': 'olor_mm.Tuned', 'of': Classifier, 'kind': kind, 'options': options, 'method': 'VPT'})


WRONG = {
    'no prompts': ({'tokens': 0}, "tokens=0 must be a number of prompt tokens, 1 at least.*type='Linear'"),
    'half a prompt': ({'tokens': 0.5}, 'tokens=0.5 must be'),
    'true prompts': ({'tokens': True}, 'tokens=True must be'),
    'depth': ({'deep': 12}, 'deep=12 must be True'),
    'dropout': ({'dropout': 1}, 'dropout=1 must be a probability'),
    'dropout of a kind': ({'dropout': 'no'}, "dropout='no' must be a probability"),
    'typo': ({'token': 3}, "no option 'token', did you mean 'tokens'"),
    'no such part': ({'part': 'vit'}, "part='vit': Classifier has no 'vit'"),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said(case):
    method, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        build(**method)


def test_twice_is_refused():
    cfg = {'type': 'olor_mm.Tuned', 'of': Classifier, 'options': options_of(VisionTransformer, {})}
    with pytest.raises(ValueError, match=r"part called 'prompt' in layers\.0 already.*once"):
        MODELS.build({**cfg, 'method': ['VPT', 'VPT']})


@pytest.mark.parametrize('names', [('VPT', 'DTL'), ('DTL', 'VPT')])
def test_a_side_network_beside_it_is_refused(names):
    cfg = {'type': 'olor_mm.Tuned', 'of': Classifier, 'options': options_of(VisionTransformer, {})}
    methods = [{'type': name, **({'start_block': 1} if name == 'DTL' else {})} for name in names]
    with pytest.raises(ValueError, match=r'(side network \(DTL\)|have prompts \(VPT\)).*name one of the'):
        MODELS.build({**cfg, 'method': methods})


def test_the_whole_model_may_be_the_vit():
    model = nn.Module()
    model.add_module('layers', build().backbone.layers)
    vit = VisionTransformer(**options_of(VisionTransformer, {}))
    method = VPT(part='')
    method.apply(vit)
    assert method.added == [f'layers.{i}.prompt.tokens' for i in range(DEPTH)]
    assert method.trains('layers.0.prompt.tokens')
    assert not method.trains('layers.0.ln1.weight')
