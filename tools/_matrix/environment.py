"""Makes the virtual environment of one cell, from the parts that make ``.venv``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from _setup.environment import Environment, sweep
from _setup.host import Interpreter, needed_of_the_host, probe
from _setup.process import SetupError
from _setup.steps import CONSTRAINTS, OPENCVS, REQUIREMENTS, build_env, problems_of, use_checkout

from .cells import FORK_ALSO, FORK_BARE, LEVELS, Cell

__all__ = ['QUESTION', 'environment_of', 'set_up', 'versions_in']

#: What the results say of an environment. Modules rather than distributions: the fork has other names.
QUESTION = """
import importlib, json, platform
versions = {'python': platform.python_version()}
for name in ('torch', 'torchvision', 'numpy', 'timm', 'cv2', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
    try:
        versions[name] = importlib.import_module(name).__version__
    except ImportError:
        pass
print(json.dumps(versions))
"""


def environment_of(cell: Cell, folder: Path) -> Environment:
    """The cell's own environment below ``folder``, made or not."""
    return Environment(folder / cell.name)


def base_python(cell: Cell, named: str | None) -> Interpreter:
    """The interpreter to make the environment from.

    Raises:
        SetupError: If there is none of the cell's version.
    """
    candidate = probe(named or f'python{cell.python}')
    wanted = tuple(int(part) for part in cell.python.split('.'))
    if candidate is None or candidate.version[:2] != wanted:
        found = candidate.text if candidate else 'none'
        raise SetupError(f'{cell.name} needs Python {cell.python}, found {found}: name one with --python')
    return candidate


def pins(cell: Cell) -> list[str]:
    """What every installation into the cell's environment is held to."""
    numpy = 'numpy<2' if cell.numpy == 1 else 'numpy>=2'
    return [f'torch=={cell.torch}', f'torchvision=={cell.torchvision}', numpy, *cell.also]


def set_up(cell: Cell, level: str, environment: Environment, python: str | None = None) -> None:
    """Brings the cell's environment to what ``level`` needs; what is there already stays.

    Args:
        cell: The cell.
        level: A key of ``LEVELS``.
        environment: Its environment, see :func:`environment_of`.
        python: The interpreter to make it from. Defaults to None: ``python3.X`` on the path.

    Raises:
        SetupError: If a step fails; the message says which and why.
    """
    compiles = LEVELS[level].need != 'core'
    base = base_python(cell, python)
    if not environment.version():
        needed_of_the_host(base, make_venv=True, compile_mmcv=compiles)
        environment.run('venv', [base.path, '-m', 'venv', str(environment.folder)], 'making the virtual environment')
    sweep(environment.site())
    for title, step in _steps(cell, compiles):
        print(f'      {cell.name}: {title}', flush=True)
        try:
            step(cell, environment)
        except SetupError as error:
            raise SetupError(f'{title}: {error}') from error
    problems = problems_of(environment, LEVELS[level].need)
    if problems:
        raise SetupError(f'the environment is complete but does not work: {problems}')


def _steps(cell: Cell, compiles: bool) -> Iterator[tuple]:
    yield 'torch, torchvision and numpy', _torch
    yield 'packages that the tests import', _packages
    yield 'opencv without a screen', _opencv
    yield 'MMEngine', _engine
    if compiles:
        yield 'mmdet, mmseg and mmpretrain', _toolboxes
        yield 'mmcv, compiled with its operators', _mmcv
    yield 'olor_mm itself, from this checkout', lambda _, environment: use_checkout(environment)


def _torch(cell: Cell, environment: Environment) -> None:
    index = os.environ.get('TORCH_INDEX')
    environment.pip_install('torch', *pins(cell), *(['--index-url', index] if index else []))


def _packages(cell: Cell, environment: Environment) -> None:
    # Upstream's mmengine and mmcv import pkg_resources, which setuptools 81 has no more.
    build = ('setuptools', *FORK_ALSO) if cell.fork else ('setuptools<81',)
    files = [part for name in ('runtime', 'tests') for part in ('-r', str(REQUIREMENTS / f'{name}.txt'))]
    pinned = ['-c', str(CONSTRAINTS)] if _is_pinned(cell) else []
    environment.pip_install('packages', *pins(cell), *build, 'wheel', 'ninja', 'psutil', *files, *pinned)


def _is_pinned(cell: Cell) -> bool:
    """Whether requirements/ pins this very cell: then its other packages are those of ``make`` as well."""
    torch = (REQUIREMENTS / 'torch.txt').read_text(encoding='utf-8')
    return f'torch=={cell.torch}\n' in torch and cell.numpy == 2 and not cell.fork


def _opencv(cell: Cell, environment: Environment) -> None:
    others = [name for name in OPENCVS if name in environment.installed()]
    if others:
        remove = [str(environment.python), '-m', 'pip', 'uninstall', '-y', *others, 'opencv-python-headless']
        environment.run('opencv', remove, 'removing the other builds of opencv')
        environment.pip_install('opencv', '--no-deps', 'opencv-python-headless', *pins(cell))


def _engine(cell: Cell, environment: Environment) -> None:
    environment.pip_install('mmengine', '--no-deps', '=='.join(cell.engine))


def _toolboxes(cell: Cell, environment: Environment) -> None:
    wanted = [f'{name}=={version}' for name, version in cell.family.items() if not name.endswith(('mmcv', 'mmengine'))]
    wanted += FORK_BARE if cell.fork else ()
    environment.pip_install('toolboxes', '--no-deps', '--no-build-isolation', *wanted)


def _mmcv(cell: Cell, environment: Environment) -> None:
    """Past pip's cache in both directions: it does not know for which torch a wheel was compiled."""
    if not problems_of(environment, 'mmcv'):
        return
    name, version = next((n, v) for n, v in cell.family.items() if n.endswith('mmcv'))
    source = ('--no-cache-dir', '--force-reinstall', '--no-binary', name)
    arguments = ('-v', '--no-deps', '--no-build-isolation', *source, f'{name}=={version}')
    environment.pip_install('mmcv', *arguments, **build_env(environment))
    problems = problems_of(environment, 'mmcv')
    if problems:
        raise SetupError(f'mmcv was built, but not as needed: {problems}')


def versions_in(python: str) -> dict[str, str]:
    """Version of every module that matters, as the interpreter ``python`` imports it.

    Raises:
        SetupError: If one of them fails in another way than by not being there.
    """
    done = subprocess.run([python, '-c', QUESTION], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f'{python} cannot import what is installed: {done.stderr.strip()[-300:]}')
    return json.loads(done.stdout.splitlines()[-1])
