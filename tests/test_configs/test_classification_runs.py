"""Classification configs through ``tools/train.py``'s own code: one step of a tiny model on data in their real format.

CIFAR-100 is missing: mmpretrain reads the published files alone, which it knows by their checksums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mat4py
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import olor_mm
from olor_mm.datasets import PACS, OfficeHome
from olor_mm.engine import load_from_local
from olor_mm.rollback import ANCHOR_KEY
from olor_mm.tooling import train
from tests.test_configs.paper_table import CONVNEXT, EXPERIMENTS, VIT
from tests.test_datasets._make import make_domains, make_ip102, make_places, make_svhn, write

pytestmark = pytest.mark.slow

#: Model -> the config's overrides that make it small, and the channels that its head gets.
TINY = {
    VIT: (
        'arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)',
        'frozen_stages=2',
        32,
    ),
    CONVNEXT: ("arch='atto'", 'frozen_stages=4', 320),
}
SMALL = """
_base_ = [__import__('olor_mm').cfg('classification/{name}.py')]

model = dict(backbone=dict({backbone}, init_cfg=None), head=dict(in_channels={channels}))
train_dataloader = dict(num_workers=0, dataset=dict(indices={images}))
val_dataloader = dict(num_workers=0, dataset=dict(indices={images}))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
"""
IMAGES = 4


def make_cub(root: Path) -> None:
    """CUB-200-2011's three lists, images below ``images``; every other image is for training."""
    paths = [f'{label:03d}.Bird/Bird_{label:04d}_{part}.jpg' for label in range(1, 201) for part in (0, 1)]
    write(root / 'images', paths)
    labels = [int(path[:3]) for path in paths]
    columns = {'images': paths, 'image_class_labels': labels, 'train_test_split': [path[-5] for path in paths]}
    for name, column in columns.items():
        (root / f'{name}.txt').write_text(''.join(f'{number} {value}\n' for number, value in enumerate(column, 1)))


def make_cars(root: Path) -> None:
    """Stanford Cars in one folder, with its annotations for MATLAB."""
    labels = list(range(1, 197)) * 2
    paths = [f'car_ims/{number:06d}.jpg' for number in range(1, len(labels) + 1)]
    write(root, paths)
    test = [int(number >= len(labels) // 2) for number in range(len(labels))]
    annotations = {'relative_im_path': paths, 'class': labels, 'test': test}
    mat4py.savemat(str(root / 'cars_annos.mat'), {'annotations': annotations})


MAKE: dict[str, Callable[[Path], object]] = {
    'svhn': lambda root: make_svhn(root, {'train': 10, 'test': 10}),
    'cub': make_cub,
    'stanford-cars': make_cars,
    'places-lt': make_places,
    'ip102': make_ip102,
    'office-home': lambda root: make_domains(root, OfficeHome, per_class=5),
    'pacs': lambda root: make_domains(root, PACS, per_class=5),
}


@pytest.mark.parametrize(
    'name',
    [
        'olor_vit-base-p16_openclip-laion2b-pre_8xb16_pacs',
        'linear_vit-base-p16_8xb64_svhn',
        'full_vit-base-p16_8xb16_cub',
        'olor_vit-base-p16_8xb16_places-lt',
        'olor_convnext-base_8xb16_stanford-cars',
        'linear_convnext-base_8xb64_office-home',
        'full_convnext-base_8xb16_ip102',
    ],
)
def test_trains_a_step_validates_and_saves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a Runner leaves behind in the process goes with the test.
    monkeypatch.setenv('LOCAL_RANK', '0')
    experiment = EXPERIMENTS[name]
    backbone, frozen, channels = TINY[experiment.model]
    if experiment.method == 'linear':
        backbone = f'{backbone}, {frozen}'
    # A name of its own: MMEngine's global objects are named by config and second, and two tests fit into one.
    config = tmp_path / f'{name}.py'
    config.write_text(SMALL.format(name=name, backbone=backbone, channels=channels, images=IMAGES))
    MAKE[experiment.data](tmp_path / 'data')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        train([str(config), '--data-root', str(tmp_path / 'data'), '--work-dir', str(tmp_path / 'run')])

    saved = load_from_local(str(tmp_path / 'run' / 'epoch_1.pth'), 'cpu')
    assert saved['meta']['iter'] == math.ceil(IMAGES / Config.fromfile(config).train_dataloader.batch_size)
    assert list((tmp_path / 'run').glob('best_accuracy_top1_epoch_1.pth'))
    states = saved['optimizer']['state'].values()
    # What has no gradient gets no state: linear probing steps on the head's weight and bias alone.
    assert len(states) == (2 if experiment.method == 'linear' else len(saved['state_dict']))
    anchored = [state for state in states if ANCHOR_KEY in state]
    assert bool(anchored) == (experiment.method == 'olor')
    assert all(torch.isfinite(value).all() for value in saved['state_dict'].values())


def test_model_is_timms_where_its_weights_are(tmp_path: Path) -> None:
    """The pre-trained ViTs give the features that timm's give: norms, activation and pooling as in pre-training."""
    import timm
    from mmpretrain.registry import MODELS

    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name, original in {
        'olor_vit-base-p16_8xb16_pacs': 'vit_base_patch16_224.orig_in21k',
        'olor_vit-base-p16_openclip-laion2b-pre_8xb16_pacs': 'vit_base_patch16_clip_224.laion2b',
        'olor_vit-base-p16_mae-pre_8xb16_pacs': 'vit_base_patch16_224.mae',
    }.items():
        theirs = timm.create_model(original, pretrained=False, num_classes=0, depth=2).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.02)
        file = tmp_path / f'{original}.pth'
        torch.save(theirs.state_dict(), file)
        cfg = Config.fromfile(olor_mm.cfg(f'classification/{name}.py')).model.backbone
        cfg.arch = dict(embed_dims=768, num_layers=2, num_heads=12, feedforward_channels=3072)
        cfg.init_cfg = dict(type='Pretrained', checkpoint=f'vit2mmpretrain:{file}')
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            ours = MODELS.build(cfg)
            ours.eval()  # which returns nothing there
            ours.init_weights()
        with torch.no_grad():
            torch.testing.assert_close(ours(image)[-1], theirs(image), rtol=1e-4, atol=1e-4)
        # Too small a difference for the features to show.
        norms = [{m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} for model in (ours, theirs)]
        assert norms[0] == norms[1], name
