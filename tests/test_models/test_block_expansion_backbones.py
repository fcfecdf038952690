"""New blocks in the backbones of the toolboxes: identities, their own ways to load weights, how many are trained."""

import copy
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

import olor_mm
from olor_mm.layers import assign_layers

pytest.importorskip('mmpretrain.models')
pytest.importorskip('mmseg.models')
pytest.importorskip('mmdet.models')

_ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
_SWIN = dict(patch_size=2, window_size=4, out_indices=(0, 1))
_OTHER_SWIN = dict(_SWIN, embed_dims=8, depths=[2, 2], num_heads=[2, 2], strides=(2, 2))
_CONVNEXT = dict(type='mmpretrain.ConvNeXt', out_indices=[0, 1], arch=dict(depths=[2, 2], channels=[8, 16]))

VIT_LISTS, STAGES, CONV_LISTS = (
    {'layers': 4},
    {'stages.0.blocks': 2, 'stages.1.blocks': 2},
    {'stages.0': 2, 'stages.1': 2},
)
FFN = ('ffn.layers.1',)
#: Backbone -> config, its lists of blocks and their lengths, and the layers that must be zero in a new block.
BACKBONES = {
    'mmpretrain ViT': (dict(arch=_ARCH), VIT_LISTS, ('attn.proj', *FFN)),
    'mmpretrain ViT, all outputs': (
        dict(arch=_ARCH, out_indices=[0, 1, 2, 3], out_type='featmap', layer_scale_init_value=0.1),
        VIT_LISTS, ('attn.proj', *FFN),
    ),
    'mmpretrain ViT, mean of patches': (dict(arch=_ARCH, out_type='avg_featmap'), VIT_LISTS, ('attn.proj', *FFN)),
    'mmpretrain ViT, SwiGLU': (
        dict(arch=_ARCH, layer_cfgs=dict(ffn_type='swiglu_fused')), VIT_LISTS, ('attn.proj', 'ffn.w3'),
    ),
    'mmpretrain DeiT': (dict(type='mmpretrain.DistilledVisionTransformer', arch=_ARCH), VIT_LISTS, ('attn.proj', *FFN)),
    'mmseg ViT': (
        dict(
            type='mmseg.VisionTransformer', embed_dims=16, num_layers=4, num_heads=2, mlp_ratio=2, out_indices=(0, 3),
            final_norm=True,
        ),
        VIT_LISTS, ('attn.attn.out_proj', *FFN),
    ),
    'mmpretrain Swin': (
        dict(_SWIN, type='mmpretrain.SwinTransformer', arch=dict(embed_dims=8, depths=[2, 2], num_heads=[2, 2])),
        STAGES, ('attn.w_msa.proj', *FFN),
    ),
    'mmdet Swin': (dict(_OTHER_SWIN, type='mmdet.SwinTransformer'), STAGES, ('attn.w_msa.proj', *FFN)),
    'mmseg Swin': (dict(_OTHER_SWIN, type='mmseg.SwinTransformer'), STAGES, ('attn.w_msa.proj', *FFN)),
    'ConvNeXt': (_CONVNEXT, CONV_LISTS, ('pointwise_conv2',)),
    'ConvNeXt V2': (
        dict(_CONVNEXT, use_grn=True, layer_scale_init_value=0.0, linear_pw_conv=False, gap_before_final_norm=False),
        CONV_LISTS, ('pointwise_conv2',),
    ),
}  # fmt: skip
SIZE = 32


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


IMAGES = torch.linspace(-2, 2, 2 * 3 * SIZE * SIZE).reshape(2, 3, SIZE, SIZE).sin()


@MODELS.register_module(force=True)
class BackboneOnly(nn.Module):
    """A backbone, as a model."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, x):
        return self.backbone(x)


def config_of(name, **changes):
    config = {'type': 'mmpretrain.VisionTransformer', **copy.deepcopy(BACKBONES[name][0]), **changes}
    if 'VisionTransformer' in config['type']:
        config = {'img_size': SIZE, 'patch_size': 8, **config}
    return ConfigDict(config)


def built(name, method=None, **changes):
    wrap = {'type': 'olor_mm.Tuned', 'of': 'BackboneOnly', 'method': method} if method else {'type': 'BackboneOnly'}
    return MODELS.build({**wrap, 'backbone': config_of(name, **changes)})


def shaken(model):
    """All weights random: norms, biases, layer scales and tables too."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
    return model


