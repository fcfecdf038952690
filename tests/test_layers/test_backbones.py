"""The index of every backbone family of the three toolboxes, held against what the models really run."""

import copy
import importlib
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from olor_mm.layers import LayerTable, assign_layers


@dataclass(frozen=True, eq=False)
class Backbone:
    """One row: ``layers`` is the number of blocks in the architecture's own description, next to it."""

    name: str
    cls: str
    layers: int
    how: str
    stem: str
    """Comma-separated prefixes of parameters that must exist and be in the stem."""
    last: str
    """The same for the deepest layer."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int = 64


def thin(depth: int, **more: Any) -> dict[str, Any]:
    """A narrow plain transformer of mmpretrain's with the depth of the real one."""
    return dict(embed_dims=24, num_layers=depth, num_heads=3, feedforward_channels=48, **more)


P, D, S = 'mmpretrain.models.backbones:', 'mmdet.models.backbones:', 'mmseg.models.backbones:'
SWIN_THIN = dict(embed_dims=12, num_heads=[1, 2, 4, 8])
PVT_THIN = dict(embed_dims=8, num_heads=[1, 2, 5, 8])
SEG_VIT = dict(img_size=(64, 64), embed_dims=24, num_layers=12, num_heads=3)
FOUR = (0, 1, 2, 3)

