"""Configs that inherit ours and change classes, schedule and backbone: one step each, rollback active."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler import CosineAnnealingLR, PolyLR
from torch import nn

from tests._data import CLASSES, make_coco

from ._docs import block
from ._small import Options, classification, detection, make_domains, make_scenes, segmentation, vit_pacs, write_image
from ._steps import Step, check_step, load, one_step


@dataclass(frozen=True)
class Downstream:
    """A block of the page.

    Attributes:
        options: How to make it small; gets the folder for the data.
        backbone: Builds what stands for the published backbone; its weights are what theta_0 must be.
        saved_as: Prefix of the names in the file, and what the config says before its path.
        head: Name of a parameter with a value for each class, and how many classes there are.
        schedule: What the config's schedule is built of.
        optimizer: The config's optimizer and its learning rate.
        rollback: The config's max_level and power.
    """

    options: Callable[[Path], Options]
    backbone: Callable[[], nn.Module]
    saved_as: tuple[str, str]
    head: tuple[str, int]
    schedule: type[_ParamScheduler]
    optimizer: tuple[type[torch.optim.Optimizer], float]
    rollback: tuple[float, float]


def shapes(root: Path) -> Options:
    return detection(make_coco(root, train=2, val=1), convnext=False)


def streets(root: Path) -> Options:
    return segmentation(make_scenes(root, classes=3), own_width=False)


def pets(root: Path) -> Options:
    for name in ('cat', 'dog'):
        for number in range(2):
            write_image(root / 'train' / name / f'{number}.jpg', (64, 64, 3))
    return classification(root)


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18()


def deit_tiny() -> nn.Module:
    from mmpretrain.models import VisionTransformer

    return VisionTransformer('deit-tiny', img_size=64)


def mobilenet_v2() -> nn.Module:
    from mmpretrain.models import MobileNetV2

    return MobileNetV2()


DOWNSTREAM = {
    'detector': Downstream(
        options=shapes,
        backbone=resnet18,
        saved_as=('', ''),
        head=('roi_head.mask_head.conv_logits.weight', len(CLASSES)),
        schedule=CosineAnnealingLR,
        optimizer=(torch.optim.AdamW, 1e-3),
        rollback=(0.1, 1),
    ),
    'segmentor': Downstream(
        options=streets,
        backbone=deit_tiny,
        saved_as=('backbone.', 'vit2mmseg:'),
        head=('decode_head.conv_seg.weight', 3),
        schedule=PolyLR,
        optimizer=(torch.optim.Adam, 1e-3),
        rollback=(0.1, 2),
    ),
    'classifier': Downstream(
        options=pets,
        backbone=mobilenet_v2,
        saved_as=('backbone.', ''),
        head=('head.fc.weight', 2),
        schedule=CosineAnnealingLR,
        optimizer=(torch.optim.SGD, 0.05),
        rollback=(0.5, 1),
    ),
}


def theta_0_of(step: Step, work_dir: Path) -> dict[str, tuple[int, int]]:
    """File to how many of the tensors that are pulled back came from it, and how many there are: what the log says."""
    log = next(work_dir.rglob('*.log')).read_text()
    found = re.findall(r'theta_0: (\d+) of (\d+) tensors from (\S+)', log)
    return {file: (int(some), int(of)) for some, of, file in found}


@pytest.mark.parametrize('name', DOWNSTREAM)
def test_other_classes_schedule_and_backbone(name: str, tmp_path: Path) -> None:
    case = DOWNSTREAM[name]
    prefix, scheme = case.saved_as
    state = {prefix + key: value for key, value in case.backbone().state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'published.pth')
    (tmp_path / 'user.py').write_text(block(name))
    checkpoint = {'model.backbone.init_cfg.checkpoint': f'{scheme}{tmp_path / "published.pth"}'}
    step = one_step(load(tmp_path / 'user.py', {**case.options(tmp_path / 'data'), **checkpoint}), tmp_path / 'work')

    optimizer, schedulers = step.runner.optim_wrapper.optimizer, step.runner.param_schedulers
    assert (type(optimizer), optimizer.param_groups[0]['initial_lr']) == case.optimizer
    assert [type(scheduler) for scheduler in schedulers] == [case.schedule]
    assert len(step.names[case.head[0]]) == case.head[1]

    levels = check_step(step, *case.rollback)
    assert {parameter.split('.')[0] for parameter in levels} == {'backbone'}
    ((some, of),) = theta_0_of(step, tmp_path / 'work').values()
    assert some == of >= len(levels)


def test_the_frozen_stage_is_neither_trained_nor_anchored(tmp_path: Path) -> None:
    (tmp_path / 'user.py').write_text(block('detector'))
    options = {**shapes(tmp_path / 'data'), 'model.backbone.init_cfg': None}
    step = one_step(load(tmp_path / 'user.py', options), tmp_path / 'work')
    frozen = [name for name in step.names if name.startswith(('backbone.conv1', 'backbone.bn1', 'backbone.layer1'))]
    assert frozen
    assert not set(frozen) & step.anchored.keys()
    assert all(torch.equal(step.names[name], step.before[step.names[name]]) for name in frozen)
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    assert re.search(r'backbone\.layer1\.0 .* frozen', log)


SWIN = dict(
    _delete_=True,
    type='mmdet.SwinTransformer',
    embed_dims=24,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    window_size=4,
)


def test_a_detector_with_a_swin(tmp_path: Path) -> None:
    (tmp_path / 'user.py').write_text(block('cfg'))
    options = {
        **shapes(tmp_path / 'data'),
        'model.backbone': SWIN,
        'model.neck.in_channels': [24, 48, 96, 192],
        'param_scheduler': None,
        'optim_wrapper.rollback.max_level': 0.5,
    }
    step = one_step(load(tmp_path / 'user.py', options), tmp_path / 'work')
    levels = check_step(step, 0.5, 2)
    assert levels['backbone.patch_embed.projection.weight'] == 0.5
    assert levels['backbone.stages.0.blocks.0.ffn.layers.1.weight'] > levels['backbone.stages.2.blocks.1.norm1.weight']


def test_real_weights_for_another_vit(shared_data: Path, tmp_path: Path) -> None:
    """DeiT-tiny, really pre-trained, in place of ViT-B; its position embeddings are resized to the small images."""
    weights = shared_data / 'weights' / 'deit_tiny_in1k_mmpretrain.pth'
    (tmp_path / 'user.py').write_text(block('cfg').replace('olor_maskrcnn_convnext', 'olor_vit-base-p16_8xb16_pacs'))
    options = {
        **vit_pacs(make_domains(tmp_path / 'data')),
        'model.backbone.arch': 'deit-tiny',
        'model.head.in_channels': 192,
        'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=str(weights), prefix='backbone.'),
        'param_scheduler': None,
        'optim_wrapper.optimizer.lr': 1e-3,
    }
    step = one_step(load(tmp_path / 'user.py', options), tmp_path / 'work')
    levels = check_step(step, 0.1, 4)
    state = torch.load(weights, map_location='cpu', weights_only=True)
    published = state.get('state_dict', state)
    same = [name for name, theta_0 in step.anchored.items() if torch.equal(theta_0, published[name])]
    assert set(levels) - set(same) == {'backbone.pos_embed'}
