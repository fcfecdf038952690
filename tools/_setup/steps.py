"""What the set-up does, in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .environment import Environment, file_key, required_names
from .host import build_jobs
from .process import SetupError

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
CONSTRAINTS = REQUIREMENTS / 'constraints.txt'
CHECKER = ROOT / 'tools' / 'check_env.py'
OPENCVS = ('opencv-python', 'opencv-contrib-python', 'opencv-contrib-python-headless')
# Left out on purpose, which pip cannot know: mmengine names opencv-python, and the headless build stands for it under
# another name; openmim names opendatalab, which needs old versions of others and serves `mim download` alone.
LEFT_OUT = ('opencv-python', 'opendatalab')
REVISION = 1  # to be raised when a step comes to do something else with the same files


class Step(NamedTuple):
    """One step: it is repeated when a file of ``inputs`` changed, or a distribution that they name is gone."""

    name: str
    title: str
    inputs: tuple[Path, ...]
    run: Callable[[Environment], None]

    def key(self, environment: Environment) -> str:
        return file_key(REVISION, self.name, str(ROOT), environment.version(), CONSTRAINTS, *self.inputs)

    def names(self) -> list[str]:
        return [name for file in self.inputs if file.suffix == '.txt' for name in required_names(file)]

    def fresh(self, environment: Environment) -> bool:
        return environment.fresh(self.name, self.key(environment))


def steps() -> list[Step]:
    """All steps after the making of ``.venv`` itself."""
    stack = tuple(REQUIREMENTS / f'{name}.txt' for name in ('runtime', 'analysis', 'tests', 'lint'))
    return [
        Step('build', 'build tools', (REQUIREMENTS / 'build.txt',), _build_tools),
        Step('torch', 'torch and torchvision', (REQUIREMENTS / 'torch.txt',), _torch),
        Step('packages', 'packages that the toolboxes, tests and linters import', stack, _packages),
        Step('opencv', 'opencv without a screen', (REQUIREMENTS / 'runtime.txt',), _opencv),
        Step('openmmlab', 'mmengine, mmdet, mmseg, mmpretrain', (REQUIREMENTS / 'openmmlab.txt',), _openmmlab),
        Step('openmim', 'mim', (REQUIREMENTS / 'mim.txt',), _openmim),
        Step('mmcv', 'mmcv with its operators (compiled once, 5 to 15 minutes)', (REQUIREMENTS / 'mmcv.txt',), _mmcv),
        Step('olor_mm', 'olor_mm itself, from this checkout', (), use_checkout),
        Step('check', 'check of the whole', (CHECKER, *sorted(REQUIREMENTS.glob('*.txt'))), _check),
    ]


def _requirements(*names: str) -> list[str]:
    files = [argument for name in names for argument in ('-r', str(REQUIREMENTS / f'{name}.txt'))]
    return [*files, '-c', str(CONSTRAINTS)]


def _build_tools(environment: Environment) -> None:
    environment.pip_install('build', *_requirements('build'))


def _torch(environment: Environment) -> None:
    index = os.environ.get('TORCH_INDEX')
    environment.pip_install('torch', *_requirements('torch'), *(['--index-url', index] if index else []))


def _packages(environment: Environment) -> None:
    # torch.txt goes along so that nothing here may move it.
    environment.pip_install('packages', *_requirements('torch', 'runtime', 'analysis', 'tests', 'lint'))


def _opencv(environment: Environment) -> None:
    """Only the headless build: two of them share the folder cv2/, and removing one breaks the other."""
    others = [name for name in OPENCVS if name in environment.installed()]
    if not others and not problems_of(environment, 'opencv'):
        return
    remove = [str(environment.python), '-m', 'pip', 'uninstall', '-y', *others, 'opencv-python-headless']
    environment.run('opencv', remove, 'removing the other builds of opencv')
    environment.pip_install('opencv', 'opencv-python-headless', '--no-deps', '-c', str(CONSTRAINTS))
    problems = problems_of(environment, 'opencv')
    if problems:
        raise SetupError(f'opencv does not import: {problems}')


def _mmcv(environment: Environment) -> None:
    """From its sdist, or from the wheel that pip kept of an earlier build; then its operators are called.

    pip's cache knows neither for which torch a wheel was compiled nor whether it has operators. So a wheel that fails
    is compiled anew, once, past the cache.
    """
    arguments = ['-v', '--no-deps', '--no-build-isolation', *_requirements('mmcv')]
    anew = ['--no-cache-dir', '--force-reinstall', '--no-binary', 'mmcv']
    built_for = environment.stamp('mmcv').get('torch', '')
    if built_for in ('', environment.installed().get('torch')):
        environment.pip_install('mmcv', *arguments, **build_env(environment))
        problems = problems_of(environment, 'mmcv')
        if not problems:
            return
        print(f'      {problems}\n      compiling it anew', flush=True)
    environment.pip_install('mmcv', *arguments, *anew, **build_env(environment))
    problems = problems_of(environment, 'mmcv')
    if problems:
        raise SetupError(
            f'mmcv was built, but not as needed. {problems}\n'
            f'The log, {environment.log("mmcv")}, says why no operators were compiled: look for "error:" in it. Often '
            'it is the compiler (CC and CXX choose another) or too little memory (MAX_JOBS=1). Then run this again.'
        )


def build_env(environment: Environment) -> dict[str, str]:
    """The variables that make mmcv compile its operators, as many files at a time as this machine can take."""
    env = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': os.environ.get('MAX_JOBS', str(build_jobs()))}
    question = (
        'import torch\nfrom torch.utils.cpp_extension import CUDA_HOME\n'
        'print(int(torch.cuda.is_available()), int(CUDA_HOME is not None))'
    )
    if environment.ask('-c', question).stdout.split() == ['1', '0']:
        print(
            '      a GPU, but no CUDA toolkit (nvcc): mmcv gets its operators for the CPU only, and Mask R-CNN cannot '
            'train on the GPU.\n      To change that, install the toolkit, remove .venv and run this again.',
            flush=True,
        )
        env['CUDA_VISIBLE_DEVICES'] = ''
    return env


def _openmmlab(environment: Environment) -> None:
    environment.pip_install('openmmlab', '--no-deps', *_requirements('openmmlab'))


def _openmim(environment: Environment) -> None:
    environment.pip_install('openmim', '--no-deps', *_requirements('mim'))


def use_checkout(environment: Environment) -> None:
    """By a .pth file: a distribution's folder is where mmengine looks for the bases of a new-style config, and that of
    pip's editable mode is site-packages, where there are none of ours. Without one it asks Python, which knows.
    """
    if 'olor-mm' in environment.installed():
        remove = [str(environment.python), '-m', 'pip', 'uninstall', '-y', 'olor_mm']
        environment.run('olor_mm', remove, 'removing an earlier installation of olor_mm')
    (environment.site() / 'olor_mm_checkout.pth').write_text(f'{ROOT}\n', encoding='utf-8')


def _check(environment: Environment) -> None:
    problems = problems_of(environment, 'all')
    if problems:
        raise SetupError(f'the environment is complete but does not work: {problems}')
    answer = environment.ask('-m', 'pip', 'check')
    lines = answer.stdout.splitlines()
    unmet = [line for line in lines if 'requires' in line and not any(name in line for name in LEFT_OUT)]
    if answer.returncode and unmet:
        print('      pip check: ' + '\n      pip check: '.join(unmet), flush=True)


def problems_of(environment: Environment, need: str) -> str:
    """What the environment lacks for ``need``, in one line; empty where it lacks nothing."""
    answer = environment.ask(str(CHECKER), '--need', need)
    if answer.returncode == 0:
        return ''
    return '; '.join(answer.stdout.split('\n')).strip('; ') or answer.stderr.strip()[-300:] or 'it crashed'