BACKBONES = [
    # mmpretrain: transformers. ViT-B and everything of its shape has 12 layers, ViT-L 24.
    Backbone('vit', P + 'VisionTransformer', 12, 'get_layer_depth', 'cls_token,pos_embed,patch_embed', 'layers.11,ln1',
             dict(arch=thin(12), img_size=64)),
    Backbone('vit-large', P + 'VisionTransformer', 24, 'get_layer_depth', 'patch_embed', 'layers.23,ln1',
             dict(arch=thin(24), img_size=64)),
    Backbone('deit-distilled', P + 'DistilledVisionTransformer', 12, 'get_layer_depth',
             'cls_token,dist_token,pos_embed,patch_embed', 'layers.11,ln1', dict(arch='deit-tiny', img_size=64)),
    Backbone('clip-vit', P + 'VisionTransformer', 12, 'get_layer_depth', 'pre_norm,cls_token,patch_embed',
             'layers.11,ln1', dict(arch=thin(12), img_size=64, pre_norm=True)),
    Backbone('beit', P + 'BEiTViT', 12, 'get_layer_depth', 'cls_token,patch_embed', 'layers.11',
             dict(arch=thin(12), img_size=64)),
    Backbone('beit-shared-bias', P + 'BEiTViT', 12, 'get_layer_depth', 'cls_token,rel_pos_bias', 'layers.11',
             dict(arch=thin(12), img_size=64, use_rel_pos_bias=False, use_shared_rel_pos_bias=True)),
    Backbone('eva02', P + 'ViTEVA02', 12, 'get_layer_depth', 'cls_token,pos_embed,patch_embed', 'layers.11,ln1',
             dict(arch=thin(12), img_size=64)),
    Backbone('mae-vit', 'mmpretrain.models.selfsup:MAEViT', 12, 'get_layer_depth', 'cls_token,pos_embed,patch_embed',
             'layers.11,ln1', dict(arch=thin(12), img_size=64)),
    # Swin-T: 2, 2, 6, 2 blocks.
    Backbone('swin-t', P + 'SwinTransformer', 12, 'get_layer_depth', 'patch_embed', 'stages.3.blocks.1,norm3',
             dict(arch=dict(embed_dims=12, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8]), img_size=64,
                  pad_small_map=True)),
    Backbone('swin-t-features', P + 'SwinTransformer', 12, 'get_layer_depth', 'patch_embed', 'stages.3.blocks.1,norm3',
             dict(arch=dict(embed_dims=12, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8]), img_size=64,
                  pad_small_map=True, out_indices=FOUR)),
    Backbone('swin-v2-t', P + 'SwinTransformerV2', 12, 'blocks', 'patch_embed', 'stages.3.blocks.1,norm3',
             dict(arch=dict(embed_dims=12, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8], extra_norm_every_n_blocks=0),
                  img_size=64, window_size=2)),
    # HiViT-T: 1 and 1 pairs of MLP blocks, 10 transformer layers.
    Backbone('hivit-t', P + 'HiViT', 14, 'blocks', 'pos_embed,patch_embed', 'blocks.15',
             dict(arch='tiny', img_size=64)),
    # mmpretrain: convolutional. ConvNeXt-T: 3, 3, 9, 3; atto: 2, 2, 6, 2; B: 3, 3, 27, 3.
    Backbone('convnext-t', P + 'ConvNeXt', 18, 'blocks', 'downsample_layers.0', 'stages.3.2,norm3',
             dict(arch=dict(depths=[3, 3, 9, 3], channels=[8, 16, 32, 64]))),
    Backbone('convnext-b-features', P + 'ConvNeXt', 36, 'blocks', 'downsample_layers.0', 'stages.3.2,norm3',
             dict(arch=dict(depths=[3, 3, 27, 3], channels=[8, 16, 32, 64]), out_indices=FOUR,
                  gap_before_final_norm=False)),
    Backbone('convnext-v2-atto', P + 'ConvNeXt', 12, 'blocks', 'downsample_layers.0', 'stages.3.1,norm3',
             dict(arch='atto', use_grn=True, layer_scale_init_value=0.0)),
    # ResNet: 2, 2, 2, 2 / 3, 4, 6, 3 / 3, 4, 23, 3.
    Backbone('resnet18', P + 'ResNet', 8, 'blocks', 'conv1,bn1', 'layer4.1', dict(depth=18)),
    Backbone('resnet50', P + 'ResNet', 16, 'blocks', 'conv1,bn1', 'layer4.2', dict(depth=50, base_channels=8,
                                                                                   stem_channels=8)),
    Backbone('resnet101', P + 'ResNet', 33, 'blocks', 'conv1,bn1', 'layer4.2', dict(depth=101, base_channels=8,
                                                                                    stem_channels=8)),
    Backbone('resnet50-v1d', P + 'ResNetV1d', 16, 'blocks', 'stem', 'layer4.2', dict(depth=50, base_channels=8,
                                                                                     stem_channels=8)),
    Backbone('resnext50', P + 'ResNeXt', 16, 'blocks', 'conv1,bn1', 'layer4.2', dict(depth=50)),
    Backbone('res2net50', P + 'Res2Net', 16, 'blocks', 'stem', 'layer4.2', dict(depth=50)),
    # RegNetX-400MF: 1, 2, 7, 12.
    Backbone('regnetx-400mf', P + 'RegNet', 22, 'blocks', 'conv1,bn1', 'layer4.11', dict(arch='regnetx_400mf')),
    # MobileNetV2: 17 inverted residuals; V3: 11 (small), 15 (large); EfficientNet-B0: 16.
    Backbone('mobilenet-v2', P + 'MobileNetV2', 17, 'blocks', 'conv1', 'layer7.0,conv2'),
    Backbone('mobilenet-v3-small', P + 'MobileNetV3', 11, 'blocks', 'layer0', 'layer11,layer12', dict(arch='small')),
    Backbone('mobilenet-v3-large', P + 'MobileNetV3', 15, 'blocks', 'layer0', 'layer15,layer16', dict(arch='large')),
    Backbone('efficientnet-b0', P + 'EfficientNet', 16, 'blocks', 'layers.0', 'layers.5.4,layers.6',
             dict(arch='b0', out_indices=(6,))),
    # HRNet: 4 bottlenecks, then 1, 4 and 3 modules of parallel branches; a module is one layer.
    Backbone('hrnet-w18', P + 'HRNet', 12, 'blocks', 'conv1,bn1,conv2,bn2', 'stage4.2', dict(arch='w18')),
    # VAN-T: 3, 3, 5, 2.
    Backbone('van-t', P + 'VAN', 13, 'blocks', 'patch_embed1', 'blocks4.1,norm4', dict(arch='tiny')),
    # EfficientNetV2-S: 2, 4, 4, 6, 9, 15. Twins-PCPVT-S: 3, 4, 6, 3.
    Backbone('efficientnet-v2-s', P + 'EfficientNetV2', 40, 'blocks', 'layers.0', 'layers.6.14,layers.7',
             dict(arch='s')),
    Backbone('twins-pcpvt-s', P + 'PCPVT', 16, 'blocks', 'patch_embeds.0', 'stages.3.2', dict(arch=dict(
        embed_dims=[8, 16, 24, 32], depths=[3, 4, 6, 3], num_heads=[1, 2, 3, 4], patch_sizes=[4, 2, 2, 2],
        strides=[4, 2, 2, 2], mlp_ratios=[2, 2, 2, 2], sr_ratios=[8, 4, 2, 1]))),
    # mmdet's own. PVT-Tiny and PVTv2-B0: 2, 2, 2, 2.
    Backbone('mmdet-resnet50', D + 'ResNet', 16, 'blocks', 'conv1,bn1', 'layer4.2', dict(depth=50, base_channels=8,
                                                                                         stem_channels=8)),
    Backbone('mmdet-swin-t', D + 'SwinTransformer', 12, 'blocks', 'patch_embed', 'stages.3.blocks.1,norm3',
             dict(pretrain_img_size=64, depths=[2, 2, 6, 2], **SWIN_THIN)),
    Backbone('mmdet-pvt-tiny', D + 'PyramidVisionTransformer', 8, 'blocks', 'layers.0.0,layers.0.1.0', 'layers.3.1.2',
             dict(num_layers=[2, 2, 2, 2], pretrain_img_size=64, **PVT_THIN)),
    Backbone('mmdet-pvt-v2-b0', D + 'PyramidVisionTransformerV2', 8, 'blocks', 'layers.0.0', 'layers.3.1.1,layers.3.2',
             dict(num_layers=[2, 2, 2, 2], **PVT_THIN)),
    Backbone('mmdet-hrnet-w32', D + 'HRNet', 12, 'blocks', 'conv1,bn1,conv2,bn2', 'stage4.2', dict(extra=dict(
        stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(4,), num_channels=(64,)),
        stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(4, 4), num_channels=(8, 16)),
        stage3=dict(num_modules=4, num_branches=3, block='BASIC', num_blocks=(4, 4, 4), num_channels=(8, 16, 32)),
        stage4=dict(num_modules=3, num_branches=4, block='BASIC', num_blocks=(4,) * 4, num_channels=(8, 16, 32, 64)),
    ))),
    # mmseg's own. MiT-B0: 2, 2, 2, 2; MSCAN-T: 3, 3, 5, 2.
    Backbone('mmseg-vit', S + 'VisionTransformer', 12, 'blocks', 'cls_token,pos_embed,patch_embed', 'layers.11,ln1',
             dict(final_norm=True, **SEG_VIT)),
    Backbone('mmseg-beit', S + 'BEiT', 12, 'blocks', 'cls_token,patch_embed', 'layers.11', SEG_VIT),
    Backbone('mmseg-mae', S + 'MAE', 12, 'blocks', 'cls_token,pos_embed,patch_embed', 'layers.11', SEG_VIT),
    Backbone('mmseg-mit-b0', S + 'MixVisionTransformer', 8, 'blocks', 'layers.0.0', 'layers.3.1.1,layers.3.2',
             dict(embed_dims=8, num_layers=[2, 2, 2, 2], num_heads=[1, 2, 5, 8])),
    Backbone('mmseg-mscan-t', S + 'MSCAN', 13, 'blocks', 'patch_embed1', 'block4.1,norm4',
             dict(embed_dims=[8, 16, 24, 32], depths=[3, 3, 5, 2], norm_cfg=dict(type='BN'))),
    Backbone('mmseg-resnet50-v1c', S + 'ResNetV1c', 16, 'blocks', 'stem', 'layer4.2', dict(depth=50, base_channels=8,
                                                                                           stem_channels=8)),
    # CGNet M3N21: 3 and 21.
    Backbone('mmseg-cgnet', S + 'CGNet', 24, 'blocks', 'stem,norm_prelu_0', 'level2.20,norm_prelu_2',
             dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='PReLU', num_parameters=32))),
    # timm, bare and in the toolboxes' wrappers. PVTv2-B0: 2, 2, 2, 2, which its own matcher takes for four layers.
    Backbone('timm-vit', 'timm:create_model', 12, 'timm', 'cls_token,pos_embed,patch_embed', 'blocks.11,norm,head',
             dict(model_name='vit_tiny_patch16_224', img_size=64)),
    Backbone('timm-convnext-atto', 'timm:create_model', 12, 'timm', 'stem', 'stages.3.blocks.1,head',
             dict(model_name='convnext_atto')),
    Backbone('timm-resnet18', 'timm:create_model', 8, 'timm', 'conv1,bn1', 'layer4.1,fc', dict(model_name='resnet18')),
    Backbone('timm-pvt-v2-b0', 'timm:create_model', 8, 'blocks', 'patch_embed', 'stages.3.blocks.1,stages.3.norm',
             dict(model_name='pvt_v2_b0')),
    # CaiT-XXS24: 24, and 2 for the class token only, which its own matcher counts beside the last two.
    Backbone('timm-cait-xxs24', 'timm:create_model', 26, 'blocks', 'cls_token,pos_embed,patch_embed',
             'blocks_token_only.1,norm,head', dict(model_name='cait_xxs24_224', img_size=64)),
    Backbone('timm-in-mmpretrain', P + 'TIMMBackbone', 12, 'timm', 'timm_model.cls_token,timm_model.patch_embed',
             'timm_model.blocks.11,timm_model.norm', dict(model_name='vit_tiny_patch16_224', img_size=64)),
    Backbone('timm-features-in-mmseg', S + 'TIMMBackbone', 12, 'blocks', 'timm_model.stem_0,timm_model.stem_1',
             'timm_model.stages_3.blocks.1', dict(model_name='convnext_atto', pretrained=False)),
]  # fmt: skip


