"""The same tools on a config of mmseg and of mmpretrain: data moved, backbone replaced, OLOR on, resumed, tested."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.test_tools._small import tool

pytestmark = pytest.mark.slow

RUNTIME = """
custom_imports = dict(imports=['olor_mm', 'mmpretrain.models'], allow_failed_imports=False)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=0.01),
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
"""

PRETRAIN = """
default_scope = 'mmpretrain'
backbone = dict(type='ConvNeXt', arch='atto', init_cfg=dict(type='Pretrained', checkpoint='gone.pth', prefix='x'))
head = dict(type='LinearClsHead', num_classes=2, in_channels=320, topk=(1,), loss=dict(type='CrossEntropyLoss'))
model = dict(type='ImageClassifier', backbone=backbone, head=head)
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='data/things', pipeline=pipeline)
sampler = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=sampler, dataset=dict(dataset, data_prefix='train')
)
val_dataloader = dict(batch_size=4, num_workers=0, sampler=sampler, dataset=dict(dataset, data_prefix='val'))
val_evaluator = dict(type='Accuracy', topk=(1,))
"""

SEG = """
default_scope = 'mmseg'
backbone = dict(
    type='mmpretrain.ConvNeXt', arch='atto', out_indices=[3], gap_before_final_norm=False,
    init_cfg=dict(type='Pretrained', checkpoint='gone.pth', prefix='x'),
)
head = dict(
    type='FCNHead', in_channels=320, in_index=0, channels=8, num_convs=1, num_classes=2, norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss'),
)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, size=(64, 64), seg_pad_val=255
)
model = dict(
    type='EncoderDecoder', data_preprocessor=data_preprocessor, backbone=backbone, decode_head=head,
    train_cfg=dict(), test_cfg=dict(mode='whole'),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='data/scenes', pipeline=pipeline,
    metainfo=dict(classes=('no', 'yes'), palette=[[0, 0, 0], [255, 255, 255]]),
)
sampler = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=sampler,
    dataset=dict(type='RepeatDataset', times=2, dataset=dict(
        dataset, data_prefix=dict(img_path='train', seg_map_path='train_masks')
    )),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=sampler,
    dataset=dict(dataset, data_prefix=dict(img_path='val', seg_map_path='val_masks')),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
"""


def _images(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        cv2.imwrite(str(folder / f'{number}.jpg'), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))


def _classes(root: Path) -> None:
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            _images(root / split / name)


def _scenes(root: Path) -> None:
    for split in ('train', 'val'):
        _images(root / split)
        (root / f'{split}_masks').mkdir()
        for number in range(4):
            mask = np.tile(np.arange(64) // 32, (64, 1)).astype(np.uint8)
            cv2.imwrite(str(root / f'{split}_masks' / f'{number}.png'), mask)


@pytest.mark.parametrize(
    ('text', 'make', 'metric'),
    [(PRETRAIN, _classes, 'accuracy/top1'), (SEG, _scenes, 'mIoU')],
    ids=['mmpretrain', 'mmseg'],
)
def test_train_resume_and_test(tmp_path: Path, text: str, make: Callable[[Path], None], metric: str) -> None:
    from mmpretrain.models import ConvNeXt

    (tmp_path / 'user.py').write_text(text + RUNTIME)
    make(tmp_path / 'my data')
    torch.manual_seed(0)
    torch.save({'state_dict': ConvNeXt('atto', out_indices=[3]).state_dict()}, tmp_path / 'w.pth')
    common = ['user.py', '--data-root', 'my data', '--work-dir', 'my run']

    first = tool('train.py', *common, '--pretrained', 'w.pth', '--resume', '--no-validate', cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    log = first.stdout + first.stderr
    assert 'no checkpoint in my run yet, starting from the beginning' in log
    found = re.search(r'--pretrained: (\d+) of (\d+) tensors of model.backbone are in w.pth', log)
    assert found
    assert found[1] == found[2]
    assert 'Epoch(val)' not in log

    # All weights are in the checkpoint: neither the file of --pretrained nor the one that the config names is needed.
    (tmp_path / 'w.pth').unlink()
    again = [*common, '--resume', 'auto', '--cfg-options', 'train_cfg.max_epochs=2']
    second = tool('train.py', *again, cwd=tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    log = second.stdout + second.stderr
    assert 'resumed epoch: 1' in log
    assert f'{metric}: ' in log

    # A test takes everything from the checkpoint: it needs no pre-trained file, though the config names one.
    tested = tool(
        *('test.py', common[0], 'my run/epoch_2.pth', *common[1:], '--out', 'x.json', '--out-item', 'metrics'),
        cwd=tmp_path,
    )
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert metric in (tmp_path / 'x.json').read_text()