def outputs(model):
    model.eval()
    with torch.no_grad():
        return [out for part in model(IMAGES) for out in (part if isinstance(part, (list, tuple)) else [part])]


def check_identity(model, plain):
    found, wanted = outputs(model), outputs(plain)
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


TWO = {'type': 'BlockExpansion', 'blocks': 2}


@pytest.mark.parametrize('name', BACKBONES)
def test_is_an_identity_from_plain_weights(name):
    _, lists, zero = BACKBONES[name]
    plain, model = shaken(built(name)), built(name, TWO)
    result = model.load_state_dict(plain.state_dict(), strict=True)
    assert not result.missing_keys
    check_identity(model, plain)
    # Behind the second and the fourth of four blocks, whatever lists they are in.
    new = {f'backbone.{path}.{number}' for path in lists for number in ((2, 5) if lists[path] == 4 else (2,))}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {f'{block}.{name}' for block in new for name, _ in model.get_submodule(block).named_parameters()}
    assert trained == wanted
    own = dict(model.named_parameters())
    for block in new:
        stem, number = block.rsplit('.', 1)
        for rest in (name[len(block) + 1 :] for name in own if name.startswith(f'{block}.')):
            before, value = own[f'{stem}.{int(number) - 1}.{rest}'], own[f'{block}.{rest}']
            assert torch.equal(value, before * 0 if rest.rsplit('.', 1)[0] in zero else before)


@pytest.mark.parametrize('name', BACKBONES)
def test_is_an_identity_after_init_weights(name):
    model, plain = built(name, TWO, **({'drop_path_rate': 0.1} if 'mean' not in name else {})), built(name)
    for part in (model.backbone, model.tuning):
        part.init_weights()
    plain.load_state_dict(without_new_blocks(model.state_dict(), BACKBONES[name][1], plain.state_dict()))
    check_identity(model, plain)


def without_new_blocks(state, lists, keys):
    """The values for these keys of a model without: of 2 new blocks, behind the second and the fourth."""
    found = {}
    for key in keys:
        path = next((path for path in lists if key.startswith(f'backbone.{path}.')), None)
        old = key
        if path:
            number, rest = key.removeprefix(f'backbone.{path}.').split('.', 1)
            old = f'backbone.{path}.{int(number) + int(number) // 2}.{rest}'
        found[key] = state[old]
    return found


def test_stages_that_were_expanded_otherwise_are_refused():
    state = built('mmdet Swin', TWO).state_dict()
    state = {key: value for key, value in state.items() if 'stages.0.blocks.2' not in key and 'new_blocks' not in key}
    with pytest.raises(ValueError, match=r'has 3 blocks in backbone\.stages\.1\.blocks, up to number 2: it is neither'):
        built('mmdet Swin', TWO).load_state_dict(state)


def test_swin_blocks_keep_their_shift():
    for name in ('mmpretrain Swin', 'mmdet Swin', 'mmseg Swin'):
        for method, wanted in (({'every': 1}, [0, 0, 2, 2]), ({'every': 2}, [0, 2, 2])):
            model = built(name, {'type': 'BlockExpansion', **method})
            for stage in model.backbone.stages:
                assert [block.attn.shift_size for block in stage.blocks] == wanted


