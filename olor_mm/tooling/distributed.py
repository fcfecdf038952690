"""Several processes without an accelerator: MMEngine's own start would ask for a CUDA device."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device

from .errors import InputError

__all__ = ['has_accelerator', 'prepare_launch', 'require_accelerator']

# What mixed precision wrappers of MMEngine run on.
_AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')


def has_accelerator() -> bool:
    """Whether MMEngine would put a model on something else than the CPU."""
    return bool(get_device() != 'cpu')


def require_accelerator(cfg: Config) -> None:
    """See that a config with mixed precision has something to run it on.

    Raises:
        InputError: If it has not.
    """
    kind = (cfg.get('optim_wrapper') or {}).get('type', '')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    if name.rpartition('.')[2] in ('AmpOptimWrapper', 'AmpOLOROptimWrapper') and get_device() not in _AMP_DEVICES:
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
    """Name rank and size as torch does, from what the launcher left; KeyError says what is missing."""
    environ = os.environ
    if launcher == 'slurm':
        environ['RANK'] = environ['SLURM_PROCID']
        environ['WORLD_SIZE'] = environ['SLURM_NTASKS']
        environ['LOCAL_RANK'] = environ.get('SLURM_LOCALID', '0')
        if 'MASTER_ADDR' not in environ:
            hosts = ['scontrol', 'show', 'hostnames', environ['SLURM_NODELIST']]
            environ['MASTER_ADDR'] = subprocess.run(hosts, capture_output=True, text=True, check=True).stdout.split()[0]
    elif launcher == 'mpi':
        environ['RANK'] = environ['OMPI_COMM_WORLD_RANK']
        environ['WORLD_SIZE'] = environ['OMPI_COMM_WORLD_SIZE']
        environ['LOCAL_RANK'] = environ['OMPI_COMM_WORLD_LOCAL_RANK']
    environ.setdefault('MASTER_PORT', '29500')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        environ[name]
