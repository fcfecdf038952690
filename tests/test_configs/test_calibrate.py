"""The configs that keep the pre-trained head: what they train on, and that all of the model is pre-trained."""

from pathlib import Path

import pytest
from mmengine.config import Config

import olor_mm
from olor_mm.tooling.calibration.plan import check_config, loader_of, training_only

NAMES = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / 'configs' / 'calibrate').glob('*.py'))


@pytest.mark.parametrize('name', NAMES)
def test_configs(name):
    cfg = Config.fromfile(olor_mm.cfg(f'calibrate/{name}.py'))
    check_config(cfg)
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    assert (train.type, train.dataset.type, test.type) == ('olor_mm.ClassSubset', *2 * ['olor_mm.SynsetFolders'])
    assert len(train.classes) == len(set(train.classes)) == 50
    assert (train.dataset.data_prefix, test.data_prefix) == ('train', 'val')
    assert train.dataset.pipeline != test.pipeline
    assert cfg.model.head.num_classes == 1000
    assert cfg.load_from.startswith('https://')
    assert cfg.get('val_dataloader') is None
    assert ('rollback' in cfg.optim_wrapper) == name.startswith('olor')
    # Training images under the transforms of the test, in order; nothing of the test itself.
    training = training_only(cfg)
    assert training.test_dataloader is None
    assert training.val_dataloader is None
    assert "'val'" not in str(training.to_dict())
    loader = loader_of(training, train.classes, dict(share=0.2, seed=0))
    inner = loader.dataset.dataset
    assert (inner.type, inner.held_out, inner.dataset.dataset.data_prefix) == ('olor_mm.HoldOut', True, 'train')
    assert inner.dataset.dataset.pipeline == test.pipeline
    assert (loader.sampler.shuffle, loader.sampler.round_up, loader.batch_size) == (False, False, 64)


@pytest.mark.parametrize('name', NAMES)
def test_the_classes_are_every_fourth_of_tiny_imagenet(name, shared_data):
    pytest.importorskip('timm')
    pytest.importorskip('mmpretrain')
    from olor_mm.datasets import SynsetFolders

    dataset = SynsetFolders(data_root=str(shared_data / 'tiny_imagenet'), data_prefix='val', pipeline=[])
    cfg = Config.fromfile(olor_mm.cfg(f'calibrate/{name}.py'))
    assert cfg.train_dataloader.dataset.classes == sorted(set(dataset.get_gt_labels().tolist()))[::4]
