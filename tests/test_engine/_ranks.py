"""Jobs in several processes over gloo, forked from a server that has imported torch and MMEngine already."""

import io
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

# What a Runner imports on its way; what is not there is left out.
_PRELOAD = ['torch._dynamo', 'torchvision', 'matplotlib.figure', 'yapf.yapflib.yapf_api', 'mmengine.runner']
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload([*_PRELOAD, 'olor_mm.engine'])


def on_ranks(world: int, job: Callable[..., Any], *args: Any, timeout: float = 300.0) -> list[Any]:
    """What ``job(rank, *args)`` returns in each of ``world`` processes that can form a process group.

    Args:
        world: How many processes.
        job: A function of a module; it starts the process group by itself, from the environment.
        args: Handed to it.
        timeout: Seconds until all are killed. Defaults to 300.

    Raises:
        AssertionError: If one raises or dies; the text has its traceback.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    pipes = [_context.Pipe(duplex=False) for _ in range(world)]
    ranks = [
        _context.Process(target=_run, args=(pipe, rank, world, port, job, args), daemon=True)
        for rank, (_, pipe) in enumerate(pipes)
    ]
    deadline = time.monotonic() + timeout
    try:
        for process in ranks:
            process.start()
        for _, sender in pipes:
            sender.close()
        return [_receive(rank, receiver, deadline) for rank, (receiver, _) in enumerate(pipes)]
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _receive(rank: int, pipe: Connection, deadline: float) -> Any:
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        raise AssertionError(f'rank {rank} has not ended in time')
    try:
        failed, data = pipe.recv()
    except EOFError:
        raise AssertionError(f'rank {rank} has died') from None
    if failed:
        raise AssertionError(f'rank {rank}: {data}')
    return torch.load(io.BytesIO(data), weights_only=False)


def _run(pipe: Connection, rank: int, world: int, port: int, job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        data = io.BytesIO()
        torch.save(job(rank, *args), data)
        pipe.send((False, data.getvalue()))
    except BaseException:
        pipe.send((True, traceback.format_exc()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
