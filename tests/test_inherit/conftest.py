"""What the tests in other processes share: olor_mm and a foreign project, installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PROJECT = Path(__file__).parent / 'project'
#: All that a distribution of olor_mm is built from.
SOURCES = ('olor_mm', 'configs', 'tools', 'model-index.yml', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE')
NOT_COPIED = shutil.ignore_patterns('.mim', '__pycache__', 'work_dirs')
TIMEOUT = 300  # seconds

Run = Callable[..., str]


def run(*command: object, cwd: Path, env: Mapping[str, str]) -> str:
    """Output of a command; all of it is shown where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        pytest.fail(f'{command} failed:\n{done.stdout[-5000:]}')
    return done.stdout


def copy_checkout(folder: Path) -> Path:
    """What a distribution is built from, in a folder that a build may change."""
    folder.mkdir()
    for name in SOURCES:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=NOT_COPIED)
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope='session')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages with olor_mm and the project ``orchard``, as pip installs them."""
    pytest.importorskip('setuptools', minversion='64')
    pytest.importorskip('wheel')
    root = tmp_path_factory.mktemp('installed')
    checkout = copy_checkout(root / 'checkout')
    project = shutil.copytree(PROJECT, root / 'project', ignore=NOT_COPIED)
    env = {k: v for k, v in os.environ.items() if not k.startswith('PIP_')}
    command = ['-m', 'pip', 'install', '-q', '--no-index', '--no-deps', '--no-build-isolation', '--no-input']
    run(sys.executable, *command, '--target', root / 'site', checkout, project, cwd=root, env=env)
    return root / 'site'


@pytest.fixture
def run_installed(site: Path, tmp_path: Path) -> Run:
    """Runs a command in a folder of its own, with what is installed in ``site`` and without this checkout."""
    paths = [path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path and Path(path) != REPO]
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(site), *paths]),
        'OMP_NUM_THREADS': '1',
        # MIM and others make folders there.
        'HOME': str(tmp_path),
    }

    def in_folder(*command: object) -> str:
        return run(*command, cwd=tmp_path, env=env)

    return in_folder


@pytest.fixture(scope='session')
def mim() -> tuple[str, ...]:
    """The command ``mim``; skips where openmim is absent, but not in CI, which has it from requirements/mim.txt."""
    if importlib.util.find_spec('mim') is None:
        reason = 'openmim is not installed: pip install --no-deps -r requirements/mim.txt'
        if os.environ.get('CI'):
            pytest.fail(reason)
        pytest.skip(reason)
    return sys.executable, '-m', 'mim'
