"""Runs whose model FSDP has cut into shards, on CPUs over gloo."""

from pathlib import Path

import torch
from mmengine.registry import FUNCTIONS
from mmengine.runner import FlexibleRunner

from ._replicas import SmoothBackbone, replica_config

#: Levels of 0 too, weight decay, a multiplier that goes by name, and a clipped norm.
WRAPPER = {
    'paramwise_cfg': {'custom_keys': {'backbone.blocks.1': {'lr_mult': 0.5}}},
    'clip_grad': {'max_norm': 0.05},
}
ROLLBACK = {'max_level': 0.2, 'power': 2}


@FUNCTIONS.register_module(force=True)
def wrap_blocks(module, recurse, nonwrapped_numel):
    """Wrap the backbone's blocks one by one, and the backbone; the rest is the root's."""
    return recurse or isinstance(module, (torch.nn.Sequential, SmoothBackbone))


@FUNCTIONS.register_module(force=True)
def is_block(module):
    return isinstance(module, torch.nn.Sequential)


def sharded_config(
    work_dir, world=2, *, state='full', blocks=True, lean=False, wrapper=WRAPPER, rollback=ROLLBACK, **overrides
):
    """That of a run of 9 iterations, with a checkpoint every 3."""
    strategy = {'type': 'olor_mm.FSDPStrategy', 'state_dict_cfg': state}
    strategy['model_wrapper'] = {'type': 'MMFullyShardedDataParallel'}
    if blocks:
        strategy['model_wrapper']['auto_wrap_policy'] = 'wrap_blocks'
    if lean:
        strategy['model_wrapper']['mixed_precision'] = {'param_dtype': 'bfloat16', 'reduce_dtype': 'float32'}
        strategy['activation_checkpointing'] = {'check_fn': 'is_block'}
    options = {'launcher': 'pytorch', 'env_cfg': {}, 'strategy': strategy, **overrides}
    config = replica_config(work_dir, world, rollback=rollback, **options)
    config.optim_wrapper.update(wrapper)
    config.default_hooks.logger.interval = 1
    return config


def probe(rank):
    """Whether this torch shards on a CPU at all."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.distributed.init_process_group('gloo')
    try:
        FullyShardedDataParallel(torch.nn.Linear(2, 2), device_id=torch.device('cpu'))(torch.ones(1, 2))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f'FSDP of torch {torch.__version__} does not run on a CPU: {error}'
    return ''


_runs = iter(range(10**6))


def sharded_run(config, **changes):
    """A FlexibleRunner of its own name that has been trained."""
    config = config.copy()
    for key, value in changes.items():
        config[key] = value
    config.experiment_name = f'sharded_{next(_runs)}'
    config.visualizer.name = f'visualizer of {config.experiment_name}'
    torch.manual_seed(0)
    runner = FlexibleRunner.from_cfg(config)
    runner.train()
    return runner


def shards_of(runner):
    """What this rank holds: weights, theta_0, momenta; by name."""
    params = {name.replace('_fsdp_wrapped_module.', ''): p for name, p in runner.model.named_parameters()}
    rollback = runner.optim_wrapper.rollback_session.rollback
    state = runner.optim_wrapper.optimizer.state
    return {
        'weights': {name: p.detach().clone() for name, p in params.items()},
        'theta_0': {name: rollback.anchor(p).clone() for name, p in params.items() if rollback.anchor(p) is not None},
        'state': {
            name: {k: torch.as_tensor(v).clone() for k, v in state.get(p, {}).items()} for name, p in params.items()
        },
    }


def saved(file):
    """A checkpoint's weights and the optimizer's state, flat."""
    checkpoint = torch.load(Path(file), weights_only=False)
    found = {f'weights {name}': value for name, value in checkpoint['state_dict'].items()}
    for index, state in checkpoint['optimizer']['state'].items():
        found.update({f'state {index} {key}': torch.as_tensor(value) for key, value in state.items()})
    return found, checkpoint