@cache
def build(case: Backbone) -> tuple[nn.Module, LayerTable]:
    package, _, name = case.cls.partition(':')
    pytest.importorskip(package.partition('.')[0])
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = getattr(importlib.import_module(package), name)(**case.kwargs)
    model.eval()
    return model, assign_layers(model)


def record(case: Backbone) -> list[str]:
    """Parameters in the order in which a real forward pass first comes to the modules that hold them."""
    model, _ = build(case)
    order: dict[str, None] = {}

    def hook_of(path: str, module: nn.Module) -> Any:
        # torch's attention computes with its output projection without calling it.
        recurse = isinstance(module, nn.MultiheadAttention)
        own = [f'{path}.{name}' for name, _ in module.named_parameters(recurse=recurse)]
        return lambda *_: order.update(dict.fromkeys(own))

    handles = [
        module.register_forward_pre_hook(hook_of(path, module))
        for path, module in model.named_modules()
        # Parameters of the backbone itself (tokens, position embeddings) have no call of their own.
        if path not in ('', 'backbone') and not hasattr(module, 'timm_model')
    ]
    try:
        with torch.no_grad():
            model.backbone(torch.randn(1, 3, case.size, case.size))  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def docs_table() -> list[str]:
    """The table of docs/layers.md, from what `assign_layers` really gives."""
    head = ['| backbone | class | layers n | tensors | resolved by |', '|---|---|---|---|---|']
    rows = []
    for case in BACKBONES:
        model, table = build(case)
        name = case.cls.replace('.models', '').replace('.backbones', '').replace(':', '.')
        tensors = assign_layers(model, index='tensor').num_layers + 1
        rows.append(f'| {case.name} | `{name}` | {table.num_layers} | {tensors} | `{table.how["backbone"]}` |')
    return head + rows


