"""DTL in whole runs: its config through tools/train.py, resumed to the bit; with a rollback on."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from olor_mm.datasets import PACS
from olor_mm.engine import load_from_local
from olor_mm.tooling import train
from tests.test_datasets._make import make_domains
from tests.test_models._dtl import VIT, build, images, shake

pytest.importorskip('mmpretrain.models')

SMALL = """
_base_ = [__import__('olor_mm').cfg('classification/dtl-plus_vit-base-p16_8xb4_pacs.py')]

arch = dict(_delete_=True, embed_dims=16, num_layers=8, num_heads=2, feedforward_channels=32)
init = dict(_delete_=True, type='Pretrained', checkpoint={checkpoint!r}, prefix='backbone.')
model = dict(backbone=dict(arch=arch, init_cfg=init, img_size=32), head=dict(in_channels=16))
scaled = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]
train_dataloader = dict(num_workers=0, dataset=dict(indices=8, pipeline=scaled))
val_dataloader = dict(num_workers=0, dataset=dict(indices=4, pipeline=scaled))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=3)
"""


@pytest.mark.slow
def test_its_config_trains_the_side_network_alone_and_resumes_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    arch = {'embed_dims': 16, 'num_layers': 8, 'num_heads': 2, 'feedforward_channels': 32}
    pretrained = build({**VIT, 'arch': arch, 'patch_size': 16, 'img_size': 32}, 'Full').float().state_dict()
    pretrained = {key.replace('.ln2.', '.ln1.') if '.layers.' not in key else key: v for key, v in pretrained.items()}
    torch.save({key: value for key, value in pretrained.items() if 'head' not in key}, tmp_path / 'plain.pth')
    config = tmp_path / 'dtl_small.py'
    config.write_text(SMALL.format(checkpoint=str(tmp_path / 'plain.pth')))
    make_domains(tmp_path / 'data', PACS, per_class=5)
    saved = []
    for name, resumed in (('whole', None), ('resumed', tmp_path / 'whole' / 'epoch_1.pth')):
        more = ['--resume', str(resumed)] if resumed else []
        work_dir = ['--work-dir', str(tmp_path / name), '--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=2']
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            train([str(config), '--data-root', str(tmp_path / 'data'), *more, *work_dir])
        saved.append(load_from_local(str(tmp_path / name / 'epoch_2.pth'), 'cpu')['state_dict'])
    whole, again = saved
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key
        if key.startswith('backbone.') and '.dtl.' not in key:
            assert torch.equal(value, pretrained[key.replace('backbone.ln2', 'backbone.ln1')]), key
    assert all(value.any() for key, value in whole.items() if key.endswith('.up'))
    assert len([key for key in whole if '.dtl.' in key]) == 2 * 8 + 1


ROLLBACK = {'max_level': 0.5, 'power': 1, 'anchor': 'current'}
WRAPPER = {
    'type': 'OptimWrapper',
    'constructor': 'olor_mm.OLOROptimWrapperConstructor',
    'optimizer': {'type': 'SGD', 'lr': 0.1},
    'rollback': ROLLBACK,
}


@pytest.mark.parametrize('index', ['layer', 'tensor'])
def test_a_rollback_pulls_what_was_pretrained_and_not_the_side_network(index):
    method = {'type': 'DTL', 'start_block': 3, 'train': r'layers\.1\.ffn'}
    model = shake(build(VIT, method))
    wrapper = build_optim_wrapper(model, {**WRAPPER, 'rollback': {**ROLLBACK, 'index': index}})
    wrapper.initialize_count_status(model, 0, 10)
    pulled = wrapper.rollback_session.rollback.levels
    names = {name for name, p in model.named_parameters() if p in pulled and p.requires_grad}
    assert names
    assert all('layers.1.ffn' in name for name in names)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    grads = torch.autograd.grad(model(images(32, 24)).square().sum(), trained)
    wrapper.update_params(model(images(32, 24)).square().sum())
    for p, start, grad in zip(trained, before, grads, strict=True):
        torch.testing.assert_close(p.detach(), start - (1 - pulled.get(p, 0.0)) * 0.1 * grad)


def test_with_nothing_else_trained_there_is_nothing_to_pull_back():
    with pytest.raises(ValueError, match='there is nothing to pull back'):
        build_optim_wrapper(build(VIT, {'type': 'DTL', 'start_block': 3}), WRAPPER)
