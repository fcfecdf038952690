"""Several processes without an accelerator: MMEngine's own start would ask for a CUDA device."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from ..registry import type_name
from .errors import InputError

__all__ = ['adopt_ranks', 'has_accelerator', 'prepare_launch', 'require_accelerator']

# What mixed precision wrappers of MMEngine run on.
_AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')
# Variables as torch names them, to what these launchers leave in the environment for them.
_LEFT_BY = {
    'slurm': {'RANK': 'SLURM_PROCID', 'WORLD_SIZE': 'SLURM_NTASKS', 'LOCAL_RANK': 'SLURM_LOCALID'},
    'mpi': {
        'RANK': 'OMPI_COMM_WORLD_RANK',
        'WORLD_SIZE': 'OMPI_COMM_WORLD_SIZE',
        'LOCAL_RANK': 'OMPI_COMM_WORLD_LOCAL_RANK',
    },
}


def adopt_ranks(launcher: str, local_rank: int = 0) -> None:
    """Name the ranks of this process as torch does, from what its launcher left in the environment.

    MMEngine does so with Slurm as it starts, and with MPI not for the local rank, by which it chooses the GPU.

    Args:
        launcher: Who started the process; torchrun has named them itself.
        local_rank: The local rank where nobody says it. Defaults to 0.
    """
    for ours, theirs in _LEFT_BY.get(launcher, {}).items():
        if os.environ.get(theirs):
            os.environ[ours] = os.environ[theirs]
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


def has_accelerator() -> bool:
    """Whether MMEngine would put a model on something else than the CPU."""
    return bool(get_device() != 'cpu')


def require_accelerator(cfg: Config) -> None:
    """See that a config with mixed precision has something to run it on.

    Raises:
        InputError: If it has not.
    """
    name = type_name((cfg.get('optim_wrapper') or {}).get('type'))
    if name in ('AmpOptimWrapper', 'AmpOLOROptimWrapper') and get_device() not in _AMP_DEVICES:
        raise InputError(
            f'mixed precision needs a GPU or another accelerator, and this machine has none (device: {get_device()})',
            'leave --amp away, or set --cfg-options optim_wrapper.type=OptimWrapper where the config asks for it',
        )


def prepare_launch(cfg: Config) -> list[str]:
    """Start the process group over gloo where several processes run on CPUs; otherwise leave it to the Runner.

    Args:
        cfg: The config of the run; its ``launcher`` says who started the processes.

    Returns:
        Lines for the log.

    Raises:
        InputError: If the launcher did not leave what it should in the environment.
    """
    if cfg.launcher == 'none' or has_accelerator():
        return []
    try:
        _adopt_environment(cfg.launcher)
    except KeyError as error:
        raise InputError(
            f'--launcher {cfg.launcher} was given, but {error} is not in the environment',
            'start with tools/dist_train.sh or tools/slurm_train.sh, or leave --launcher away',
        ) from error
    dist_cfg = cfg.setdefault('env_cfg', {}).setdefault('dist_cfg', {})
    asked = dist_cfg.get('backend', 'nccl')
    dist_cfg['backend'] = 'gloo'
    arguments: dict[str, Any] = {}
    if dist_cfg.get('timeout') is not None:
        arguments['timeout'] = timedelta(seconds=dist_cfg['timeout'])
    if not torch.distributed.is_initialized():
        # It is where one command makes several runs.
        torch.distributed.init_process_group('gloo', **arguments)
    # device_ids, which the Runner sets otherwise, are for devices only.
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.setdefault('device_ids', None)
    cfg.model_wrapper_cfg = wrapper
    notes = [f'no accelerator on this machine: {os.environ["WORLD_SIZE"]} processes over gloo instead of {asked}']
    return notes + _local_batch_norm(cfg)


def _local_batch_norm(cfg: Config) -> list[str]:
    """Batch norms of each process by itself: torch's SyncBatchNorm refuses tensors on the CPU."""
    replaced = _replace_sync_bn(cfg.get('model'))
    if cfg.get('sync_bn') is None and not replaced:
        return []
    cfg.sync_bn = None
    return ['batch norms take the statistics of their own process: SyncBatchNorm does not run on CPUs']


def _replace_sync_bn(node: Any) -> int:
    """Turn SyncBN into BN wherever it stands, and count."""
    if isinstance(node, dict):
        is_sync = node.get('type') == 'SyncBN'
        if is_sync:
            node['type'] = 'BN'
        return sum(map(_replace_sync_bn, node.values())) + is_sync
    return sum(map(_replace_sync_bn, node)) if isinstance(node, (list, tuple)) else 0


def _adopt_environment(launcher: str) -> None:
    """See that the environment has what a process group is started from; KeyError says what is missing."""
    environ = os.environ
    for name in ('RANK', 'WORLD_SIZE'):
        environ[_LEFT_BY.get(launcher, {}).get(name, name)]
    adopt_ranks(launcher)
    if launcher == 'slurm' and 'MASTER_ADDR' not in environ:
        hosts = ['scontrol', 'show', 'hostnames', environ['SLURM_NODELIST']]
        environ['MASTER_ADDR'] = subprocess.run(hosts, capture_output=True, text=True, check=True).stdout.split()[0]
    environ.setdefault('MASTER_PORT', '29500')
    environ['MASTER_ADDR']
