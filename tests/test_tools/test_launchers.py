"""Every way to start several processes ends with the weights of one: torchrun, Slurm, MPI, two machines."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_engine._replicas import replica_config, state_of
from tests.test_engine._toy import make_runner
from tests.test_tools._small import TOOLS, environment, run

pytestmark = pytest.mark.slow

# Start as many processes as --ntasks says, as srun does on one machine.
SRUN = """#!/usr/bin/env bash
shift 2
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST='node[7-8]'
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    started+=($!)
done
for pid in "${started[@]}"; do
    wait "$pid" || status=$?
done
exit "${status:-0}"
"""
SCONTROL = """#!/bin/sh
[ "$*" = 'show hostnames node[7-8]' ] && echo 127.0.0.1
"""


@pytest.fixture(scope='module')
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process ends with."""
    folder = tmp_path_factory.mktemp('alone')
    runner = make_runner(replica_config(folder))
    torch.save({'state_dict': runner.model.state_dict()}, folder / 'start.pth')
    runner.train()
    return {'file': folder / 'start.pth', **state_of(runner)}


def _config(folder: Path, world: int) -> Path:
    config = replica_config(folder / 'my work', world, custom_hooks=[{'type': 'RankDump'}])
    config.custom_imports = {'imports': ['tests.test_engine._replicas'], 'allow_failed_imports': False}
    # torch.manual_seed(0) of the tests' own start is not the tools': the weights come from a file.
    config.load_from = 'start.pth'
    file = folder / 'my config.py'
    config.dump(file)
    return file


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def _together(
    commands: list[list[object]], folders: list[Path], environs: list[dict[str, str]], logs: Path
) -> list[tuple[int, str]]:
    """Run commands at the same time; exit code and text of each."""
    jobs, files = [], [logs / f'log_{number}.txt' for number in range(len(commands))]
    try:
        for command, folder, environ, file in zip(commands, folders, environs, files, strict=True):
            with file.open('w') as stream:
                jobs.append(
                    subprocess.Popen(
                        [str(part) for part in command],
                        cwd=folder,
                        env=environment(environ),
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return [(job.wait(timeout=600), file.read_text()) for job, file in zip(jobs, files, strict=True)]
    finally:
        for job in jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()


def _check(folder: Path, world: int, expected: dict[str, Any]) -> None:
    ranks = [torch.load(folder / 'my work' / f'rank_{rank}.pth', weights_only=True) for rank in range(world)]
    for state in ranks:
        for kind in ('weights', 'theta_0'):
            assert state[kind].keys() == expected[kind].keys()
            for name, value in expected[kind].items():
                assert torch.equal(state[kind][name], ranks[0][kind][name])
                assert (state[kind][name] - value).abs().max() < 1e-13


def test_slurm(tmp_path: Path, expected: dict[str, Any]) -> None:
    config = _config(tmp_path, 2)
    shutil.copy(expected['file'], tmp_path)
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environ = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '2', 'MASTER_PORT': _free_port()}
    script = TOOLS / 'slurm_train.sh'
    done = run(script, 'part', 'job', config, tmp_path / 'my work', cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    _check(tmp_path, 2, expected)


def test_mpi(tmp_path: Path, expected: dict[str, Any]) -> None:
    config = _config(tmp_path, 2)
    shutil.copy(expected['file'], tmp_path)
    port = _free_port()
    names = ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK')
    common = {'OMPI_COMM_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    environs = [{**common, **dict.fromkeys(names, str(rank))} for rank in range(2)]
    command = [sys.executable, TOOLS / 'train.py', config, '--launcher', 'mpi']
    for code, text in _together([command] * 2, [tmp_path] * 2, environs, tmp_path):
        assert code == 0, text[-3000:]
    _check(tmp_path, 2, expected)


@pytest.mark.parametrize(('stale', 'processes'), [(False, 2), (True, 1)])
def test_two_machines_with_torchrun(stale: bool, processes: int, tmp_path: Path, expected: dict[str, Any]) -> None:
    """Each has its own folder, and in it its own copy of the weights to start from."""
    config = _config(tmp_path, 2 * processes)
    folders = [tmp_path / 'first machine', tmp_path / 'second machine']
    state = torch.load(expected['file'], weights_only=True)
    for folder in folders:
        folder.mkdir()
        torch.save(state, folder / 'start.pth')
        state['state_dict']['backbone.blocks.2.fc.bias'][3] += 1e-9 if stale else 0
    port = _free_port()
    environs = [dict(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1', PORT=port) for rank in range(2)]
    found = _together([[TOOLS / 'dist_train.sh', config, processes]] * 2, folders, environs, tmp_path)
    if not stale:
        assert [code for code, _ in found] == [0, 0], found
        _check(tmp_path, 4, expected)
        return
    assert [code for code, _ in found] == [2, 2], found
    error = 'error: the ranks do not train alike: the weights of 1 of 18 parameters (backbone.blocks.2.fc.bias) differ '
    for _, text in found:
        assert text.count(error + 'between rank 0 and rank 1') == 1
        assert 'load_from' in text[text.index(error) :]
        assert 'Traceback' not in text
    assert not list((tmp_path / 'my work').glob('rank_*.pth'))
