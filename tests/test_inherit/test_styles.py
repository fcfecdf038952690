"""The three ways to inherit a config of ours: each gives that config, and a run of it pulls the weights back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

import olor_mm
from tests._data import make_coco

from ._docs import block
from ._small import MAX_LEVEL, ONE_STEP, Options, detection, make_domains, make_scenes, segmentation, vit_pacs
from ._steps import check_step, load, one_step

REPO = Path(__file__).resolve().parents[2]
PRESETS = sorted(path for path in (REPO / 'olor_mm' / 'configs').glob('*.py') if path.stem != '__init__')
#: The config that the page writes of, as the three ways name it.
WRITTEN = 'olor_maskrcnn_convnext'
WAYS = ('relative', 'cfg', 'new-style')


def coco_job(root: Path) -> Options:
    return detection(make_coco(root, train=2, val=1))


def ade20k_job(root: Path) -> Options:
    return segmentation(make_scenes(root, classes=151))


def pacs_job(root: Path) -> Options:
    return vit_pacs(make_domains(root))


#: Config, its path below configs/, and how to make it small.
JOBS: dict[str, tuple[str, Callable[[Path], Options]]] = {
    'olor_maskrcnn_convnext': ('olor_maskrcnn_convnext.py', coco_job),
    'olor_upernet_vit': ('olor_upernet_vit.py', ade20k_job),
    'olor_vit-base-p16_8xb16_pacs': ('classification/olor_vit-base-p16_8xb16_pacs.py', pacs_job),
}


def preset_of(name: str) -> str:
    """The module that a config has in ``olor_mm.configs``."""
    return name.removeprefix('olor_').replace('-', '_')


def write_user_config(way: str, name: str, folder: Path) -> Path:
    """The page's code in a project of its own, for another config than the one that the page writes of."""
    (folder / 'olor_mm').symlink_to(REPO)
    file = folder / 'my_project' / 'user.py'
    file.parent.mkdir()
    as_written = {'relative': f'{WRITTEN}.py', 'cfg': f'{WRITTEN}.py', 'new-style': preset_of(WRITTEN)}[way]
    wanted = {'relative': JOBS[name][0], 'cfg': f'{name}.py', 'new-style': preset_of(name)}[way]
    text = block(way)
    assert as_written in text
    file.write_text(text.replace(as_written, wanted))
    return file


@pytest.mark.parametrize('name', JOBS)
@pytest.mark.parametrize('way', WAYS)
def test_a_step_of_an_inherited_config_is_pulled_back(
    way: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_user_config(way, name, tmp_path)
    # Where it is run from does not matter.
    monkeypatch.chdir(tmp_path)
    path, make_job = JOBS[name]
    plain = Config.fromfile(REPO / 'configs' / path).to_dict()
    inherited = Config.fromfile(file).to_dict()
    if way == 'new-style':
        assert inherited['optim_wrapper']['rollback'].pop('max_level') == 5e-3
        plain['optim_wrapper']['rollback'].pop('max_level')
    assert inherited == plain

    cfg = load(file, {**make_job(tmp_path / 'data'), **ONE_STEP})
    step = one_step(cfg, tmp_path / 'work')
    levels = check_step(step, MAX_LEVEL, plain['optim_wrapper']['rollback']['power'])
    assert {parameter.split('.')[0] for parameter in levels} == {'backbone'}
    assert max(levels.values()) == MAX_LEVEL


RECIPE = """
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=7, mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='VisionTransformer'),
    head=dict(type='LinearClsHead', num_classes=7, in_channels=768, loss=dict(type='CrossEntropyLoss')),
)
train_dataloader = dict(
    dataset=dict(type='olor_mm.PACS'), sampler=dict(type='DefaultSampler', shuffle=True),
)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
default_scope = 'mmpretrain'
default_hooks = dict(logger=dict(type='LoggerHook'))
train_cfg = dict(by_epoch=True)
"""


@pytest.mark.parametrize('style', ['levels-old-style', 'levels-new-style'])
def test_the_levels_alone_on_a_recipe_of_the_users(style: str, tmp_path: Path) -> None:
    (tmp_path / 'recipe.py').write_text(RECIPE)
    (tmp_path / 'user.py').write_text(block(style))
    ours = Config.fromfile(olor_mm.cfg('olor_vit-base-p16_8xb16_pacs')).optim_wrapper
    cfg = load(tmp_path / 'user.py', vit_pacs(make_domains(tmp_path / 'data')))
    assert cfg.optim_wrapper.to_dict() == {
        'optimizer': {'type': 'Adam', 'lr': 1e-3},
        'constructor': ours.constructor,
        'rollback': ours.rollback.to_dict(),
    }
    check_step(one_step(cfg, tmp_path / 'work'), ours.rollback.max_level, ours.rollback.power)


@pytest.mark.parametrize('preset', PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_its_config(preset: Path) -> None:
    (name,) = re.findall(r"cfg\('([^']+)'\)", preset.read_text())
    assert preset.stem == preset_of(Path(name).stem)
    assert Config.fromfile(preset).to_dict() == Config.fromfile(olor_mm.cfg(name)).to_dict()


def test_mim_finds_a_config_by_its_name_once() -> None:
    """It looks through the package, presets and ``.mim/configs`` alike."""
    configs = [path.name for path in (REPO / 'configs').rglob('*.py') if '_base_' not in path.parts]
    modules = [path.name for path in (REPO / 'olor_mm').rglob('*.py') if '.mim' not in path.parts]
    assert len(set(configs)) == len(configs)
    assert not set(configs) & set(modules)


def test_the_page_names_every_preset() -> None:
    page = (REPO / 'docs' / 'inherit.md').read_text()
    assert [preset.stem for preset in PRESETS if f'`{preset.stem}`' not in page] == []


def settings_by_name() -> dict[str, dict]:
    """Every OLOR config of the paper's tables, under the name that its levels have in rollback.py."""
    special = {'olor_maskrcnn_convnext': 'coco_convnext', 'olor_upernet_vit': 'ade20k_vit'}
    # Not of the paper's tables.
    others = {'olor_maskrcnn_swin', 'olor_deit-tiny_50-of-1000_tiny-imagenet'}
    pattern = re.compile(r'olor_(vit|convnext)-base(?:-p16)?(?:_(in21k|openclip|mae)\S*?-pre)?_8xb16_(\S+)')
    found = {}
    for path in (REPO / 'configs').rglob('olor_*.py'):
        name = special.get(path.stem)
        if path.stem in others:
            continue
        if name is None:
            match = pattern.fullmatch(path.stem)
            assert match, f'{path.name}: no levels in rollback.py'
            name = '_'.join(filter(None, (match[3].replace('-', '_'), match[1], match[2])))
        wrapper = Config.fromfile(path).optim_wrapper
        found[f'rollback_{name}'] = {'constructor': wrapper.constructor, 'rollback': wrapper.rollback.to_dict()}
    return found


def test_the_levels_are_those_of_the_papers_configs_all_and_no_others() -> None:
    assert Config.fromfile(olor_mm.cfg('_base_/rollback.py')).to_dict() == settings_by_name()
