"""Generated data for each main config, and options that make it small enough for a step on a CPU."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests._data import CLASSES

Options = dict[str, Any]

#: What any of the runs needs for one step: the first learning rate is half of that which the schedule comes to, and the
#: level is such that its effect is above what float32 rounds away.
MAX_LEVEL = 0.5
ONE_STEP: Options = {
    'param_scheduler': [dict(type='ConstantLR', factor=0.5, by_epoch=False, begin=0, end=100)],
    'optim_wrapper.rollback.max_level': MAX_LEVEL,
}
LOADER: Options = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}


def write_image(file: Path, size: tuple[int, ...], colours: int = 255) -> None:
    """Noise of ``size`` with values below ``colours``, another in every file of a data set."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32('/'.join(file.parts[-3:]).encode()))
    cv2.imwrite(str(file), rng.integers(0, colours, size, dtype=np.uint8))


def make_scenes(root: Path, classes: int) -> Path:
    """Two training images of 64x64 in ADE20K's folders, their masks with ``classes`` values; returns ``root``."""
    for name in ('one', 'two'):
        write_image(root / 'images' / 'training' / f'{name}.jpg', (64, 64, 3))
        write_image(root / 'annotations' / 'training' / f'{name}.png', (64, 64), classes)
    return root


def make_domains(root: Path) -> Path:
    """PACS in small: its domains and classes with two images each; returns ``root``."""
    for domain in ('art_painting', 'cartoon', 'photo', 'sketch'):
        for number, name in enumerate(('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person')):
            for image in range(2):
                write_image(root / domain / name / f'pic_{number}{image}.jpg', (32, 32, 3))
    return root


def detection(data: Path, convnext: bool = True) -> Options:
    """For olor_maskrcnn_convnext.py and what inherits it.

    Args:
        data: What ``tests._data.make_coco`` wrote, with two images to train with.
        convnext: Whether the backbone is the config's own, to be made small. Defaults to True.
    """
    head = 'model.roi_head.'
    loader = 'train_dataloader.'
    channels = {
        'model.backbone.arch': 'atto',
        # Its own, 1e-6, leaves the blocks next to no gradient before they have trained for a while.
        'model.backbone.layer_scale_init_value': 1.0,
        'model.backbone.init_cfg': None,
        'model.neck.in_channels': [40, 80, 160, 320],
    }
    return {
        **LOADER,
        **(channels if convnext else {}),
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        f'{head}bbox_roi_extractor.out_channels': 16,
        f'{head}mask_roi_extractor.out_channels': 16,
        f'{head}bbox_head.in_channels': 16,
        f'{head}bbox_head.fc_out_channels': 32,
        f'{head}mask_head.num_convs': 1,
        f'{head}mask_head.in_channels': 16,
        f'{head}mask_head.conv_out_channels': 16,
        'model.train_cfg.rpn_proposal.nms_pre': 50,
        'model.train_cfg.rpn_proposal.max_per_img': 20,
        'model.train_cfg.rcnn.sampler.num': 16,
        f'{loader}batch_size': 2,
        f'{loader}dataset.data_root': f'{data}/',
        f'{loader}dataset.metainfo': dict(classes=CLASSES),
        f'{loader}dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(128, 96), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
        'train_cfg.max_epochs': 1,
    }


def segmentation(data: Path, own_width: bool = True) -> Options:
    """For olor_upernet_vit.py and what inherits it.

    Args:
        data: What :func:`make_scenes` wrote.
        own_width: Whether the widths are the config's own, to be made small. Defaults to True.
    """
    widths = {
        'model.backbone.embed_dims': 32,
        'model.backbone.num_heads': 2,
        'model.backbone.init_cfg': None,
        'model.neck.in_channels': [32] * 4,
        'model.neck.out_channels': 32,
        'model.decode_head.in_channels': [32] * 4,
        'model.decode_head.channels': 8,
        'model.auxiliary_head.in_channels': 32,
        'model.auxiliary_head.channels': 8,
    }
    return {
        **LOADER,
        **(widths if own_width else {}),
        'model.backbone.img_size': (64, 64),
        'model.data_preprocessor.size': (64, 64),
        'train_dataloader.dataset.data_root': str(data),
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        'train_cfg.max_iters': 1,
    }


def classification(data: Path) -> Options:
    """For the configs of PACS and what inherits them: images of 32x32 in one batch.

    Args:
        data: What :func:`make_domains` wrote, or a folder of another data set.
    """
    return {
        **LOADER,
        'train_dataloader.batch_size': 64,
        'train_dataloader.dataset.data_root': str(data),
        'train_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        'train_cfg.max_epochs': 1,
    }


def vit_pacs(data: Path) -> Options:
    """For olor_vit-base-p16_8xb16_pacs.py: :func:`classification`, and a small ViT."""
    arch = dict(_delete_=True, embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
    return {
        **classification(data),
        'train_dataloader.dataset.num_folds': 2,
        'model.backbone.arch': arch,
        'model.backbone.img_size': 32,
        'model.backbone.init_cfg': None,
        'model.head.in_channels': 32,
    }
