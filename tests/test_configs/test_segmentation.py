"""UperNet with a ViT: mmseg's recipe, and real runs on CamVid with real pre-trained weights."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import olor_mm
from tests.test_configs._camvid import CLASSES, VOID, write_camvid
from tests.test_configs.test_configs import _difference, _load, _mim
from tests.test_tools._small import TOOLS, run, tool

MATCHED = re.compile(r'theta_0: (\d+) of (\d+) tensors from (\S+)')


def test_olor_and_baseline_differ_in_olor_alone() -> None:
    assert _difference(_load('olor_upernet_vit.py'), _load('baseline_upernet_vit.py')) == {
        'optim_wrapper.constructor': ('olor_mm.OLOROptimWrapperConstructor', None),
        'optim_wrapper.rollback.max_level': (1e-4, None),
        'optim_wrapper.rollback.min_level': (0.0, None),
        'optim_wrapper.rollback.power': (1, None),
    }


def test_baseline_is_mmsegs_recipe_with_the_papers_optimizer() -> None:
    theirs = Config.fromfile(
        _mim('mmseg') / 'configs' / 'vit' / 'vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512.py'
    ).to_dict()
    difference = _difference(_load('baseline_upernet_vit.py'), theirs)
    # What mmseg's file defines and nothing reads, or reads under another name.
    unread = ('data_preprocessor.', 'norm_cfg.', 'img_ratios.', 'tta_pipeline.', 'checkpoint_file', 'optimizer.')
    told = {key: value for key, value in difference.items() if not key.startswith(unread)}
    assert told == {
        'model.pretrained': (None, 'pretrain/vit_base_patch16_224.pth'),
        'model.backbone.init_cfg.type': ('Pretrained', None),
        'model.backbone.init_cfg.checkpoint': (_load('baseline_upernet_vit.py')['checkpoint_file'], None),
        'model.backbone.patch_bias': (True, None),
        'model.decode_head.norm_cfg.type': ('BN', 'SyncBN'),
        'model.auxiliary_head.norm_cfg.type': ('BN', 'SyncBN'),
        'sync_bn': ('torch', None),
        **{f'{split}.persistent_workers': (False, True) for split in _loaders()},
        'train_dataloader.dataset.pipeline.1.reduce_zero_label': (None, True),
        'train_pipeline.1.reduce_zero_label': (None, True),
        'test_pipeline.2.reduce_zero_label': (None, True),
        **{f'{split}.dataset.pipeline.2.reduce_zero_label': (None, True) for split in _loaders()[1:]},
        'optim_wrapper.optimizer.type': ('Adam', 'AdamW'),
        'optim_wrapper.optimizer.weight_decay': (0.0, 0.01),
        **{f'optim_wrapper.paramwise_cfg.custom_keys.{k}.decay_mult': (None, 0.0) for k in _NOT_DECAYED},
        'auto_scale_lr.enable': (False, None),
        'auto_scale_lr.base_batch_size': (16, None),
        'randomness.seed': (0, None),
        'custom_hooks.0.type': ('olor_mm.ResumableRandomnessHook', None),
        'default_hooks.checkpoint.type': ('olor_mm.DurableCheckpointHook', 'CheckpointHook'),
        'custom_imports.imports.0': ('olor_mm', None),
        'custom_imports.allow_failed_imports': (False, None),
    }


_NOT_DECAYED = ('pos_embed', 'cls_token', 'norm')


def _loaders() -> tuple[str, ...]:
    return ('train_dataloader', 'val_dataloader', 'test_dataloader')


def test_the_layers_of_the_whole_backbone() -> None:
    """ViT-B itself: a stem and 12 blocks, every parameter in one of them."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from olor_mm.layers import assign_layers

    init_default_scope('mmseg')
    cfg = Config.fromfile(olor_mm.cfg('olor_upernet_vit.py'))
    model = MODELS.build(cfg.model)
    table = assign_layers(model, roots=('backbone',))
    assert table.num_layers == 12
    assert set(table.index) == {name for name, _ in model.named_parameters() if name.startswith('backbone.')}
    assert {table.index[name] for name in ('backbone.cls_token', 'backbone.pos_embed')} == {0}
    assert table.index['backbone.layers.11.ffn.layers.1.weight'] == 12