@pytest.mark.parametrize('name', ['mmpretrain ViT', 'mmseg ViT', 'mmpretrain Swin', 'mmdet Swin', 'mmseg Swin'])
def test_weights_of_another_size_come_from_init_cfg(name, tmp_path):
    """Tables and position embeddings are resized by the toolboxes, each in its own way, before or after renumbering."""
    # mmpretrain's Swin resizes by what newer releases of SciPy lack.
    changes = {'img_size': 2 * SIZE} if 'ViT' in name else {'window_size': 4 if 'mmpretrain' in name else 2}
    source = shaken(built(name, **changes)).backbone.state_dict()
    source = {key: value for key, value in source.items() if not key.endswith('relative_position_index')}
    prefix = '' if name == 'mmseg ViT' else 'backbone.'
    torch.save({'state_dict': {prefix + key: value for key, value in source.items()}}, tmp_path / 'pretrained.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'pretrained.pth')}
    if prefix and 'mmpretrain' in name:
        init_cfg['prefix'] = prefix
    plain, model = built(name, init_cfg=init_cfg), built(name, TWO, init_cfg=init_cfg)
    for part in (plain.backbone, model.backbone, model.tuning):
        part.init_weights()
    check_identity(model, plain)
    old = next(key for key in source if key.endswith(('layers.2.ln1.bias', 'stages.1.blocks.1.norm1.bias')))
    new = old.replace('layers.2', 'layers.3')
    assert torch.equal(model.backbone.state_dict()[new], source[old])


@pytest.mark.parametrize(
    ('name', 'how'),
    [('mmpretrain ViT', 'get_layer_depth'), ('mmseg ViT', 'blocks'), ('mmpretrain Swin', 'get_layer_depth')],
)
def test_layers_are_counted_with_the_new_blocks(name, how):
    model = built(name, TWO)
    table = assign_layers(model)
    assert (table.num_layers, table.how['backbone']) == (6, how)
    lists = BACKBONES[name][1]
    order = [f'backbone.{path}.{i}.' for path in lists for i in range(lists[path] * 3 // 2)]
    assert [{i for key, i in table.index.items() if key.startswith(block)} for block in order] == [
        {i} for i in range(1, 7)
    ]


def test_layer_decay_of_mmpretrain_goes_by_the_new_depth():
    from mmengine.optim import build_optim_wrapper

    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': 16}
    model = MODELS.build(
        {'type': 'olor_mm.Tuned', 'of': 'mmpretrain.ImageClassifier', 'method': TWO,
         'backbone': config_of('mmpretrain ViT'), 'head': head}
    )  # fmt: skip
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    rates = {p: group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    found = {name: rates[p] for name, p in model.named_parameters() if p in rates and p.requires_grad}
    for name, rate in found.items():
        place = re.match(r'backbone\.layers\.(\d+)', name)
        assert rate == (0.5 ** (6 - int(place[1])) if place else 1.0)


#: New blocks, and millions trained of ViT-B with 100 classes as the paper reports them.
PUBLISHED = {1: '7.16', 2: '14.25', 3: '21.34', 4: '28.43'}
SIZES = {
    'ViT-B/16': ('base', 12, 768, 3072),
    'ViT-L/16': ('large', 24, 1024, 4096),
    'DeiT-tiny/16': ('deit-tiny', 12, 192, 768),
}
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'methods.md'


def documented():
    section = DOCS.read_text().partition('\n## Block Expansion\n')[2].partition('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if '/16 |' in line]
    assert len(rows) == 7
    return rows


@pytest.mark.parametrize('row', documented(), ids=lambda row: f'{row[0]} {row[1]}')
def test_the_documented_numbers_of_parameters_are_counted(row):
    name, blocks, places, trained, of = row
    arch, depth, d, hidden = SIZES[name]
    method = {'type': 'BlockExpansion', 'blocks': int(blocks)} if places else 'Full'
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 100, 'in_channels': d}
    backbone = {'type': 'mmpretrain.VisionTransformer', 'arch': arch}
    kind = {'type': 'olor_mm.Tuned', 'of': 'mmpretrain.ImageClassifier', 'method': method}
    with torch.device('meta'):
        model = MODELS.build({**kind, 'backbone': backbone, 'head': head})
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad or both) for both in (False, True)]
    assert [f'{count:,}' for count in counts] == [trained, of]
    if places:
        norms, attention, mlp = 4 * d, 3 * d * (d + 1) + d * (d + 1), hidden * (d + 1) + d * (hidden + 1)
        assert counts[0] == int(blocks) * (norms + attention + mlp) + 100 * (d + 1)
        new = {int(name.split('.')[2]) for name, p in model.named_parameters() if p.requires_grad and 'layers' in name}
        assert ', '.join(map(str, sorted(new))) == places
        assert len(model.backbone.layers) == depth + int(blocks)
    if places and name == 'ViT-B/16':
        assert f'{counts[0] / 1e6:.2f}' == PUBLISHED[int(blocks)]


def test_the_configs_differ_in_the_method_alone():
    segmentation = [
        Config.fromfile(olor_mm.cfg(f'{name}_upernet_vit.py')).to_dict() for name in ('block-expansion', 'baseline')
    ]
    model = segmentation[0]['model']
    assert (model.pop('type'), model.pop('of')) == ('olor_mm.Tuned', 'EncoderDecoder')
    assert model.pop('method') == {'type': 'BlockExpansion', 'blocks': 4}
    assert segmentation[1]['model'].pop('type') == 'EncoderDecoder'
    assert segmentation[0] == segmentation[1]
    classification = [
        Config.fromfile(olor_mm.cfg(f'classification/{name}_vit-base-p16_8xb16_pacs.py')).to_dict()
        for name in ('block-expansion', 'full')
    ]
    model = classification[0]['model']
    assert (model.pop('type'), model.pop('of'), model.pop('method')['blocks']) == (
        'olor_mm.Tuned',
        'ImageClassifier',
        3,
    )
    assert classification[1]['model'].pop('type') == 'ImageClassifier'
    for key in ('model', 'val_dataloader', 'custom_hooks', 'randomness', 'auto_scale_lr'):
        assert classification[0][key] == classification[1][key]


def test_the_recipe_is_the_papers():
    cfg = Config.fromfile(olor_mm.cfg('classification/block-expansion_vit-base-p16_8xb16_pacs.py'))
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0)
    assert cfg.train_cfg == dict(by_epoch=False, max_iters=10000, val_interval=500)
    assert cfg.default_hooks.checkpoint.by_epoch is False
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 128
    optimizer = torch.optim.SGD(
        [nn.Parameter(torch.zeros(1))], **{k: v for k, v in cfg.optim_wrapper.optimizer.items() if k != 'type'}
    )
    schedulers = [PARAM_SCHEDULERS.build(each, default_args={'optimizer': optimizer}) for each in cfg.param_scheduler]
    rates = []
    for _ in range(10000):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    wanted = [0.01 * (1 + math.cos(math.pi * step / 9500)) / 2 for step in range(9500)]
    assert rates[500:] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert rates[0] < 1e-4
    assert all(a < b for a, b in itertools.pairwise(rates[:500]))


REFUSED = {
    'ResNet': (dict(type='mmpretrain.ResNet', depth=18), 'has no blocks in layers or stages'),
    'Swin V2': (
        dict(
            type='mmpretrain.SwinTransformerV2', img_size=64, patch_size=2, window_size=4,
            arch=dict(embed_dims=8, depths=[1, 1, 2, 2], num_heads=[2] * 4, extra_norm_every_n_blocks=0),
        ),
        'is a SwinBlockV2, and with zeros in attn.w_msa.proj and ffn.layers.1 it still changes',
    ),
    'BEiT': (
        dict(type='mmpretrain.BEiTViT', arch=_ARCH, img_size=SIZE, patch_size=8),
        "is a BEiTTransformerEncoderLayer, and it needs 'rel_pos_bias'",
    ),
    'EVA-02': (
        dict(type='mmpretrain.ViTEVA02', arch=dict(_ARCH, depth=4), img_size=28, patch_size=14),
        'is of a kind that is not known',
    ),
    'a frozen stage': (
        dict(BACKBONES['mmdet Swin'][0], frozen_stages=1), r'frozen_stages=1 freezes the new block backbone\.stages\.0',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_models_that_it_cannot_take_are_refused(name):
    backbone, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        MODELS.build({'type': 'olor_mm.Tuned', 'of': 'BackboneOnly', 'method': TWO, 'backbone': backbone})
