"""ViT checkpoints under four libraries' names: the same weights must give the same features in every model."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from olor_mm.engine.sources import anchors_of_file
from olor_mm.engine.vit_checkpoints import plain_address, scheme_for, to_mmpretrain, to_mmseg

PretrainViT = pytest.importorskip('mmpretrain.models').VisionTransformer
SegViT = pytest.importorskip('mmseg.models.backbones').VisionTransformer

DIM, DEPTH, HEADS, SIZE, PATCH = 24, 3, 3, 32, 8
ARCH = dict(embed_dims=DIM, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=4 * DIM)
IMAGES = torch.linspace(-1, 1, 2 * 3 * SIZE * SIZE).reshape(2, 3, SIZE, SIZE).sin()


def _evaluating(model: Any) -> Any:
    # train() and with it eval() of OpenMMLab's backbones return nothing.
    model.eval()
    return model


def _randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return _evaluating(model)


def _timm(**kwargs: Any) -> nn.Module:
    sizes = dict(img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=7)
    return _randomise(TimmViT(**sizes, **kwargs))


def _pretrain(**kwargs: Any) -> Any:
    kwargs = dict(img_size=SIZE, out_type='raw', **kwargs)
    return _evaluating(PretrainViT(arch=ARCH, patch_size=PATCH, **kwargs))


def _seg(**kwargs: Any) -> Any:
    kwargs = dict(img_size=SIZE, final_norm=True, norm_cfg=dict(type='LN', eps=1e-6), **kwargs)
    sizes = dict(embed_dims=DIM, num_layers=DEPTH, num_heads=HEADS, patch_size=PATCH)
    return _evaluating(SegViT(**sizes, patch_bias=not kwargs.get('pre_norm', False), **kwargs))


def _load(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    return model


def _features(tokens: Tensor) -> Tensor:
    """Tokens without the class token, as a map."""
    side = SIZE // PATCH
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), DIM, side, side)


@pytest.mark.parametrize(
    ('theirs', 'ours'),
    [
        ({}, {}),
        (dict(init_values=0.1), dict(layer_scale_init_value=0.1)),
        (dict(pre_norm=True), dict(pre_norm=True)),
    ],
    ids=['plain', 'layer scale', 'norm before the blocks'],
)
def test_timm_to_mmpretrain(theirs: dict, ours: dict) -> None:
    timm = _timm(**theirs)
    with torch.no_grad():
        expected = timm.forward_features(IMAGES)
        model = _load(_pretrain(**ours), to_mmpretrain(timm.state_dict()))
        torch.testing.assert_close(model(IMAGES)[-1], expected)


@pytest.mark.parametrize('pre_norm', [False, True])
def test_timm_to_mmseg(pre_norm: bool) -> None:
    timm = _timm(pre_norm=pre_norm)
    with torch.no_grad():
        expected = _features(timm.forward_features(IMAGES))
        model = _load(_seg(pre_norm=pre_norm), to_mmseg(timm.state_dict()))
        torch.testing.assert_close(model(IMAGES)[-1], expected)


def _open_clip() -> dict[str, Tensor]:
    """A CLIP checkpoint, both towers, with OpenCLIP's names and shapes."""
    torch.manual_seed(0)

    def tower(prefix: str) -> dict[str, Tensor]:
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(DEPTH):
            block = f'{prefix}transformer.resblocks.{i}.'
            shapes |= {f'{block}{ln}.{kind}': (DIM,) for ln in ('ln_1', 'ln_2') for kind in ('weight', 'bias')}
            shapes |= {f'{block}attn.in_proj_weight': (3 * DIM, DIM), f'{block}attn.in_proj_bias': (3 * DIM,)}
            shapes |= {f'{block}attn.out_proj.weight': (DIM, DIM), f'{block}attn.out_proj.bias': (DIM,)}
            shapes |= {f'{block}mlp.c_fc.weight': (4 * DIM, DIM), f'{block}mlp.c_fc.bias': (4 * DIM,)}
            shapes |= {f'{block}mlp.c_proj.weight': (DIM, 4 * DIM), f'{block}mlp.c_proj.bias': (DIM,)}
        return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}

    patches = (SIZE // PATCH) ** 2
    visual = {
        'class_embedding': (DIM,),
        'positional_embedding': (1 + patches, DIM),
        'conv1.weight': (DIM, 3, PATCH, PATCH),
        'proj': (DIM, 16),
        **{f'{ln}.{kind}': (DIM,) for ln in ('ln_pre', 'ln_post') for kind in ('weight', 'bias')},
    }
    state = {'logit_scale': torch.ones(()), 'positional_embedding': torch.randn(77, DIM), **tower('')}
    return state | {f'visual.{name}': torch.randn(shape) * 0.2 for name, shape in visual.items()} | tower('visual.')


def test_open_clip_as_timm_reads_it() -> None:
    """timm has a translation of its own: an independent one."""
    state = _open_clip()
    norm = dict(norm_layer=partial(nn.LayerNorm, eps=1e-5))
    timm = TimmViT(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=0,
        pre_norm=True,
        **norm,
    ).eval()
    timm.load_state_dict(checkpoint_filter_fn(state, timm), strict=False)
    ours = _load(_pretrain(pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5)), to_mmpretrain(state))
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES)[-1], timm.forward_features(IMAGES))


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'student.encoder.'])
@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict': s}, lambda s: {'model': s, 'epoch': 3}])
def test_back_and_forth_with_any_prefix(prefix: str, wrap: Any) -> None:
    state = _randomise(_pretrain(pre_norm=True)).state_dict()
    named = {prefix + name: value for name, value in state.items()} | {'head.fc.weight': torch.ones(7, DIM)}
    there = to_mmseg(wrap(named))
    back = to_mmpretrain({prefix + name: value for name, value in there.items()})
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_file_through_init_cfg_in_another_size(tmp_path: Path) -> None:
    """mmseg's and mmpretrain's models resize position embeddings by themselves, to the same values."""
    timm = _timm()
    file = tmp_path / 'vit.pth'
    torch.save({'model': timm.state_dict()}, file)
    size = SIZE + 2 * PATCH
    images = torch.nn.functional.interpolate(IMAGES, size=size)
    pretrain = _pretrain_at(size, dict(type='Pretrained', checkpoint=f'vit2mmpretrain:{file}'))
    seg = _seg_at(size, dict(type='Pretrained', checkpoint=f'vit2mmseg:{file}'))
    assert pretrain.pos_embed.shape == seg.pos_embed.shape == (1, 1 + (size // PATCH) ** 2, DIM)
    torch.testing.assert_close(seg.pos_embed, pretrain.pos_embed)
    with torch.no_grad():
        tokens = pretrain(images)[-1]
        side = size // PATCH
        expected = tokens[:, 1:].transpose(1, 2).reshape(2, DIM, side, side)
        torch.testing.assert_close(seg(images)[-1], expected)


def _pretrain_at(size: int, init_cfg: dict) -> Any:
    model = PretrainViT(arch=ARCH, patch_size=PATCH, img_size=size, out_type='raw', init_cfg=init_cfg)
    model.init_weights()
    return _evaluating(model)


def _seg_at(size: int, init_cfg: dict) -> Any:
    sizes = dict(embed_dims=DIM, num_layers=DEPTH, num_heads=HEADS, patch_size=PATCH, img_size=size, patch_bias=True)
    model = SegViT(**sizes, final_norm=True, norm_cfg=dict(type='LN', eps=1e-6), init_cfg=init_cfg)
    model.init_weights()
    return _evaluating(model)


def test_theta_0_from_a_file_with_position_embeddings_of_another_size(tmp_path: Path) -> None:
    file = tmp_path / 'vit.pth'
    torch.save(_timm().state_dict(), file)
    address = f'vit2mmseg:{file}'
    backbone = _seg_at(SIZE + PATCH, dict(type='Pretrained', checkpoint=address))
    model = nn.Module()
    model.backbone = backbone
    wanted = dict(model.named_parameters())
    expected = {name: value.detach().clone() for name, value in wanted.items()}
    _randomise(model)
    found = anchors_of_file(address, model, wanted)
    assert all(torch.equal(found[p], expected[name]) for name, p in wanted.items())


def test_the_real_deit_tiny_in_both_models(shared_data: Path) -> None:
    file = shared_data / 'weights' / 'deit_tiny_in1k_mmpretrain.pth'
    images = torch.nn.functional.interpolate(IMAGES, size=224)
    own = PretrainViT(arch='deit-tiny', out_type='featmap', init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    own.init_cfg['prefix'] = 'backbone.'
    own.init_weights()
    seg = SegViT(
        embed_dims=192,
        num_heads=3,
        patch_bias=True,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-6),
        init_cfg=dict(type='Pretrained', checkpoint=f'vit2mmseg:{file}'),
    )
    seg.init_weights()
    with torch.no_grad():
        expected, given = _evaluating(own)(images)[-1], _evaluating(seg)(images)[-1]
    assert expected.std() > 0.1
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'kwargs',
    [dict(reg_tokens=4), dict(reg_tokens=4, no_embed_class=True), dict(no_embed_class=True)],
    ids=['registers', 'registers without positions', 'class token without a position'],
)
def test_positions_of_other_tokens(kwargs: dict) -> None:
    """The patches keep their own, exactly; timm says which these are."""
    timm = _timm(**kwargs)
    given = to_mmpretrain(timm.state_dict())['pos_embed']
    patches = (SIZE // PATCH) ** 2
    assert given.shape == (1, 1 + patches, DIM)
    torch.testing.assert_close(given[:, 1:], timm.pos_embed[:, -patches:])
    of_class = torch.zeros(1, DIM) if kwargs.get('no_embed_class') else timm.pos_embed[:, 0]
    torch.testing.assert_close(given[:, 0], of_class)
    if 'reg_tokens' not in kwargs:
        with torch.no_grad():
            model = _load(_pretrain(), to_mmpretrain(timm.state_dict()))
            torch.testing.assert_close(model(IMAGES)[-1], timm.forward_features(IMAGES))


def test_positions_of_deits_distillation_token() -> None:
    state = _timm().state_dict()
    positions = state['pos_embed']
    distilled = torch.cat([positions[:, :1], torch.full((1, 1, DIM), 9.0), positions[:, 1:]], dim=1)
    given = to_mmpretrain({**state, 'pos_embed': distilled, 'dist_token': torch.ones(1, 1, DIM)})
    assert torch.equal(given['pos_embed'], positions)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(cls_token=None), 'a ViT without cls_token'),
        (dict(pos_embed=None), 'a ViT without pos_embed'),
        (dict(pos_embed=torch.ones(1, 13, DIM)), 'has 13 position embeddings'),
        ({'blocks.0.attn.q_bias': torch.ones(DIM)}, r'no plain ViT: it has blocks\.0\.attn\.q_bias'),
    ],
    ids=['no class token', 'no positions', 'odd positions', 'BEiT'],
)
def test_relatives_that_would_load_in_part_are_refused(change: dict, message: str) -> None:
    state = {name: value for name, value in {**_timm().state_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        to_mmseg(state)


def test_the_teacher_of_a_pair() -> None:
    state = _timm().state_dict()
    pair = {f'{who}.backbone.{k}': v + add for who, add in (('student', 1), ('teacher', 0)) for k, v in state.items()}
    assert torch.equal(to_mmpretrain(pair)['cls_token'], state['cls_token'])
    with pytest.raises(ValueError, match='no tensor, but student, teacher'):
        to_mmpretrain({'student': state, 'teacher': state})


@pytest.mark.parametrize(
    'state',
    [
        {},
        {'stages.0.0.norm.weight': torch.ones(3)},
        # A Swin: blocks of the same names, and no ViT.
        {'patch_embed.proj.weight': torch.ones(3), 'layers.0.blocks.0.attn.qkv.weight': torch.ones(3)},
        {'transformer.resblocks.0.attn.in_proj_weight': torch.ones(3)},
    ],
    ids=['nothing', 'ConvNeXt', 'Swin', 'text tower alone'],
)
def test_what_is_no_vit_is_refused_by_name(state: dict, tmp_path: Path) -> None:
    file = tmp_path / 'other.pth'
    torch.save(state, file)
    with pytest.raises(ValueError, match=r'other\.pth holds no ViT .*leave the vit2\.\.\.: away'):
        CheckpointLoader.load_checkpoint(f'vit2mmseg:{file}', map_location='cpu', logger='silent')


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
        CheckpointLoader.load_checkpoint(f'vit2mmpretrain:{tmp_path}/gone.pth', logger='silent')


def test_which_scheme_a_backbone_needs() -> None:
    assert scheme_for(_seg().state_dict()) == 'vit2mmseg:'
    assert scheme_for(_pretrain().state_dict()) == 'vit2mmpretrain:'
    assert scheme_for(_timm().state_dict()) is None
    assert plain_address('vit2mmseg:https://host/a.pth') == 'https://host/a.pth'
    assert plain_address('a.pth') == 'a.pth'
