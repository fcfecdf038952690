"""``mim train`` with the toolboxes' packages and with olor_mm's own: a step each, the weights pulled back."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests._data import CLASSES, make_coco

from ._docs import block
from ._saved import read, strengths
from ._small import MAX_LEVEL, ONE_STEP, Options, detection, make_domains, make_scenes, segmentation, vit_pacs
from .conftest import Run

pytestmark = pytest.mark.slow

BASE = 'olor_maskrcnn_convnext.py'
#: Package to its command.
COMMANDS = {line.split()[2]: shlex.split(line) for line in block('mim').splitlines()}
JOBS: dict[str, tuple[str, Callable[[Path], Options]]] = {
    'mmdet': (BASE, lambda root: detection(make_coco(root, train=2, val=1))),
    'mmseg': ('olor_upernet_vit.py', lambda root: segmentation(make_scenes(root, classes=151))),
    'mmpretrain': ('olor_vit-base-p16_8xb16_pacs.py', lambda root: vit_pacs(make_domains(root))),
}
NO_VALIDATION = {f'{split}_{part}': None for split in ('val', 'test') for part in ('dataloader', 'cfg', 'evaluator')}


def nested(options: Options) -> dict[str, Any]:
    """Dotted keys as dicts in dicts."""
    tree: dict[str, Any] = {}
    for key, value in options.items():
        *parents, last = key.split('.')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def check(work_dir: Path, log: str) -> None:
    """The run's one checkpoint: the first layer was pulled back by half of its level, no other by more."""
    assert 'Weight rollback (OLOR) of' in log
    (file,) = work_dir.glob('*_1.pth')
    found = strengths(read(file), factor=0.5)
    assert {name.split('.')[0] for name in found} == {'backbone'}
    assert max(found.values()) == pytest.approx(MAX_LEVEL / 2, rel=0.01)
    assert min(found.values()) > 0


@pytest.mark.parametrize('package', JOBS)
def test_a_toolbox_trains_what_inherits_ours(
    package: str, mim: tuple[str, ...], run_installed: Run, site: Path, tmp_path: Path
) -> None:
    base, job = JOBS[package]
    keep = dict(_delete_=True, type='CheckpointHook', interval=1, by_epoch=package != 'mmseg')
    options = {**job(tmp_path / 'data'), **ONE_STEP, **NO_VALIDATION, 'default_hooks.checkpoint': keep}
    lines = [f'{name} = {value!r}' for name, value in nested(options).items()]
    command = COMMANDS[package]
    (tmp_path / command[3]).write_text('\n'.join([block('cfg').replace(BASE, base), *lines]))
    log = run_installed(*mim, *command[1:])
    check(tmp_path / 'work_dirs' / package, log)


def test_our_own_package_finds_its_config_by_name(
    mim: tuple[str, ...], run_installed: Run, site: Path, tmp_path: Path
) -> None:
    data = make_coco(tmp_path / 'coco', train=2, val=1)
    # What dicts and lists of dicts there are cannot be written on a command line.
    options = {key: value for key, value in detection(data).items() if not key.startswith('train_dataloader.dataset')}
    options |= {key: value for key, value in ONE_STEP.items() if key != 'param_scheduler'}
    options |= {
        'train_dataloader.dataset.metainfo.classes': CLASSES,
        'train_dataloader.dataset.pipeline.2.scale': (128, 96),
        'param_scheduler.0.start_factor': 0.5,
    }
    settings = [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    arguments = ['--data-root', data, '--no-validate', '--cfg-options', *settings]
    log = run_installed(*mim, *COMMANDS['olor_mm'][1:], *arguments)
    # The config of the name, and the tool, are those of the installed package.
    assert f'will use {site / "olor_mm" / ".mim" / "configs" / BASE} instead' in log.replace('\n', '')
    assert str(site / 'olor_mm' / '.mim' / 'tools' / 'train.py') in log
    check(tmp_path / 'work_dirs' / 'olor_mm', log)