every_backbone = pytest.mark.parametrize('case', BACKBONES, ids=lambda case: case.name)


@every_backbone
def test_number_of_layers(case: Backbone) -> None:
    _, table = build(case)
    assert table.num_layers == case.layers
    assert table.how == {'backbone': case.how}
    # No layer is empty, and each has a name.
    assert set(table.index.values()) == set(range(case.layers + 1)) == set(table.labels)


@every_backbone
def test_every_parameter_has_a_layer(case: Backbone) -> None:
    model, table = build(case)
    assert table.index.keys() == {name for name, _ in model.named_parameters()}


@every_backbone
def test_index_never_falls_along_the_forward_pass(case: Backbone) -> None:
    _, table = build(case)
    order = record(case)
    # Nearly all parameters belong to modules that run; the others are attributes or outputs switched off.
    assert len(order) > 0.9 * len(table.index)
    indices = [table.index[name] for name in order]
    falls = [(before, after) for before, after in pairwise(order) if table.index[after] < table.index[before]]
    assert not falls
    assert indices[0] == 0
    assert indices[-1] == case.layers


@every_backbone
@pytest.mark.parametrize('end', ['stem', 'last'])
def test_stem_is_zero_and_last_block_is_n(case: Backbone, end: str) -> None:
    _, table = build(case)
    for prefix in getattr(case, end).split(','):
        whole = f'backbone.{prefix}'
        found = {i for name, i in table.index.items() if name == whole or name.startswith(f'{whole}.')}
        assert found == {0 if end == 'stem' else case.layers}, prefix


@every_backbone
def test_tensor_index_is_the_authors(case: Backbone) -> None:
    model, _ = build(case)
    table = assign_layers(model, index='tensor')
    trainable = [name for name, param in model.named_parameters() if param.requires_grad]
    assert table.index == {name: i for i, name in enumerate(trainable)}
    assert table.num_layers == len(trainable) - 1


def test_table_is_wide_enough() -> None:
    assert len(BACKBONES) >= 24
    assert len({case.name for case in BACKBONES}) == len(BACKBONES)


@every_backbone
def test_sharded_parameters_change_nothing(case: Backbone) -> None:
    """FSDP leaves flat pieces of any size, also empty ones, in place of the tensors."""
    model, table = build(case)
    sharded = copy.deepcopy(model)
    for param in sharded.parameters():
        param.data = param.data.new_empty(0)
    assert assign_layers(sharded) == table


def test_docs_table_is_current() -> None:
    for package in ('mmpretrain', 'mmdet', 'mmseg', 'timm'):
        pytest.importorskip(package)
    text = (Path(__file__).parents[2] / 'docs' / 'layers.md').read_text(encoding='utf-8')
    assert '\n'.join(docs_table()) in text, 'run: python -m tests.test_layers.test_backbones'


if __name__ == '__main__':
    print('\n'.join(docs_table()))
