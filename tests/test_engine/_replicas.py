"""A model without batch statistics and dropout, of which N replicas on 1/N of a batch are one on the whole of it."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import FlexibleRunner
from torch import nn

from olor_mm.tooling.distributed import prepare_launch

from ._toy import ToyDataset, make_runner, toy_config

GLOBAL_BATCH = 8
ROLLBACK = {'max_level': 0.2, 'min_level': 0.02, 'power': 2}


class SmoothBlock(nn.Module):
    """A norm of each sample and a layer."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.fc(self.norm(x)))


@MODELS.register_module(force=True)
class SmoothBackbone(BaseModule):
    """A stem, three blocks, and a branch that may be left out of a step."""

    def __init__(self, width=8, init_cfg=None):
        super().__init__(init_cfg)
        self.patch_embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList([SmoothBlock(width) for _ in range(3)])
        self.branch = nn.Linear(width, width)

    def forward(self, x, branch=True):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.branch(x) if branch else x


@MODELS.register_module(force=True)
class SmoothModel(BaseModel):
    """A backbone and a head.

    Args:
        dtype: Of the weights.
        every: The branch is used in every so many steps.
    """

    def __init__(self, dtype='float64', every=1, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = SmoothBackbone()
        self.head = nn.Linear(8, 2)
        self.every = every
        self.calls = 0
        self.to(getattr(torch, dtype))

    def forward(self, inputs, target, mode='tensor'):
        inputs, target = (torch.stack(list(x)).to(self.head.weight.dtype) for x in (inputs, target))
        out = self.head(self.backbone(inputs, branch=self.calls % self.every == 0))
        self.calls += int(self.every > 1)  # a constant model compiles once
        return {'loss': (out - target).square().mean()} if mode == 'loss' else out


@DATASETS.register_module(force=True)
class QuietDataset(ToyDataset):
    """The toy's pairs without augmentation."""

    def prepare_data(self, idx):
        data = self.get_data_info(idx)
        return {'inputs': data['inputs'], 'target': data['target']}


@HOOKS.register_module(force=True)
class RankDump(Hook):
    """Every rank leaves its weights and theta_0 in the work dir."""

    def after_run(self, runner):
        torch.save(state_of(runner), Path(runner.work_dir) / f'rank_{runner.rank}.pth')


def state_of(runner):
    """Weights and theta_0, by name."""
    params = dict(getattr(runner.model, 'module', runner.model).named_parameters())
    session = getattr(runner.optim_wrapper, 'rollback_session', None)
    rollback = session.rollback if session is not None else None
    anchors = {k: rollback.anchor(p) for k, p in params.items()} if rollback is not None else {}
    return {
        'weights': {k: p.detach().clone() for k, p in params.items()},
        'theta_0': {k: anchor.clone() for k, anchor in anchors.items() if anchor is not None},
    }


def replica_config(work_dir, world=1, *, rollback=ROLLBACK, optimizer=None, **overrides):
    """A config of 9 iterations whose global batch is the same for every number of processes."""
    optimizer = optimizer or {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.05}
    options = {'model': {'type': 'SmoothModel'}, 'custom_hooks': [], **overrides}
    config = toy_config(work_dir, rollback=rollback, optimizer=optimizer, **options)
    config.train_dataloader.dataset.type = 'QuietDataset'
    config.train_dataloader.batch_size = GLOBAL_BATCH // world
    return config


def flexible_run(config):
    """State of this rank after a run by MMEngine's FlexibleRunner and its DDPStrategy."""
    config.update(launcher='pytorch', env_cfg={'dist_cfg': {'backend': 'gloo'}})
    # MMEngine's own start of the processes asks for a CUDA device.
    torch.distributed.init_process_group('gloo')
    wrapper = {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False, 'device_ids': None}
    config.strategy = {'type': 'DDPStrategy', 'model_wrapper': wrapper}
    runner = FlexibleRunner.from_cfg(config)
    runner.train()
    return state_of(runner)


def replica(config, **changes):
    """The Runner of this rank, in a process group of the ranks that the environment tells of."""
    config.launcher = 'pytorch'
    prepare_launch(config)
    return make_runner(config, **changes)
