"""Configs with a trainable subset: what they train of the whole models, and a run on data in their real format."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import olor_mm
from olor_mm.datasets import PACS
from olor_mm.engine import load_from_local
from olor_mm.tooling import train
from olor_mm.tooling.settings import register_scope
from tests.test_configs.test_configs import _difference
from tests.test_datasets._make import make_domains

HEAD = r'head\.fc\.'
#: The config, the one it differs from, its scope, and which parameters it trains.
CASES = {
    'topk3_vit-base-p16_8xb16_pacs': (
        'full_vit-base-p16_8xb16_pacs', 'mmpretrain', rf'{HEAD}|layers\.(9|10|11)\.|backbone\.ln1',
    ),
    'bitfit_vit-base-p16_8xb16_pacs': ('full_vit-base-p16_8xb16_pacs', 'mmpretrain', rf'{HEAD}|\.bias$'),
    'linear-tuned_vit-base-p16_8xb64_pacs': ('linear_vit-base-p16_8xb64_pacs', 'mmpretrain', HEAD),
    'bitfit_upernet_vit': ('baseline_upernet_vit', 'mmseg', r'^(?!backbone)|[._]bias$'),
    'topk3_maskrcnn_convnext': (
        'baseline_maskrcnn_convnext', 'mmdet', r'^(?!backbone)|stages\.3\.|downsample_layers\.3\.|backbone\.norm\d',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_trains_its_subset_of_the_whole_model(name):
    base, scope, trained = CASES[name]
    cfg, other = Config.fromfile(olor_mm.cfg(name)), Config.fromfile(olor_mm.cfg(base))
    difference = _difference(cfg.to_dict(), other.to_dict())
    own = r'model\.(type|of|method.*|backbone\.frozen_stages)|optim_wrapper\.optimizer\.lr'
    assert all(re.fullmatch(own, key) for key in difference), difference
    assert cfg.model.of == other.model.type
    register_scope(cfg)
    # Names are all that matters.
    if scope == 'mmseg':
        cfg.model.backbone.embed_dims = 12
        cfg.model.neck.in_channels = [12, 12, 12, 12]
    if scope == 'mmdet':
        cfg.model.backbone.arch = {'depths': [3, 3, 27, 3], 'channels': [8, 8, 8, 8]}
        cfg.model.neck.in_channels = [8, 8, 8, 8]
        cfg.model.roi_head.bbox_head.fc_out_channels = 8
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta' if scope == 'mmpretrain' else 'cpu'):
        model = MODELS.build(cfg.model)
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found == {name for name, _ in model.named_parameters() if re.search(trained, name)}


SMALL = """
_base_ = [__import__('olor_mm').cfg('topk3_vit-base-p16_8xb16_pacs')]

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32), init_cfg=None),
    head=dict(in_channels=16))
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(indices=8))
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(indices=4))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=-1))
custom_hooks = [
    dict(type='olor_mm.ResumableRandomnessHook'), dict(type='olor_mm.UnfreezeHook', train=r'backbone\\.', epoch=2)]
"""


def test_trains_and_unfreezes_through_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOCAL_RANK', '0')
    make_domains(tmp_path / 'data', PACS, per_class=5)
    config = tmp_path / 'topk3_unfrozen.py'
    config.write_text(SMALL)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        train([str(config), '--data-root', str(tmp_path / 'data'), '--work-dir', str(tmp_path / 'run')])
    one, two, three = (load_from_local(str(tmp_path / 'run' / f'epoch_{i}.pth'), 'cpu') for i in (1, 2, 3))
    assert three['meta']['iter'] == math.ceil(8 / 4) * 3
    changed = [
        {name for name in a['state_dict'] if not torch.equal(a['state_dict'][name], b['state_dict'][name])}
        for a, b in ((one, two), (two, three))
    ]
    assert changed[0] == {name for name in one['state_dict'] if re.search(r'head|layers\.[123]\.|ln1', name)} - {
        name for name in one['state_dict'] if name.startswith('backbone.layers.0.')
    }
    assert changed[1] == set(one['state_dict'])
    # Names are those of the model without a method.
    assert not [name for name in one['state_dict'] if 'tuning' in name]
