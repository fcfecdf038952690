"""The shipped configs: they load everywhere, differ where they should, and follow the toolboxes' own recipes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

import olor_mm

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SHIPPED = sorted(path.name for path in CONFIGS.glob('*.py'))


def _flat(node: Any, where: str = '') -> dict[str, Any]:
    if isinstance(node, dict):
        return {key: leaf for name in node for key, leaf in _flat(node[name], f'{where}.{name}'.lstrip('.')).items()}
    if isinstance(node, (list, tuple)):
        return {key: leaf for i, item in enumerate(node) for key, leaf in _flat(item, f'{where}.{i}').items()}
    return {where: node}


def _difference(one: dict, other: dict) -> dict[str, tuple[Any, Any]]:
    left, right = _flat(one), _flat(other)
    return {
        key: (left.get(key), right.get(key))
        for key in {**left, **right}
        if key not in left or key not in right or left[key] != right[key]
    }


def _load(name: str) -> dict:
    return Config.fromfile(olor_mm.cfg(name)).to_dict()


def _mim(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / '.mim'
    if not folder.is_dir():
        pytest.skip(f'this installation of {package} carries no configs')
    return folder


@pytest.mark.parametrize('name', SHIPPED)
def test_loads_as_itself_and_through_both_ways_to_inherit(name: str, tmp_path: Path) -> None:
    direct = Config.fromfile(CONFIGS / name).to_dict()
    assert direct['optim_wrapper']['optimizer']
    # A relative path, as a user's config beside a checkout would have it.
    (tmp_path / 'configs').symlink_to(CONFIGS)
    for number, base in enumerate((f"'./configs/{name}'", f"__import__('olor_mm').cfg({name!r})")):
        file = tmp_path / f'user_{number}.py'
        file.write_text(f"_base_ = [{base}]\nwork_dir = 'here'\n")
        assert _difference(Config.fromfile(file).to_dict(), direct) == {'work_dir': ('here', None)}


def test_olor_and_baseline_differ_in_olor_alone() -> None:
    assert _difference(_load('olor_maskrcnn_convnext.py'), _load('baseline_maskrcnn_convnext.py')) == {
        'optim_wrapper.constructor': ('olor_mm.OLOROptimWrapperConstructor', None),
        'optim_wrapper.rollback.max_level': (1e-2, None),
        'optim_wrapper.rollback.min_level': (0.0, None),
        'optim_wrapper.rollback.power': (2, None),
    }


def test_baseline_is_mmdets_recipe() -> None:
    base = _mim('mmdet') / 'configs' / '_base_'
    files = [
        'models/mask-rcnn_r50_fpn.py',
        'datasets/coco_instance.py',
        'schedules/schedule_1x.py',
        'default_runtime.py',
    ]
    theirs: dict[str, Any] = {}
    for file in files:
        theirs.update(Config.fromfile(base / file).to_dict())
    ours = _load('baseline_maskrcnn_convnext.py')
    difference = _difference(ours, theirs)
    assert {key for key in difference if not key.startswith('model.backbone.')} == {
        *(f'model.neck.in_channels.{level}' for level in range(4)),
        *(f'{split}_dataloader.persistent_workers' for split in ('train', 'val', 'test')),
        'checkpoint_file',
        'custom_hooks.0.type',
        'custom_imports.allow_failed_imports',
        'custom_imports.imports.0',
        'custom_imports.imports.1',
        'default_hooks.checkpoint.type',
        'randomness.seed',
    }


def test_weights_are_mmpretrains_convnext_b_in21k() -> None:
    from mmengine.fileio import load

    models = load(_mim('mmpretrain') / 'configs' / 'convnext' / 'metafile.yml')['Models']
    (published,) = [model['Weights'] for model in models if model['Name'] == 'convnext-base_3rdparty_in21k']
    backbone = _load('olor_maskrcnn_convnext.py')['model']['backbone']
    # The fork has the same files at a place of its own.
    published = published.replace('https://mmassets.onedl.ai/', 'https://download.openmmlab.com/')
    assert backbone['init_cfg'] == dict(type='Pretrained', checkpoint=published, prefix='backbone.')


def test_new_style_preset_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / 'user.py'
    file.write_text(
        'from mmengine.config import read_base\n\n'
        'with read_base():\n'
        '    from olor_mm.configs.maskrcnn_convnext import *\n\n'
        "model.update(dict(backbone=dict(arch='tiny')))\n"
        'train_dataloader.batch_size = 4\n'
        "optim_wrapper['rollback']['max_level'] = 0.5\n"
    )
    assert _difference(Config.fromfile(file).to_dict(), _load('olor_maskrcnn_convnext.py')) == {
        'model.backbone.arch': ('tiny', 'base'),
        'train_dataloader.batch_size': (4, 2),
        'optim_wrapper.rollback.max_level': (0.5, 1e-2),
    }


def test_full_size_model_builds_and_its_maps_fit_the_neck() -> None:
    import torch
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    from olor_mm.tooling.settings import register_scope

    cfg = Config.fromfile(olor_mm.cfg('olor_maskrcnn_convnext.py'))
    register_scope(cfg)
    # The scope of another test's Runner may still be the current one.
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone, neck = MODELS.build(cfg.model.backbone), MODELS.build(cfg.model.neck)
    with torch.no_grad():
        maps = neck(backbone(torch.zeros(1, 3, 64, 64)))
    assert [tuple(level.shape[1:]) for level in maps] == [(256, size, size) for size in (16, 8, 4, 2, 1)]
