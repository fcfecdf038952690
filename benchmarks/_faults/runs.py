"""Starting the job: processes that are forked from one which has imported everything, or real commands."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .job import BEFORE, CONFIG, digests

__all__ = ['BENCHMARKS', 'REPO', 'Outcome', 'command', 'environment', 'ranks', 'same_weights', 'train', 'undamaged']

BENCHMARKS = Path(__file__).resolve().parents[1]
REPO = BENCHMARKS.parent
TIMEOUT = 240  # seconds
# With what MMEngine imports late: for its list of versions, to print the config, and to draw.
_PRELOAD = [
    *('torch', 'mmengine.runner', 'olor_mm.tooling', '_faults.job'),
    *('torchvision', 'yapf.yapflib.yapf_api', 'matplotlib.pyplot', 'matplotlib.backends.backend_agg'),
]


@dataclass
class Outcome:
    """How a process ended: its exit code, negative for a signal, and what it printed."""

    code: int | None
    text: str


def _context() -> Any:
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_PRELOAD)
    return context


def _child(arguments: Sequence[str], log: str, environ: Mapping[str, str]) -> None:
    """In the new process: what ``python tools/train.py ARGUMENTS`` does."""
    os.environ.update(environ)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.setsid()
    import torch

    from olor_mm.tooling import run_command
    from olor_mm.tooling import train as tool

    torch.set_num_threads(1)
    sys.argv[0] = 'tools/train.py'
    sys.exit(run_command(tool, arguments))


def _arguments(folder: Path, options: Sequence[str]) -> list[str]:
    config = folder.with_name(f'{folder.name}.py')
    if not config.exists():
        config.write_text(CONFIG)
    return [str(config), '--work-dir', str(folder), *options]


def _start(folder: Path, options: Sequence[str], environ: Mapping[str, str], log: Path) -> Any:
    process = _context().Process(target=_child, args=(_arguments(folder, options), str(log), dict(environ)))
    # The process that the others are forked from starts with the first; it looks for what to import there.
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = environment()['PYTHONPATH']
    try:
        process.start()
    finally:
        if before is None:
            del os.environ['PYTHONPATH']
        else:
            os.environ['PYTHONPATH'] = before
    return process


def _end(process: Any) -> int | None:
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return int(process.exitcode)


def train(folder: Path, *options: str) -> Outcome:
    """Train the job in a process of its own, to its end or its fault."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f'{folder.name}.{time.monotonic_ns()}.log')
    code = _end(_start(folder, options, {'OMP_NUM_THREADS': '1'}, log))
    return Outcome(code, log.read_text() if log.exists() else '')


def ranks(folder: Path, number: int, *options: str) -> Outcome:
    """Train it in several processes over gloo; the outcome is that of rank 0."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    log = folder.with_name(f'{folder.name}.{time.monotonic_ns()}.log')
    shared = {'WORLD_SIZE': str(number), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'OMP_NUM_THREADS': '1'}
    processes = [
        _start(
            folder,
            [*options, '--launcher', 'pytorch'],
            {**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            log if rank == 0 else log.with_suffix(f'.{rank}'),
        )
        for rank in range(number)
    ]
    codes = [_end(process) for process in processes]
    return Outcome(codes[0], log.read_text())


def environment() -> dict[str, str]:
    """For real commands: one thread, and our packages in the path."""
    path = os.pathsep.join([str(REPO), str(BENCHMARKS), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path, 'PYTHON': sys.executable}


def command(
    arguments: Sequence[object], log: Path, until: str | None = None, send: int | None = None, group: bool = False
) -> Outcome:
    """Run a command in a session of its own; once its output holds a text, send a signal to it, or to its whole group.

    Raises:
        RuntimeError: If processes of it are left behind.
    """
    with log.open('w') as stream:
        process = subprocess.Popen(
            [str(part) for part in arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    deadline = time.monotonic() + TIMEOUT
    try:
        while until and until not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if send is not None and process.poll() is None:
            (os.killpg if group else os.kill)(process.pid, send)
        code = process.wait(max(deadline - time.monotonic(), 1))
        # Workers see within seconds that their parent is gone.
        deadline = min(deadline, time.monotonic() + 20)
        while _alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        left = _alive(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if left and code is not None:
        raise RuntimeError(f'{arguments[0]} left processes behind')
    return Outcome(code, log.read_text())


def _alive(group: int) -> bool:
    """Whether a process of the group still runs; orphans that have ended may stay until the system reaps them."""
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, of_group = stat.read_text().rpartition(') ')[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state not in 'ZX':
            return True
    return False


def undamaged(folder: Path, checkpoints: Path | None = None) -> list[str]:
    """What is wrong with the checkpoints after a fault, in words; empty where nothing is."""
    from olor_mm.engine.integrity import damage

    checkpoints = checkpoints or folder
    noted = folder / BEFORE
    before = json.loads(noted.read_text()) if noted.exists() else {}
    after = digests(checkpoints) if checkpoints.is_dir() else {}
    wrong = [f'{name} is gone' for name in before if name not in after]
    wrong += [f'{name} was changed' for name in before if name in after and before[name] != after[name]]
    for name in after:
        if found := damage(checkpoints / name):
            wrong.append(f'{name}: {found}')
    record = folder / 'last_checkpoint'
    if record.exists() and not Path(record.read_text()).is_file():
        wrong.append('last_checkpoint names no file')
    return wrong


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights, the same optimizer's state and theta_0, bit for bit."""
    import torch

    from olor_mm.engine import load_from_local

    def flat(node: Any, path: str = '') -> dict[str, Any]:
        if isinstance(node, dict):
            return {k: v for key in node for k, v in flat(node[key], f'{path}/{key}').items()}
        return {path: node}

    if not (one.is_file() and other.is_file()):
        return False
    states = []
    for file in (one, other):
        content = load_from_local(str(file), 'cpu')
        states.append({**flat(content['state_dict']), **flat(content['optimizer'].get('state', {}))})
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key]
        for key, value in states[0].items()
    )