def _scalars(work_dir: Path) -> list[dict[str, Any]]:
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def _best_constant(folder: Path) -> float:
    """mIoU in percent of the best constant answer: the chance level that a trained model has to leave behind."""
    counts = np.zeros(VOID + 1)
    for file in sorted(folder.glob('*.png')):
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        counts += np.bincount(mask.ravel(), minlength=VOID + 1)
    return 100 * counts[:VOID].max() / counts[:VOID].sum() / len(CLASSES)


def _check_run(done: subprocess.CompletedProcess[str], work_dir: Path, shared: Path, tensors: int) -> None:
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:]
    found = MATCHED.search(log)
    assert found, log
    assert (int(found[1]), int(found[2])) == (tensors, tensors)
    assert Path(found[3]).name == 'deit_tiny_in1k_mmpretrain.pth'
    assert 'came from no checkpoint' not in log
    scalars = _scalars(work_dir)
    losses = [line['loss'] for line in scalars if 'loss' in line]
    assert losses[-1] < 0.75 * losses[0]
    assert [line for line in scalars if line.get('rollback/discrepancy', 0) > 0]
    (miou,) = [line['mIoU'] for line in scalars if 'mIoU' in line]
    assert miou > 4 * _best_constant(shared / 'camvid' / 'annotations' / 'val')


@pytest.mark.slow
def test_real_scenes_through_our_tool(tmp_path: Path, shared_data: Path) -> None:
    """mmseg's ViT with a checkpoint of mmpretrain's names: every tensor of the backbone that has a level matched."""
    write_camvid(tmp_path, shared_data, 'mmseg', iters=200)
    done = tool('train.py', 'camvid.py', '--work-dir', 'run', cwd=tmp_path)
    # 12 blocks of 12 tensors and 4 of the stem; the last block's level is 0.
    _check_run(done, tmp_path / 'run', shared_data, tensors=11 * 12 + 4)


@pytest.mark.slow
def test_real_scenes_through_mmsegs_own_tool(tmp_path: Path, shared_data: Path) -> None:
    """mmpretrain's ViT, whose last norm is a part of the last layer; mmseg's train.py, which knows nothing of us."""
    write_camvid(tmp_path, shared_data, 'mmpretrain', iters=120)
    spec = importlib.util.find_spec('mmseg')
    assert spec is not None
    assert spec.origin is not None
    train = Path(spec.origin).parent / '.mim' / 'tools' / 'train.py'
    if not train.is_file():
        pytest.skip('this installation of mmseg carries no tools')
    done = run(sys.executable, train, 'camvid.py', '--work-dir', 'run', cwd=tmp_path)
    _check_run(done, tmp_path / 'run', shared_data, tensors=11 * 12 + 4)


@pytest.mark.slow
def test_two_processes(tmp_path: Path, shared_data: Path) -> None:
    write_camvid(tmp_path, shared_data, 'mmseg', iters=4)
    options = ['--work-dir', 'run', '--cfg-options', 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1']
    done = run(TOOLS / 'dist_train.sh', 'camvid.py', '2', *options, cwd=tmp_path)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:]
    assert '2 processes over gloo instead of nccl' in log
    assert 'batch norms take the statistics of their own process' in log
    assert MATCHED.search(log)
    assert len([line for line in _scalars(tmp_path / 'run') if 'loss' in line]) == 4


@pytest.mark.slow
def test_an_iteration_based_run_resumes_exactly(tmp_path: Path, shared_data: Path) -> None:
    """Stopped after 2 of 4 iterations, with a data worker and random crops: the same weights, bit for bit."""
    from olor_mm.engine import load_from_local

    write_camvid(tmp_path, shared_data, 'mmseg', iters=4, extra='\ndefault_hooks["checkpoint"]["interval"] = 2\n')
    options = ['camvid.py', '--no-validate', '--work-dir']
    whole = tool('train.py', *options, 'whole', cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    (tmp_path / 'stopped').mkdir()
    (tmp_path / 'whole' / 'iter_2.pth').rename(tmp_path / 'stopped' / 'iter_2.pth')
    resumed = tool('train.py', *options, 'stopped', '--resume', tmp_path / 'stopped' / 'iter_2.pth', cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert 'tensors from the resumed checkpoint' in resumed.stdout + resumed.stderr
    one, other = (load_from_local(str(tmp_path / run / 'iter_4.pth'))['state_dict'] for run in ('whole', 'stopped'))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
