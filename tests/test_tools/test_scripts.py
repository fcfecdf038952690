"""The shell scripts: what they start, from any folder, with spaces in every path."""

import os
import re
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
        *('--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234', '--nproc_per_node=8'),
        '--monitor_interval=0.1',
    ]
    # Several machines have to agree on a port without talking; one alone takes any that is free.
    assert '--master_port=29500' in launcher_arguments('8', dict(NNODES='2'))
    ports = {launcher_arguments('1', {})[3] for _ in range(3)}
    assert '--master_port=0' not in ports
    # Set and empty is not set.
    empty = launcher_arguments('8', dict.fromkeys(('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'PORT'), ''))
    assert empty[:3] == ['--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1']


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


#: What a shell would take for something else than a name.
NAMES = [
    'a b.py',
    ' leading and trailing ',
    "it's.py",
    'a "quoted" name.py',
    '$(touch ran).py',
    '`touch ran`.py',
    'x; touch ran',
    'x && touch ran #',
    'x | touch ran',
    'x > ran',
    'two\nlines.py',
    'a\\backslash.py',
    '*.py',
    '~/x.py',
    '$HOME/x.py',
    '${PATH}',
    '!!',
    '%s%n.py',
    'größe.py',
]
RECORD = '#!/bin/sh\nprintf "%s\\0" "$@" >"$RECORD"\n'


def _record(tools: Path, script: str, *arguments: str, **environ: str) -> list[str]:
    """The arguments with which a script calls srun or python, whatever is in them."""
    binaries, cwd = tools.parents[1] / 'bin', tools.parents[1] / 'cwd'
    cwd.mkdir()
    for name in ('srun', 'my python'):
        (binaries / name).write_text(RECORD)
    record = tools.parents[1] / 'record'
    given = {'PYTHON': str(binaries / 'my python'), 'PATH': f'{binaries}:{os.environ["PATH"]}', 'RECORD': str(record)}
    done = run(tools / script, *arguments, cwd=cwd, env={**given, **environ})
    assert not list(cwd.iterdir()), 'something was run'
    assert done.returncode == 0, done.stderr
    return record.read_bytes().decode().split('\0')[:-1]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_names_stay_what_they_are(tools: Path, script: str, name: str) -> None:
    if script == 'slurm_train.sh':
        called = _record(tools, script, name, name, name, name, '--cfg-options', f'a={name}')
        assert called[:3] == ['-p', name, f'--job-name={name}']
        assert called[-5:] == [name, f'--work-dir={name}', '--launcher=slurm', '--cfg-options', f'a={name}']
    elif script == 'dist_train.sh':
        called = _record(tools, script, name, '2', '--work-dir', name)
        assert called[2:] == ['2', str(tools / 'train.py'), name, '--launcher', 'pytorch', '--work-dir', name]
    else:
        called = _record(tools, script, name, name, '2', '--out', name)
        assert called[2:] == ['2', str(tools / 'test.py'), name, name, '--launcher', 'pytorch', '--out', name]


def test_a_name_that_begins_with_a_dash_is_a_file(tools: Path) -> None:
    assert _record(tools, 'dist_test.sh', '-x.py', '--amp.pth', '2')[4:6] == ['./-x.py', './--amp.pth']


@pytest.mark.parametrize(
    ('variable', 'value'),
    [
        (name, value)
        for name in ('GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK')
        for value in ('2; touch ran', '$(touch ran)', 'a[$(touch ran)]', '-1', '0', '1.5', ' 2', 'two')
    ],
)
def test_slurm_numbers_are_numbers(tools: Path, variable: str, value: str) -> None:
    environ = {variable: value, 'PATH': f'{tools.parents[1] / "bin"}:{os.environ["PATH"]}'}
    done = run(tools / 'slurm_train.sh', 'part', 'job', 'x.py', 'work', cwd=tools.parents[1], env=environ)
    assert done.returncode == 2
    assert done.stderr == f"error: {variable} must be a positive integer, but got '{value}'\n"
    assert not (tools.parents[1] / 'ran').exists()


def test_srun_args_are_split_and_not_evaluated(tools: Path) -> None:
    given = '--time=1:00 $(touch ran) `touch ran` *\n--exclusive ; touch'
    called = _record(tools, 'slurm_train.sh', 'part', 'job', 'x.py', 'work', SRUN_ARGS=given)
    start = called.index('--time=1:00')
    assert called[start : start + len(given.split())] == given.split()


def test_the_scripts_find_themselves_whatever_cdpath_says(tools: Path) -> None:
    cwd = tools.parents[1] / 'elsewhere'
    (cwd / 'some where' / 'tools').mkdir(parents=True)
    shutil.copy2(tools / 'dist_train.sh', cwd / 'some where' / 'tools')
    environ = {'CDPATH': str(tools.parents[1]), 'PYTHON': str(tools.parents[1] / 'bin' / 'my python')}
    done = run('some where/tools/dist_train.sh', 'x.py', '2', cwd=cwd, env=environ)
    assert str(cwd / 'some where' / 'tools' / 'train.py') in done.stdout.split('\n'), done.stderr


def test_slurm_numbers_do_not_overflow(tools: Path) -> None:
    environ = {'GPUS': '99999999999999999999'}
    done = run(tools / 'slurm_train.sh', 'part', 'job', 'x.py', 'work', cwd=tools.parents[1], env=environ)
    assert done.returncode == 2
    assert done.stderr == "error: GPUS must be less than 1000000, but got '99999999999999999999'\n"


@pytest.mark.parametrize(
    ('processes', 'environ', 'said'),
    [
        ('2; touch x', {}, "the number of GPUs (processes) must be a positive integer, but got '2; touch x'"),
        ('²', {}, 'must be a positive integer'),
        ('--help', {}, 'must be a positive integer'),
        ('2', {'NNODES': '2; x'}, "NNODES must be a number of machines, or two as MIN:MAX, but got '2; x'"),
        ('2', {'NODE_RANK': '-1'}, "NODE_RANK must be the number of this machine, from 0, but got '-1'"),
        ('2', {'PORT': '29500 --x'}, "PORT must be a port, from 1 to 65535, but got '29500 --x'"),
        ('2', {'PORT': '0'}, 'PORT must be a port'),
        ('99999999999999999999', {}, 'takes at most 1024 GPUs'),
        pytest.param('9' * 5000, {}, 'takes at most 1024 GPUs', id='5000 digits'),
        ('1025', {}, 'takes at most 1024 GPUs'),
        ('2', {'NODE_RANK': '1'}, 'NODE_RANK=1 must be less than NNODES=1: set NNODES'),
        ('2', {'NODE_RANK': '1', 'NNODES': ''}, 'NODE_RANK=1 must be less than NNODES=1'),
        ('2', {'NODE_RANK': '3', 'NNODES': '1:3'}, 'NODE_RANK=3 must be less than NNODES=1:3'),
        ('2', {'PORT': '99999'}, "PORT must be a port, from 1 to 65535, but got '99999'"),
    ],
)
def test_what_torchrun_gets_is_checked(processes: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        launcher_arguments(processes, environ)
