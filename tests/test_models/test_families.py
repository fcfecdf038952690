"""Trainable subsets on models of the three toolboxes: what is counted by hand, trained, and left as at inference."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

pytest.importorskip('mmpretrain.models')
pytest.importorskip('mmseg.models')
pytest.importorskip('mmdet.models')

NOISE = {'drop_path_rate': 0.5}
SWIN = {'window_size': 4, 'drop_rate': 0.5, **NOISE}
HEAD = {'channels': 8, 'num_classes': 3, 'in_index': [0, 1, 2, 3], 'norm_cfg': {'type': 'SyncBN'}}
UPER = {'type': 'mmseg.UPerHead', 'pool_scales': (1, 2), **HEAD}
NARROW = {'in_channels': 8, 'feat_channels': 8}


def classifier(backbone, channels):
    neck = None if 'Vision' in backbone['type'] else {'type': 'mmpretrain.GlobalAveragePooling'}
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 5, 'in_channels': channels}
    backbone['type'] = f'mmpretrain.{backbone["type"]}'
    return {'of': 'mmpretrain.ImageClassifier', 'backbone': backbone, 'neck': neck, 'head': head}


def segmentor(backbone, head):
    backbone['type'] = f'mmseg.{backbone["type"]}'
    return {'of': 'mmseg.EncoderDecoder', 'backbone': {**backbone, 'with_cp': True}, 'decode_head': head}


def detector(backbone, channels):
    """Mask R-CNN with feature pyramid, of a few channels."""
    boxes = {'type': 'mmdet.DeltaXYWHBBoxCoder'}
    roi = {'type': 'mmdet.SingleRoIExtractor', 'out_channels': 8, 'featmap_strides': [4, 8, 16, 32]}
    anchors = {'type': 'mmdet.AnchorGenerator', 'scales': [8], 'ratios': [1.0], 'strides': [4, 8, 16, 32, 64]}
    align = {'type': 'RoIAlign', 'output_size': 7}
    return {
        'of': 'mmdet.MaskRCNN',
        'backbone': backbone,
        'neck': {'type': 'mmdet.FPN', 'in_channels': channels, 'out_channels': 8, 'num_outs': 5},
        'train_cfg': None,
        'test_cfg': ConfigDict(rpn={}, rcnn={}),
        'rpn_head': {'type': 'mmdet.RPNHead', 'anchor_generator': anchors, 'bbox_coder': boxes, **NARROW},
        'roi_head': {
            'type': 'mmdet.StandardRoIHead',
            'bbox_roi_extractor': {**roi, 'roi_layer': align},
            'bbox_head': {
                'type': 'mmdet.Shared2FCBBoxHead', 'num_classes': 3, 'in_channels': 8, 'fc_out_channels': 8,
                'bbox_coder': boxes, 'roi_feat_size': 7,
            },
            'mask_roi_extractor': {**roi, 'roi_layer': align},
            'mask_head': {
                'type': 'mmdet.FCNMaskHead', 'num_convs': 1, 'in_channels': 8, 'conv_out_channels': 8, 'num_classes': 3,
            },
        },
    }  # fmt: skip


VIT = {'img_size': 32, 'patch_size': 8, 'drop_rate': 0.5, **NOISE}
VIT_OF = {
    'mmpretrain': {**VIT, 'arch': {'embed_dims': 16, 'num_layers': 4, 'num_heads': 2, 'feedforward_channels': 32}},
    'mmseg': {**VIT, 'embed_dims': 16, 'num_layers': 4, 'num_heads': 2, 'mlp_ratio': 2, 'out_indices': (0, 1, 2, 3)},
}
SWIN_OF = {
    'mmpretrain': {**SWIN, 'arch': {'embed_dims': 8, 'depths': [1, 1, 2, 1], 'num_heads': [1] * 4}, 'img_size': 64},
    'mmseg': {**SWIN, 'embed_dims': 8, 'depths': (1, 1, 2, 1), 'num_heads': (1,) * 4, 'pretrain_img_size': 64},
}
CONVNEXT = {'arch': {'depths': [1, 1, 2, 1], 'channels': [8, 8, 16, 16]}, **NOISE}
PYRAMID = {'type': 'mmpretrain.ConvNeXt', **CONVNEXT, 'out_indices': [0, 1, 2, 3], 'gap_before_final_norm': False}
RESNET = {'depth': 18, 'stem_channels': 8, 'base_channels': 8}


def vit_block(d=16, f=32):
    return 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d)


def swin_block(d, f=4, window=4):
    return vit_block(d, f * d) + (2 * window - 1) ** 2


def convnext_block(d):
    return (49 * d + d) + 2 * d + (4 * d * d + 4 * d) + (4 * d * d + d) + d


def resnet_block(before, d):
    shortcut = before * d + 2 * d if before != d else 0
    return 9 * before * d + 2 * d + 9 * d * d + 2 * d + shortcut


def mit_block(d=8, f=32):
    """With a reduction of 1: attention, its norm, a mix-FFN with a depthwise convolution, its norm."""
    return 2 * 2 * d + (4 * d * d + 4 * d) + (d * f + f) + (9 * f + f) + (f * d + d)


#: The model, its images, how many parameters TopK(k=2) trains in the backbone, and the part that has them.
FAMILIES = {
    'ViT': (classifier({'type': 'VisionTransformer', **VIT_OF['mmpretrain']}, 16), 32, 2 * vit_block() + 2 * 16),
    'Swin': (
        classifier({'type': 'SwinTransformer', 'patch_size': 2, **SWIN_OF['mmpretrain']}, 64), 64,
        # A stage's patch merging comes behind its last block.
        swin_block(32) + (4 * 32 * 64 + 2 * 4 * 32) + swin_block(64) + 2 * 64,
    ),
    'ConvNeXt': (
        classifier({'type': 'ConvNeXt', **CONVNEXT}, 16), 64,
        convnext_block(16) + (2 * 16 + 4 * 16 * 16 + 16) + convnext_block(16) + 2 * 16,
    ),
    'ResNet': (classifier({'type': 'ResNet', **RESNET}, 64), 64, resnet_block(32, 64) + resnet_block(64, 64)),
    'UperNet ViT': (
        segmentor({'type': 'VisionTransformer', **VIT_OF['mmseg']}, {**UPER, 'in_channels': [16] * 4}), 32,
        2 * vit_block(),
    ),
    'UperNet Swin': (
        segmentor({'type': 'SwinTransformer', 'patch_size': 2, 'strides': (2, 2, 2, 2), **SWIN_OF['mmseg']},
                  {**UPER, 'in_channels': [8, 16, 32, 64]}), 64,
        swin_block(32) + (4 * 32 * 64 + 2 * 4 * 32) + swin_block(64) + 2 * 32 + 2 * 64,
    ),
    'SegFormer': (
        segmentor({'type': 'MixVisionTransformer', 'embed_dims': 8, 'num_layers': [1, 1, 2, 1], 'num_heads': [1] * 4,
                   'sr_ratios': [4, 2, 1, 1], 'drop_rate': 0.5, **NOISE},
                  {**HEAD, 'type': 'mmseg.SegformerHead', 'in_channels': [8] * 4}), 64,
        # Each stage begins with a patch embedding and its norm, and ends with a norm.
        mit_block() + 2 * 8 + (9 * 8 * 8 + 8 + 2 * 8) + mit_block() + 2 * 8,
    ),
    'Mask R-CNN ResNet': (
        detector({'type': 'mmdet.ResNet', 'frozen_stages': 1, 'norm_eval': True, 'with_cp': True, **RESNET},
                 [8, 16, 32, 64]), 64,
        resnet_block(32, 64) + resnet_block(64, 64),
    ),
    'Mask R-CNN ConvNeXt': (
        detector(PYRAMID, [8, 8, 16, 16]), 64,
        # norm2 comes behind the stage of the first of the two blocks.
        convnext_block(16) + 2 * 16 + (2 * 16 + 4 * 16 * 16 + 16) + convnext_block(16) + 2 * 16,
    ),
}  # fmt: skip
METHODS = {'Linear': 'Linear', 'BitFit': 'BitFit', 'TopK': {'type': 'TopK', 'k': 2}}


def biases(backbone):
    """Their number, counted by the modules that have them."""
    found = [getattr(module, name, None) for module in backbone.modules() for name in ('bias', 'in_proj_bias')]
    return sum(p.numel() for p in found if p is not None)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in value for t in tensors(each)] if isinstance(value, (tuple, list)) else []


def outputs(model, images):
    """What the frozen parts of the backbone give, by name, and the backbone."""
    found = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *args, name=name: found.update({name: tensors(args[2])}))
        for name in model.tuning.frozen.names
        if name.startswith('backbone')
    ]
    out = tensors(model.backbone(images))
    for hook in hooks:
        hook.remove()
    return found, out


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('family', FAMILIES)
def test_subsets_of(family, method):
    cfg, size, top = FAMILIES[family]
    torch.manual_seed(0)
    # The scope of another test's Runner may still be the current one.
    with DefaultScope.overwrite_default_scope(cfg['of'].partition('.')[0]):
        model = MODELS.build({'type': 'olor_mm.Tuned', 'method': METHODS[method], **cfg})
    backbone = model.backbone
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if not name.startswith('backbone')} == {
        name for name, _ in model.named_parameters() if not name.startswith('backbone')
    }
    stem = 0
    if 'frozen_stages' in cfg['backbone'] and method == 'BitFit':
        stem = biases(nn.ModuleList([backbone.bn1, backbone.layer1]))
    expected = {'Linear': 0, 'BitFit': biases(backbone) - stem, 'TopK': top}[method]
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == expected

    images = torch.randn(2, 3, size, size)
    model.eval()
    at_inference, _ = outputs(model, images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    while_training, out = outputs(model, images)
    if method != 'BitFit':
        # In front of the first block that is trained nothing is random.
        assert at_inference
        for name, values in at_inference.items():
            assert all(map(torch.equal, values, while_training[name])), name
    frozen = tuple(f'{name}.' for name in model.tuning.frozen.names)
    assert not [n for n, buffer in model.named_buffers() if n.startswith(frozen) and not torch.equal(buffer, before[n])]
    if method != 'Linear':
        sum(((i + 1) * each.sum() + each.square().sum() for i, each in enumerate(out))).backward()
    assert {n for n, p in backbone.named_parameters() if p.grad is not None} == {
        n for n, p in backbone.named_parameters() if p.requires_grad
    }


#: What docs/methods.md says of ViT-B/16 with 100 classes: config line, parameters trained, of.
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'methods.md'
ROWS = re.findall(r'^\| `(method=.*?)` \| .* \| ([\d,]+) \| ([\d,]+) \|$', DOCS.read_text(), re.MULTILINE)


def test_the_documented_numbers_of_parameters_are_counted():
    assert len(ROWS) == 6
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 100, 'in_channels': 768}
    backbone = {'type': 'mmpretrain.VisionTransformer', 'arch': 'base'}
    for line, trained, of in ROWS:
        config = Config.fromstring(line, '.py')
        with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
            kind = {'type': 'olor_mm.Tuned', 'of': 'mmpretrain.ImageClassifier', 'method': config.method}
            model = MODELS.build({**kind, 'backbone': backbone, 'head': head})
        params = [*model.parameters()]
        assert f'{sum(p.numel() for p in params if p.requires_grad):,}' == trained, line
        assert f'{sum(p.numel() for p in params):,}' == of
