"""What the tests of the tools share: a Mask R-CNN small enough for a CPU, and a way to run a tool."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests._data import CLASSES

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / 'tools'
TIMEOUT = 600  # seconds

SMALL = """
_base_ = [__import__('olor_mm').cfg({base!r})]

model = dict(
    backbone=dict(arch='atto', drop_path_rate=0.1, init_cfg=None),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=32)),
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=10)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline, indices={images}))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline, indices={val_images}))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2)
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
    dict(type='MultiStepLR', begin=0, end=2, by_epoch=True, milestones=[1], gamma=0.1),
]
default_hooks = dict(logger=dict(interval=1))
"""

SHAPES = f"""
model = dict(roi_head=dict(bbox_head=dict(num_classes={len(CLASSES)}), mask_head=dict(num_classes={len(CLASSES)})))
train_dataloader = dict(dataset=dict(metainfo=dict(classes={CLASSES})))
val_dataloader = dict(dataset=dict(metainfo=dict(classes={CLASSES})))
test_dataloader = val_dataloader
"""


def write_small(folder: Path, olor: bool = True, shapes: bool = True, images: int = 8, extra: str = '') -> Path:
    """Write a config that inherits the main job's and makes it small.

    Args:
        folder: Where it goes.
        olor: Whether it inherits the OLOR config or the baseline. Defaults to True.
        shapes: Whether it is for the generated shapes or for COCO's classes. Defaults to True.
        images: How many training images are used, and half as many to validate. Defaults to 8.
        extra: Python to add at the end. Defaults to ''.
    """
    name = 'olor' if olor else 'baseline'
    small = folder / '_base_small.py'
    small.write_text(SMALL.format(base=f'{name}_maskrcnn_convnext.py', images=images, val_images=images // 2))
    file = folder / f'small_{name}.py'
    file.write_text("_base_ = ['_base_small.py']\n" + (SHAPES if shapes else '') + extra)
    return file


def run(
    *command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, on one thread, without what pytest has imported."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def tool(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run tools/<name> with this interpreter."""
    return run(sys.executable, TOOLS / name, *arguments, **options)  # type: ignore[arg-type]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with one thread and with the checkout to import from."""
    paths = [str(REPO), os.environ.get('PYTHONPATH', '')]
    path = os.pathsep.join(part for part in paths if part)
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path, 'PYTHON': sys.executable, **(extra or {})}
