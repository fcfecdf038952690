"""OLOR on configs that the toolboxes ship, with their own train.py, from the command line alone.

No file of theirs is changed and none of ours is named: two options turn OLOR on. The other options only make the jobs
small and point them at generated images.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from olor_mm.rollback import ANCHOR_KEY
from tests._data import CLASSES, make_coco

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
TURN_ON = (
    'optim_wrapper.constructor=olor_mm.OLOROptimWrapperConstructor',
    'optim_wrapper.rollback.max_level=0.01',
)


def mmdet_job(root):
    make_coco(root / 'coco', train=2, val=2)
    data = 'train_dataloader.dataset'
    classes = '(' + ','.join(f"'{name}'" for name in CLASSES) + ')'
    return 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', [
        f'{data}.data_root={root}/coco/',
        f'{data}.metainfo.classes={classes}',
        f'{data}.pipeline.2.scale=(96,96)',
        'model.backbone.init_cfg=None',
        'model.backbone.depth=50',
        'val_dataloader=None',
        'val_cfg=None',
        'val_evaluator=None',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=2',
    ]


def write(file, size, *, colours=255, dtype=np.uint8):
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(file)))
    cv2.imwrite(str(file), rng.integers(0, colours, size, dtype=dtype))


def mmseg_job(root):
    for number in range(2):
        write(root / 'images' / 'training' / f'{number}_training.png', (64, 64, 3))
        write(root / 'annotations' / 'training' / f'{number}_training_manual1.png', (64, 64), colours=2)
    return 'unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py', [
        f'train_dataloader.dataset.dataset.data_root={root}',
        'train_dataloader.dataset.times=1',
        'train_dataloader.dataset.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader=None',
        'val_cfg=None',
        'val_evaluator=None',
        'train_cfg.max_iters=2',
        'default_hooks.checkpoint.interval=2',
        'train_dataloader.batch_size=2',
        # Pairs of 4 images; SyncBN, the config's own, needs more than one process or becomes BN.
        'model.backbone.base_channels=8',
        'model.decode_head.in_channels=8',
        'model.decode_head.channels=8',
        'model.auxiliary_head.in_channels=16',
        'model.auxiliary_head.channels=8',
    ]


def mmpretrain_job(root):
    lines = []
    for number in range(4):
        write(root / 'train' / f'{number}.png', (64, 64, 3))
        lines.append(f'{number}.png {number % 2}')
    (root / 'meta').mkdir()
    (root / 'meta' / 'train.txt').write_text('\n'.join(lines))
    return 'resnet/resnet18_8xb32_in1k.py', [
        f'train_dataloader.dataset.data_root={root}',
        'train_dataloader.dataset.pipeline.1.scale=64',
        'val_dataloader=None',
        'val_cfg=None',
        'val_evaluator=None',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=2',
    ]


JOBS = {'mmdet': mmdet_job, 'mmseg': mmseg_job, 'mmpretrain': mmpretrain_job}


def train(toolbox, tmp_path, turn_on, *options):
    spec = importlib.util.find_spec(toolbox)
    if spec is None or spec.origin is None:
        pytest.skip(f'{toolbox} is not installed')
    mim = Path(spec.origin).parent / '.mim'
    config, overrides = JOBS[toolbox](tmp_path / 'data')
    command = [sys.executable, str(mim / 'tools' / 'train.py'), str(mim / 'configs' / config)]
    command += ['--work-dir', str(tmp_path / 'work'), *options, '--cfg-options', *overrides]
    command += ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    command += ['default_hooks.logger.interval=1', *turn_on]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO)}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize('toolbox', JOBS)
def test_two_options_turn_it_on(toolbox, tmp_path):
    run = train(toolbox, tmp_path, TURN_ON)
    text = run.stdout + run.stderr
    assert run.returncode == 0, text[-3000:]
    assert 'Weight rollback (OLOR) of' in text
    assert 'rollback/discrepancy' in text
    checkpoint = next((tmp_path / 'work').glob('*_[12].pth'))
    saved = torch.load(checkpoint, map_location='cpu', weights_only=False)
    states = saved['optimizer']['state'].values()
    anchored = [s for s in states if ANCHOR_KEY in s]
    assert 10 < len(anchored) < len(saved['state_dict'])
    assert all(name.startswith('backbone.') for name in saved['optimizer']['rollback']['names'])


@pytest.mark.parametrize('toolbox', JOBS)
def test_amp_keeps_it(toolbox, tmp_path):
    run = train(toolbox, tmp_path, TURN_ON, '--amp')
    text = run.stdout + run.stderr
    if torch.cuda.is_available():
        assert run.returncode == 0, text[-3000:]
        assert 'Weight rollback (OLOR) of' in text
        return
    # MMEngine's own check, reached through the class with rollback: without an accelerator there is no --amp.
    assert run.returncode != 0
    assert 'only available training on gpu' in text
    assert 'RollbackMixin' in text or os.path.join('engine', 'wrappers.py') in text


@pytest.mark.parametrize('toolbox', JOBS)
def test_a_typo_is_said(toolbox, tmp_path):
    run = train(toolbox, tmp_path, [TURN_ON[0], 'optim_wrapper.rollback.max_levle=0.01'])
    assert run.returncode != 0
    assert 'optim_wrapper.rollback.max_levle=0.01 is not an option: did you mean max_level?' in run.stdout + run.stderr
