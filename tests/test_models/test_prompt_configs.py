"""The configs of VPT and padding prompts: what they train, what docs/methods.md says of it, and runs on real images."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

import olor_mm
from olor_mm.engine import load_from_local
from olor_mm.models import build_method
from olor_mm.tooling import train

VIT_B, CONVNEXT_B = 'full_vit-base-p16_8xb16_pacs', 'full_convnext-base_8xb16_pacs'
#: Config -> the plain fine-tuning beside it, learning rate, images a step (None: as there), parameters that are added.
CONFIGS = {
    'classification/vpt-deep_vit-base-p16_8xb32_pacs': (f'classification/{VIT_B}', 2e-4, 256, 12 * 10 * 768),
    'classification/vpt-shallow_vit-base-p16_8xb32_pacs': (f'classification/{VIT_B}', 2e-4, 256, 10 * 768),
    'classification/padding-prompt_convnext-base_8xb32_pacs': (
        f'classification/{CONVNEXT_B}', 2e-2, 256, 3 * (244 * 244 - 224 * 224),
    ),
    'vpt-deep_upernet_vit': ('baseline_upernet_vit', 1.2e-4, None, 12 * 10 * 768),
}  # fmt: skip


def backbone_of(cfg):
    """One of the size that the config's has, without weights."""
    if cfg.model.backbone.type == 'ConvNeXt':
        return nn.Conv2d(3, 128, 4, 4)
    from mmpretrain.models import VisionTransformer

    with torch.device('meta'):
        return VisionTransformer('base', img_size=cfg.model.backbone.img_size)


@pytest.mark.parametrize('name', CONFIGS)
def test_differs_from_plain_fine_tuning_in_its_method_batch_and_rate(name):
    plain, rate, batch, count = CONFIGS[name]
    cfg = Config.fromfile(olor_mm.cfg(f'{name}.py'))
    own, other = cfg.to_dict(), Config.fromfile(olor_mm.cfg(f'{plain}.py')).to_dict()
    assert own['model'].pop('type') == 'olor_mm.Tuned'
    assert own['model'].pop('of') == other['model'].pop('type')
    assert own['optim_wrapper']['optimizer'].pop('lr') == rate
    if batch:
        assert own['train_dataloader'].pop('batch_size') * 8 == own.pop('auto_scale_lr')['base_batch_size'] == batch
        del other['train_dataloader']['batch_size'], other['auto_scale_lr']
    del other['optim_wrapper']['optimizer']['lr']
    method = build_method(own['model'].pop('method'))
    assert own == other

    model = nn.Module()
    model.backbone = backbone_of(cfg)
    method.apply(model)
    found = sum(model.get_parameter(added).numel() for added in method.added)
    assert found == count
    told = (Path(__file__).parents[2] / 'docs' / 'methods.md').read_text()
    (said,) = re.findall(rf'\(\.\./configs/{name}\.py\) \|[^|]*\| ([\d,]+) \|', told)
    assert said == f'{count:,}'


RUN = """
_base_ = [__import__('olor_mm').cfg('{name}.py')]

model = dict(backbone={backbone}, head=dict(in_channels={channels}))
data = dict(data_root={data!r})
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(indices=8, **data))
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(indices=4, **data))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""
DEIT = (
    "dict(arch='deit-tiny', drop_path_rate=0.1, init_cfg=dict(_delete_=True, type='Pretrained', "
    "checkpoint={weights!r}, prefix='backbone.'))"
)
RUNS = {
    'classification/vpt-deep_vit-base-p16_8xb32_pacs': (DEIT, 192),
    'classification/padding-prompt_convnext-base_8xb32_pacs': ("dict(arch='atto', init_cfg=None)", 320),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_trains_on_real_images_from_real_weights(name, tmp_path, shared_data, monkeypatch, capfd):
    # What a Runner leaves behind in the process goes with the test.
    monkeypatch.setenv('LOCAL_RANK', '0')
    weights = str(shared_data / 'weights' / 'deit_tiny_in1k_mmpretrain.pth')
    backbone, channels = RUNS[name]
    config = tmp_path / f'{Path(name).name}.py'
    config.write_text(
        RUN.format(
            name=name, backbone=backbone.format(weights=weights), channels=channels, data=str(shared_data / 'pacs')
        )
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        train([str(config), '--work-dir', str(tmp_path / 'run')])
    saved = load_from_local(str(tmp_path / 'run' / 'epoch_1.pth'), 'cpu')
    added = [key for key in saved['state_dict'] if '.prompt.' in key or '.border.' in key]
    # What is trained has a state: the head's weight and bias, and what was added.
    assert len(saved['optimizer']['state']) == 2 + len(added) == (14 if 'vpt' in name else 4)
    assert all(torch.isfinite(saved['state_dict'][key]).all() for key in saved['state_dict'])
    assert 'missing keys' not in ''.join(capfd.readouterr())
    if 'vpt' in name:
        before = load_from_local(weights, 'cpu')
        before = before.get('state_dict', before)
        kept = [key for key in saved['state_dict'] if key in before and key.startswith('backbone.')]
        assert len(kept) == 12 * 12 + 6
        assert all(torch.equal(saved['state_dict'][key], before[key]) for key in kept)
