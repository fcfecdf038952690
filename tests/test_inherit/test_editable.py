"""An editable installation: presets and MIM find the checkout by the link that the page names."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ._docs import block
from .conftest import copy_checkout, run

pytestmark = pytest.mark.slow

#: What MMEngine and MIM ask, and what a new-style config with our preset as its base says.
QUESTION = """
from mmengine.config import Config
from mmengine.utils import get_installed_path
print(Config.fromfile('user.py').optim_wrapper.constructor)
print(get_installed_path('olor_mm'))
"""


def test_a_link_makes_presets_and_mim_work(tmp_path: Path) -> None:
    import setuptools

    checkout = copy_checkout(tmp_path / 'checkout')
    environment = tmp_path / 'env'
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / 'bin' / 'python'
    site = next(environment.glob('lib/python*/site-packages'))
    # The packages of this environment, behind those of the new one.
    (site / 'stack.pth').write_text(str(Path(setuptools.__file__).resolve().parents[1]))
    env = {k: v for k, v in os.environ.items() if not k.startswith('PIP_') and k != 'PYTHONPATH'}
    # `python` in the page's line is that of the active environment.
    env['PATH'] = f'{python.parent}{os.pathsep}{env["PATH"]}'
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-index', '--no-deps']
    run(*pip, '--no-build-isolation', '-e', checkout, cwd=tmp_path, env=env)
    (tmp_path / 'user.py').write_text(block('new-style'))

    ask = [str(python), '-W', 'ignore', '-c', QUESTION]
    without = subprocess.run(ask, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert 'not found! It means that incorrect module is defined' in without.stderr, 'the link is needed no more'

    run('sh', '-c', block('editable'), cwd=checkout, env=env)
    constructor, package = run(*ask, cwd=tmp_path, env=env).split()
    assert constructor == 'olor_mm.OLOROptimWrapperConstructor'
    # Where MIM looks for tools and configs: those of the checkout, not copies.
    tool = Path(package) / '.mim' / 'tools' / 'train.py'
    assert tool.resolve() == checkout / 'tools' / 'train.py'
