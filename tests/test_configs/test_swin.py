"""Mask R-CNN with a Swin: mmdet's recipe, what the methods train of it, and a run on real photographs."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import olor_mm
from olor_mm.engine import load_from_local
from olor_mm.tooling import train
from olor_mm.tooling.settings import register_scope
from tests.test_configs.test_configs import _difference, _load, _mim

SMALL = 'dict(_delete_=True, embed_dims=8, depths=[2, 2, 18, 2], num_heads=[1, 1, 1, 1])'
#: What each config trains of the backbone, as a pattern of names.
TRAINED = {
    'baseline': r'.*',
    'olor': r'.*',
    'dtl': r'dtl\.',
    # Of the 24 + 4 blocks those behind the 6th, 12th, 18th and 24th of the old ones.
    'block-expansion': r'stages\.2\.blocks\.(2|9|16)\.|stages\.3\.blocks\.2\.',
}


def test_baseline_is_mmdets_recipe_for_a_swin() -> None:
    file = _mim('mmdet') / 'configs' / 'swin' / 'mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
    theirs, ours = Config.fromfile(file).to_dict(), _load('baseline_maskrcnn_swin.py')
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert ours[key] == theirs[key], key
    difference = _difference(ours['model'], theirs['model'])
    assert {key for key in difference if not key.startswith('backbone.')} == {f'neck.in_channels.{i}' for i in range(4)}


def test_weights_are_mmpretrains_swin_b() -> None:
    from mmengine.fileio import load

    models = load(_mim('mmpretrain') / 'configs' / 'swin_transformer' / 'metafile.yml')['Models']
    (published,) = {model['Weights'] for model in models if 'swin_base_patch4_window7_224_22kto1k' in model['Weights']}
    published = published.replace('https://mmassets.onedl.ai/', 'https://download.openmmlab.com/')
    assert _load('olor_maskrcnn_swin.py')['model']['backbone']['init_cfg'] == dict(
        type='Pretrained', checkpoint=published, prefix='backbone.'
    )


@pytest.mark.parametrize('name', TRAINED)
def test_differs_in_its_method_alone_and_trains_what_it_says(name: str) -> None:
    cfg = Config.fromfile(olor_mm.cfg(f'{name}_maskrcnn_swin'))
    difference = _difference(cfg.to_dict(), _load('baseline_maskrcnn_swin.py'))
    own = r'model\.(type|of|method\..*)|optim_wrapper\.(constructor|rollback\..*)|custom_hooks\..*'
    assert all(re.fullmatch(own, key) for key in difference), difference
    register_scope(cfg)
    cfg.model.backbone.arch = dict(embed_dims=8, depths=[2, 2, 18, 2], num_heads=[1, 1, 1, 1])
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.model.roi_head.bbox_head.fc_out_channels = 8
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    found = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert found
    assert found == {key for key, _ in model.backbone.named_parameters() if re.match(TRAINED[name], key)}
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith('backbone.'))
    with torch.no_grad():
        maps = model.eval().extract_feat(torch.zeros(1, 3, 72, 104))
    assert [tuple(level.shape[2:]) for level in maps] == [(18, 26), (9, 13), (5, 7), (3, 4), (2, 2)]


@pytest.mark.slow
def test_trains_on_real_photographs_through_the_tool(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shared_data / 'coco_mini'
    monkeypatch.setenv('LOCAL_RANK', '0')
    config = tmp_path / 'small.py'
    config.write_text(
        "_base_ = [__import__('olor_mm').cfg('dtl_maskrcnn_swin')]\n"
        f'model = dict(backbone=dict(arch={SMALL}, init_cfg=None), neck=dict(in_channels=[8, 16, 32, 64]),\n'
        '    roi_head=dict(bbox_head=dict(fc_out_channels=16)))\n'
        'train_dataloader = dict(batch_size=1, num_workers=0)\n'
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2)\n"
        'param_scheduler = None\n'
        'default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1))\n'
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        train([str(config), '--data-root', str(data), '--work-dir', str(tmp_path / 'run'), '--no-validate'])
    one, two = (load_from_local(str(tmp_path / 'run' / f'iter_{i}.pth'), 'cpu')['state_dict'] for i in (1, 2))
    changed = {name for name in one if name.startswith('backbone.') and not torch.equal(one[name], two[name])}
    assert changed
    assert all(name.startswith('backbone.dtl.') for name in changed)
