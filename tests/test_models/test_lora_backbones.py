"""LoRA on the toolboxes' backbones: which layers are found, how many parameters that is, and the shipped configs."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import olor_mm
from olor_mm.models import merge
from olor_mm.models.lora import LoRA

pytest.importorskip('mmpretrain.models')

SMALL = {'embed_dims': 16, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 32}
STAGES = {'embed_dims': 16, 'depths': [1, 1, 1, 1], 'num_heads': [2, 2, 2, 2]}
IMAGES = {'img_size': 64, 'patch_size': 16}
#: Backbone, width of each of its attentions.
BACKBONES = {
    'ViT': ({'type': 'VisionTransformer', 'arch': SMALL, **IMAGES}, [16, 16]),
    'DeiT III': ({'type': 'DeiT3', 'arch': SMALL, **IMAGES}, [16, 16]),
    'EVA-02': ({'type': 'ViTEVA02', 'arch': SMALL, **IMAGES}, [16, 16]),
    'BEiT, which puts its bias together': ({'type': 'BEiTViT', 'arch': SMALL, **IMAGES}, [16, 16]),
    'Swin': ({'type': 'SwinTransformer', 'arch': STAGES, 'img_size': 64, 'window_size': 2}, [16, 32, 64, 128]),
    'Swin v2, which does so too': (
        {
            'type': 'SwinTransformerV2', 'img_size': 64, 'window_size': 2,
            'arch': {**STAGES, 'extra_norm_every_n_blocks': 0},
        },
        [16, 32, 64, 128],
    ),
    "mmseg's ViT, with torch's attention": (
        {'type': 'mmseg.VisionTransformer', **IMAGES, 'embed_dims': 16, 'num_layers': 2, 'num_heads': 2,
         'mlp_ratio': 2, 'out_indices': [1]},
        [16, 16],
    ),
}  # fmt: skip


class Whole(nn.Module):
    """A model that is a backbone."""

    def __init__(self, cfg):
        super().__init__()
        torch.manual_seed(0)
        scope, _, name = cfg['type'].rpartition('.')
        if scope == 'mmseg':
            pytest.importorskip('mmseg.models')
        self.backbone = MODELS.build({**cfg, 'type': f'{scope or "mmpretrain"}.{name}'})


@pytest.mark.parametrize('name', BACKBONES)
def test_q_and_v_of_every_attention(name):
    cfg, widths = BACKBONES[name]
    model, x = Whole(cfg).eval(), torch.randn(2, 3, 64, 64)
    base = copy.deepcopy(model.state_dict())
    before = model.backbone(x)
    method = LoRA(rank=2)
    method.apply(model)
    params = dict(model.named_parameters())
    assert sum(params[key].numel() for key in method.added) == sum(2 * 2 * 2 * width for width in widths)
    for one, other in zip(model.backbone(x), before, strict=True):
        assert torch.equal(one, other)
    for key in method.added:
        if key.endswith('.b'):
            nn.init.normal_(params[key], std=0.1)
    out = model.backbone(x)
    sum(part.square().sum() for part in out).backward()
    assert all(params[key].grad.any() for key in method.added)
    with torch.no_grad():
        # torch has another way through its own attention then.
        for one, other in zip(model.backbone(x), out, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    merge(model)
    merged = model.state_dict()
    assert merged.keys() == base.keys()
    changed = {key for key, value in merged.items() if not torch.equal(value, base[key])}
    assert len(changed) == len(widths)
    for key in changed:
        q, k, v = (merged[key] - base[key]).chunk(3)
        assert q.any()
        assert not k.any()
        assert v.any()
        assert torch.linalg.matrix_rank(q, rtol=1e-3) == torch.linalg.matrix_rank(v, rtol=1e-3) == 2
    for one, other in zip(model.backbone(x), out, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_number_of_parameters_of_vit_b():
    with torch.device('meta'):
        cfg = Config.fromfile(olor_mm.cfg('lora-r8_vit-base-p16_8xb32_pacs')).model
        assert cfg.of == 'ImageClassifier'
        backbone = {key: value for key, value in cfg.backbone.items() if key != 'init_cfg'}
        model = Whole(backbone)
        method = LoRA(**{key: value for key, value in cfg.method.items() if key != 'type'})
        method.apply(model)
    assert sum(model.get_parameter(name).numel() for name in method.added) == 12 * 2 * 2 * 8 * 768
    assert method.scale == 1
    # ConvNeXt-B: from d to 4 d and back.
    convnext = sum(blocks * 2 * 8 * (d + 4 * d) for blocks, d in ((3, 128), (3, 256), (27, 512), (3, 1024)))
    told = (Path(__file__).parents[2] / 'docs' / 'methods.md').read_text().partition('## LoRA')[2]
    rows = [line.split('|')[3].strip() for line in told.splitlines() if line.startswith('| [')]
    assert rows[:3] == [f'{12 * 2 * 2 * 8 * 768:,}', f'{convnext:,}', f'{12 * 2 * 2 * 8 * 768:,}']


@pytest.mark.parametrize(
    ('config', 'backbone', 'expected'),
    [
        ('lora-r8_maskrcnn_convnext', {'type': 'ConvNeXt', 'arch': 'atto'}, 12 * 2),
        ('lora-r8_upernet_vit', {**BACKBONES["mmseg's ViT, with torch's attention"][0]}, 2),
    ],
)
def test_other_configs(config, backbone, expected):
    cfg = Config.fromfile(olor_mm.cfg(config))
    model = Whole(backbone)
    method = LoRA(**{key: value for key, value in cfg.model.method.items() if key != 'type'})
    method.apply(model)
    assert len(method.adapted) == expected
    assert cfg.custom_hooks[-1].type == 'olor_mm.SaveTrainedHook'
    if 'convnext' in config:
        blocks = [name for name, module in model.named_modules() if type(module).__name__ == 'ConvNeXtBlock']
        assert {name for name, _ in method.adapted} == {
            f'{block}.pointwise_conv{i}' for block in blocks for i in (1, 2)
        }
