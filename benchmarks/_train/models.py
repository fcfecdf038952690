"""The models of three shipped configs with random weights, and batches of random data for them."""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """A model and what it trains on.

    Attributes:
        config: Its file, below configs/.
        data: From size, number of images and device to what ``train_step`` takes.
        shrink: Makes the model in a config a tiny one.
        cpu: Height, width and number of images there.
        cuda: The same on a GPU: those of the config.
        small: The same of the tiny model.
    """

    config: str
    data: Callable[[tuple[int, int], int, str], dict[str, Any]]
    shrink: Callable[[Config], None]
    cpu: tuple[int, int, int]
    cuda: tuple[int, int, int]
    small: tuple[int, int, int]


def config_of(job: Job, small: bool, size: tuple[int, int] | None = None) -> Config:
    """The config without pre-trained weights."""
    cfg = Config.fromfile(REPO / 'configs' / job.config)
    cfg.model.backbone.init_cfg = None
    if size is not None and 'img_size' in cfg.model.backbone and cfg.default_scope == 'mmseg':
        cfg.model.backbone.img_size = size
        cfg.model.data_preprocessor.size = size
    if small:
        job.shrink(cfg)
    return cfg


def build_model(cfg: Config, device: str) -> nn.Module:
    """The model, in training mode."""
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).to(device).train()


def build_wrapper(model: nn.Module, cfg: Config, form: str | None) -> OptimWrapper:
    """The config's optimizer wrapper.

    Args:
        model: The model.
        cfg: The config.
        form: ``rollback.form``; None for no rollback, as in the baseline's config.
    """
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    if form is None:
        del wrapper['constructor'], wrapper['rollback']
    else:
        wrapper['rollback']['form'] = form
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(model, wrapper)


def _pictures(size: tuple[int, int], batch: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(batch)]


def _instances(size: tuple[int, int], batch: int, device: str) -> dict[str, Any]:
    """Ten random boxes and masks an image."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        corner = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.6, size[0] * 0.6])
        extent = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.3, size[0] * 0.3]) + 16
        boxes = torch.cat([corner, corner + extent], 1)
        masks = torch.zeros(10, *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo={'img_shape': size, 'ori_shape': size, 'batch_input_shape': size})
        labels = torch.randint(80, (10,), generator=generator).to(device)
        sample.gt_instances = InstanceData(bboxes=boxes.to(device), labels=labels)
        sample.gt_instances.masks = BitmapMasks(masks.numpy(), *size)
        samples.append(sample)
    return {'inputs': _pictures(size, batch, generator), 'data_samples': samples}


def _pixels(size: tuple[int, int], batch: int, device: str) -> dict[str, Any]:
    """A random class for each pixel."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        sample = SegDataSample(metainfo={'img_shape': size, 'ori_shape': size})
        sample.gt_sem_seg = PixelData(data=torch.randint(150, (1, *size), generator=generator).to(device))
        samples.append(sample)
    return {'inputs': _pictures(size, batch, generator), 'data_samples': samples}


def _labels(size: tuple[int, int], batch: int, device: str) -> dict[str, Any]:
    """A random class for each image."""
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(0)
    samples = [DataSample().set_gt_label(int(torch.randint(7, (), generator=generator))) for _ in range(batch)]
    return {'inputs': _pictures(size, batch, generator), 'data_samples': samples}


def _small_detector(cfg: Config) -> None:
    cfg.model.backbone.arch = 'atto'
    cfg.model.neck.in_channels = [40, 80, 160, 320]


def _small_segmentor(cfg: Config) -> None:
    cfg.model.backbone.update(embed_dims=32, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3))
    cfg.model.neck.update(in_channels=[32] * 4, out_channels=32)
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=16)
    cfg.model.auxiliary_head.update(in_channels=32, channels=16)


def _small_classifier(cfg: Config) -> None:
    arch = {'embed_dims': 32, 'num_layers': 4, 'num_heads': 2, 'feedforward_channels': 64}
    cfg.model.backbone.arch = arch
    cfg.model.head.in_channels = 32


JOBS = {
    'ViT-B classifier': Job(
        'classification/olor_vit-base-p16_8xb16_pacs.py',
        _labels,
        _small_classifier,
        (224, 224, 4),
        (224, 224, 16),
        (224, 224, 1),
    ),
    'Mask R-CNN, ConvNeXt-B': Job(
        'olor_maskrcnn_convnext.py', _instances, _small_detector, (224, 320, 1), (800, 1216, 2), (96, 128, 1)
    ),
    # Its pooling to one pixel needs two images for the statistics of batch norm.
    'UperNet, ViT-B': Job('olor_upernet_vit.py', _pixels, _small_segmentor, (192, 192, 2), (512, 512, 2), (64, 64, 2)),
}
