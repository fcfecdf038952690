"""What a page's reader has: a checkout, the toolboxes beside it, data in their places, weights that were downloaded."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import cv2
import numpy as np
import torch
from mmengine.config import Config

import olor_mm
from olor_mm.datasets import PACS
from olor_mm.engine.vit_checkpoints import plain_address, to_mmpretrain
from tests._data import make_coco
from tests.test_datasets._make import make_domains

__all__ = ['REPO', 'make_camvid', 'make_checkout', 'make_data', 'make_weights']

REPO = Path(__file__).resolve().parents[2]
WIDTH, DEPTH, HEADS = 192, 12, 3  # DeiT-tiny's


def make_checkout(root: Path) -> Path:
    """A checkout of olor_mm without data, and the tools of mmdet, mmseg and mmpretrain beside it; returns the first."""
    checkout = root / 'olor_mm'
    checkout.mkdir(parents=True)
    for name in ('configs', 'olor_mm', 'tools'):
        (checkout / name).symlink_to(REPO / name)
    for package, name in (('mmdet', 'mmdetection'), ('mmseg', 'mmsegmentation'), ('mmpretrain', 'mmpretrain')):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        (root / name).mkdir()
        (root / name / 'tools').symlink_to(Path(spec.origin).parent / '.mim' / 'tools')
    return checkout


def make_data(page: str, data: Path) -> None:
    """The data sets that a page names, in its layouts."""
    {'detection': _detection, 'segmentation': _segmentation, 'classification': _classification}[page](data)


def _detection(data: Path) -> None:
    from mmdet.datasets import CocoDataset

    make_coco(data / 'shapes', train=4, val=2)
    make_coco(data / 'coco', train=4, val=2)
    names = CocoDataset.METAINFO['classes']
    for file in (data / 'coco' / 'annotations').iterdir():
        content = json.loads(file.read_text())
        content['categories'] = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
        file.write_text(json.dumps(content))


def _segmentation(data: Path) -> None:
    for split in ('training', 'validation'):
        for number in range(2):
            name = f'ADE_{split[:-3]}_{number + 1:08d}'
            _scene(data / 'ade' / 'ADEChallengeData2016', split, name, labels=151)
    make_camvid(data / 'camvid')


def make_camvid(root: Path) -> None:
    """Two images in each part of CamVid, with all of its 11 classes and 11 for what is void."""
    for split in ('train', 'val'):
        for number in range(2):
            _scene(root, split, f'0001TP_{number:06d}', labels=12)


def _scene(root: Path, split: str, name: str, labels: int) -> None:
    rng = np.random.default_rng(len(name))
    for kind, suffix, size, values in (('images', 'jpg', (96, 128, 3), 256), ('annotations', 'png', (96, 128), labels)):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{name}.{suffix}'), rng.integers(0, values, size, dtype=np.uint8))


def _classification(data: Path) -> None:
    make_domains(data / 'pacs', PACS, per_class=5)
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            folder = data / 'pets' / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                cv2.imwrite(str(folder / f'{number}.jpg'), np.full((64, 64, 3), 40 * number, np.uint8))


def make_weights(page: str, cache: Path, folder: Path) -> None:
    """Small networks under the names of the published files, where a download leaves them and where a page has them.

    Args:
        page: The page.
        cache: torch's folder of downloads.
        folder: Where the files of ``--pretrained`` lie.
    """
    cache.mkdir(parents=True)
    vit, convnext = _vit(), _convnext()
    torch.save(convnext, folder / 'convnext-b.pth')
    torch.save(vit, folder / 'vit-b.pth')
    published = {
        'olor_maskrcnn_convnext': convnext,
        'olor_upernet_vit': vit,
        'olor_vit-base-p16_8xb16_pacs': vit,
        'olor_convnext-base_8xb16_pacs': convnext,
        'olor_vit-base-p16_openclip-laion2b-pre_8xb16_pacs': _open_clip(vit),
        'olor_vit-base-p16_mae-pre_8xb16_pacs': {f'backbone.{k}': v for k, v in to_mmpretrain(vit).items()},
    }
    for config, state in published.items():
        model: Mapping[str, Any] = Config.fromfile(olor_mm.cfg(config)).model
        address = plain_address(model['backbone']['init_cfg']['checkpoint'])
        torch.save(state, cache / PurePosixPath(urlparse(address).path).name)


def _convnext() -> dict[str, torch.Tensor]:
    from mmpretrain.models import ConvNeXt

    state = ConvNeXt('atto').state_dict()
    # Biases of 0 leave the norms nothing to divide by where an image is padded.
    return {f'backbone.{name}': value + 0.01 * torch.randn(value.shape) for name, value in state.items()}


def _vit() -> dict[str, torch.Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=21843).state_dict()


def _open_clip(vit: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in OpenCLIP's names and shapes, with the norm before the blocks that it has."""
    names = {
        'cls_token': 'class_embedding',
        'pos_embed': 'positional_embedding',
        'patch_embed.proj': 'conv1',
        'blocks': 'transformer.resblocks',
        'norm1': 'ln_1',
        'norm2': 'ln_2',
        'norm': 'ln_post',
        'attn.qkv.': 'attn.in_proj_',
        'attn.proj': 'attn.out_proj',
        'mlp.fc1': 'mlp.c_fc',
        'mlp.fc2': 'mlp.c_proj',
    }
    state = {'ln_pre.weight': torch.ones(WIDTH), 'ln_pre.bias': torch.zeros(WIDTH)}
    for name, value in vit.items():
        # Its patch embedding has no bias, and it keeps these two flat.
        if name == 'patch_embed.proj.bias' or name.startswith('head'):
            continue
        flat = value.reshape(-1, WIDTH).squeeze(0) if name in ('cls_token', 'pos_embed') else value
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name] = flat
    return {f'visual.{name}': value for name, value in state.items()}
