"""The shell scripts: what they start, from any folder, with spaces in every path."""

import os
import shutil
from pathlib import Path

import pytest

from olor_mm.tooling.torchrun import launcher_arguments, main
from tests.test_tools._small import REPO, TOOLS, run

# Stands for python and for srun: prints what it was called with.
RECORDER = '#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@" "PYTHONPATH=$PYTHONPATH"\n'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The scripts in a folder with spaces, as a wheel would carry them: away from the checkout."""
    folder = tmp_path / 'some where' / 'tools'
    folder.mkdir(parents=True)
    for script in TOOLS.glob('*.sh'):
        shutil.copy2(script, folder)
    recorder = tmp_path / 'bin' / 'srun'
    recorder.parent.mkdir()
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    shutil.copy2(recorder, recorder.with_name('my python'))
    return folder


def _called(tools: Path, script: str, *arguments: str, **environ: str) -> list[str]:
    binaries = tools.parents[1] / 'bin'
    environ = {'PYTHON': str(binaries / 'my python'), 'PATH': f'{binaries}:{os.environ["PATH"]}', **environ}
    done = run(tools / script, *arguments, cwd=tools.parents[1], env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split('\n')


def test_dist_train(tools: Path) -> None:
    *called, path = _called(tools, 'dist_train.sh', 'my config.py', '2', '--cfg-options', 'a=[1, 2]')
    script = str(tools / 'train.py')
    launcher = ['--launcher', 'pytorch']
    options = ['--cfg-options', 'a=[1, 2]']
    assert called == ['my python', '-m', 'olor_mm.tooling.torchrun', '2', script, 'my config.py', *launcher, *options]
    assert path.startswith(f'PYTHONPATH={tools}/..:')


def test_dist_test(tools: Path) -> None:
    *called, _ = _called(tools, 'dist_test.sh', 'my config.py', 'a b.pth', '4', '--out', 'x y.pkl')
    assert called[3:] == [
        *('4', str(tools / 'test.py'), 'my config.py', 'a b.pth'),
        *('--launcher', 'pytorch', '--out', 'x y.pkl'),
    ]


@pytest.mark.parametrize(
    ('environ', 'expected'),
    [
        ({}, ['--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=5']),
        (dict(GPUS='2', CPUS_PER_TASK='3'), ['--gres=gpu:2', '--ntasks=2', '--ntasks-per-node=2', '--cpus-per-task=3']),
        (dict(GPUS='16', GPUS_PER_NODE='4'), ['--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4']),
    ],
)
def test_slurm_train(tools: Path, environ: dict[str, str], expected: list[str]) -> None:
    environ = dict(environ, SRUN_ARGS='--time=1:00 --exclusive')
    *called, _ = _called(tools, 'slurm_train.sh', 'part', 'job', 'my config.py', 'my run', '--amp', **environ)
    assert called[:4] == ['srun', '-p', 'part', '--job-name=job']
    assert set(expected) <= set(called)
    assert called[called.index('--time=1:00') :] == [
        *('--time=1:00', '--exclusive', str(tools.parents[1] / 'bin' / 'my python'), '-u', str(tools / 'train.py')),
        *('my config.py', '--work-dir=my run', '--launcher=slurm', '--amp'),
    ]


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_too_few_arguments(script: str) -> None:
    done = run(TOOLS / script, 'x.py', cwd=REPO)
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ')


def test_torchrun_reads_the_toolboxes_variables() -> None:
    environ = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    assert launcher_arguments('8', environ) == [
        *('--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234', '--nproc_per_node=8')
    ]
    # Several machines have to agree on a port without talking; one alone takes any that is free.
    assert '--master_port=29500' in launcher_arguments('8', dict(NNODES='2'))
    ports = {launcher_arguments('1', {})[3] for _ in range(3)}
    assert '--master_port=0' not in ports


@pytest.mark.parametrize('processes', ['0', '-1', 'two', ''])
def test_number_of_processes_is_checked(processes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([processes, 'x.py']) == 2
    assert 'positive integer' in capsys.readouterr().err


@pytest.mark.slow
def test_one_message_from_several_ranks(tmp_path: Path) -> None:
    done = run(TOOLS / 'dist_train.sh', tmp_path / 'gone.py', '2', cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count('error: the config file is missing') == 1
    assert 'Traceback' not in done.stderr
