"""UnfreezeHook on several processes: gradients of what is unfrozen are reduced, the old wrapper is gone."""

import gc
import weakref

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import FlexibleRunner
from torch.nn.parallel import DistributedDataParallel

from ._ranks import on_ranks
from ._replicas import ROLLBACK, flexible_run, replica, replica_config, state_of
from ._toy import make_runner

#: The last block after one epoch of three iterations, the rest after two.
HOOKS_AT = [
    {'type': 'olor_mm.UnfreezeHook', 'train': r'backbone\.blocks\.2', 'epoch': 1},
    {'type': 'olor_mm.UnfreezeHook', 'train': [r'backbone\.patch', r'backbone\.'], 'iter': 6},
]


def config_of(work_dir, world, **options):
    model = {'type': 'olor_mm.Tuned', 'of': 'SmoothModel', 'method': 'Linear'}
    return replica_config(work_dir, world, model=model, custom_hooks=[*HOOKS_AT, {'type': 'Wrapped'}], **options)


@HOOKS.register_module(force=True)
class Wrapped(Hook):
    """Looks at the wrapper of each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen, self.gradients = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.seen or self.seen[-1]() is not runner.model:
            self.seen.append(weakref.ref(runner.model))

    def after_run(self, runner):
        gc.collect()
        if isinstance(runner.model, DistributedDataParallel):
            assert [seen() is not None for seen in self.seen] == [False, False, True]


def train(rank, work_dir, options):
    runner = replica(config_of(work_dir, 2, **options))
    runner.train()
    config = runner.cfg.copy()
    config.custom_hooks = HOOKS_AT
    resumed = make_runner(config, work_dir=f'{work_dir}_resumed', load_from=f'{work_dir}/epoch_2.pth', resume=True)
    resumed.train()
    return state_of(runner), state_of(resumed)


def test_two_ranks_are_one_process_with_the_whole_batch(tmp_path):
    options = {'optimizer': {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.05}, 'rollback': ROLLBACK}
    runner = make_runner(config_of(tmp_path / 'alone', 1, **options))
    start = state_of(runner)['weights']
    runner.train()
    alone = state_of(runner)
    assert not any(torch.equal(alone['weights'][name], value) for name, value in start.items())
    ranks = on_ranks(2, train, str(tmp_path / 'ranks'), options)
    for straight, resumed in ranks:
        for kind, values in alone.items():
            for name, value in values.items():
                assert torch.equal(straight[kind][name], ranks[0][0][kind][name]), (kind, name)
                assert torch.equal(straight[kind][name], resumed[kind][name]), (kind, name)
                assert (straight[kind][name] - value).abs().max() <= 1e-13, (kind, name)
    assert all(torch.equal(alone['theta_0'][name], start[name]) for name in alone['theta_0'])


def flexible(rank, work_dir):
    return flexible_run(config_of(work_dir, 2))


def test_flexible_runner(tmp_path):
    runner = make_runner(config_of(tmp_path / 'alone', 1))
    runner.train()
    for state in on_ranks(2, flexible, str(tmp_path / 'ranks')):
        for name, value in state_of(runner)['weights'].items():
            assert (state['weights'][name] - value).abs().max() <= 1e-13, name


def shared_out(rank, work_dir):
    optimizer = {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.05}
    config = config_of(work_dir, 2, optimizer=optimizer)
    config.custom_hooks = HOOKS_AT
    config.default_hooks.checkpoint = {'type': 'olor_mm.DurableCheckpointHook', 'interval': 1}
    runner = replica(config)
    runner.train()
    return state_of(runner)


@pytest.mark.slow
def test_an_optimizer_whose_state_is_shared_out(tmp_path):
    runner = make_runner(config_of(tmp_path / 'alone', 1))
    runner.train()
    for state in on_ranks(2, shared_out, str(tmp_path / 'ranks'), timeout=60):
        for name, value in state_of(runner)['weights'].items():
            assert (state['weights'][name] - value).abs().max() <= 1e-13, name


def sharded(rank, work_dir):
    config = config_of(work_dir, 2)
    config.update(launcher='pytorch', env_cfg={}, strategy={'type': 'olor_mm.FSDPStrategy'})
    with pytest.raises(ValueError, match=r'the model is in MMFullyShardedDataParallel.*use DistributedDataParallel'):
        FlexibleRunner.from_cfg(config).train()
    return True


@pytest.mark.slow
def test_shards_are_refused_before_training(tmp_path):
    assert on_ranks(2, sharded, str(tmp_path), timeout=60) == [True, True]
