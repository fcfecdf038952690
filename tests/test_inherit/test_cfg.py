"""``olor_mm.cfg``: the file of a name, or an error that helps."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import olor_mm

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ('name', 'path'),
    [
        ('olor_maskrcnn_convnext.py', 'olor_maskrcnn_convnext.py'),
        ('olor_maskrcnn_convnext', 'olor_maskrcnn_convnext.py'),
        ('olor_vit-base-p16_8xb16_cifar100.py', 'classification/olor_vit-base-p16_8xb16_cifar100.py'),
        ('classification/olor_vit-base-p16_8xb16_cifar100', 'classification/olor_vit-base-p16_8xb16_cifar100.py'),
        ('rollback', '_base_/rollback.py'),
    ],
)
def test_a_name_with_or_without_its_folder(name: str, path: str) -> None:
    assert Path(olor_mm.cfg(name)).resolve() == REPO / 'configs' / path


def test_every_config_of_ours_is_found_by_its_bare_name() -> None:
    ours = [path for path in (REPO / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert [path for path in ours if Path(olor_mm.cfg(path.name)).resolve() != path] == []


@pytest.fixture
def package(tmp_path: Path) -> ModuleType:
    """A copy of olor_mm with configs that are known: one name twice in subfolders, and once at the top."""
    (tmp_path / 'olor_mm').mkdir()
    for name in ('__init__.py', 'version.py'):
        shutil.copy(REPO / 'olor_mm' / name, tmp_path / 'olor_mm')
    for name in ('a/twice.py', 'b/twice.py', 'b/orchard.py', 'c/orchard.py', 'orchard.py'):
        (tmp_path / 'configs' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'configs' / name).touch()
    spec = importlib.util.spec_from_file_location('olor_mm', tmp_path / 'olor_mm' / '__init__.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_name_in_several_folders_must_say_which(package: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"several configs 'twice'.*a/twice\.py, b/twice\.py"):
        package.cfg('twice')
    assert package.cfg('b/twice') == str(tmp_path / 'configs' / 'b' / 'twice.py')
    # What stands at the top is meant by its bare name.
    assert package.cfg('orchard') == str(tmp_path / 'configs' / 'orchard.py')


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('a/orchard', r'did you mean b/orchard\.py, c/orchard\.py, orchard\.py\?$'),
        ('twise.py', r'did you mean a/twice\.py, b/twice\.py\?'),
        ('something', r'it ships: a/twice\.py, b/orchard\.py, b/twice\.py, c/orchard\.py, orchard\.py$'),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_exist(package: ModuleType, name: str, said: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"ships no config '{name}'.*{said}"):
        package.cfg(name)
