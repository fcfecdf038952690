"""One training step of any config, and what weight rollback must have made of it.

The first step of SGD or Adam can be computed from the state that the optimizer keeps. So where a weight would be
without rollback is known, and with it where the rollback must have put it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from olor_mm.rollback import ANCHOR_KEY

_numbers = itertools.count()


@dataclass
class Step:
    """A run that made one step.

    Attributes:
        runner: The run, at its end.
        before: Parameter to its value just before the step.
        rates: Parameter to its learning rate at the step, and to the one that the schedule starts from.
    """

    runner: Runner
    before: dict[Tensor, Tensor] = field(default_factory=dict)
    rates: dict[Tensor, tuple[float, float]] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, Tensor]:
        """Name to parameter, of the whole model."""
        return dict(self.runner.model.named_parameters())

    @property
    def anchored(self) -> dict[str, Tensor]:
        """Name to theta_0, of what the optimizer's state holds one for."""
        state = self.runner.optim_wrapper.optimizer.state
        return {name: state[p][ANCHOR_KEY] for name, p in self.names.items() if ANCHOR_KEY in state.get(p, ())}


class _Recorder(Hook):
    priority = 'VERY_LOW'

    def __init__(self, step: Step) -> None:
        self.step = step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        assert not self.step.before, 'this config makes more than one step'
        self.step.before = {p: p.detach().clone() for p in runner.model.parameters()}
        for group in runner.optim_wrapper.optimizer.param_groups:
            rates = (group['lr'], group.get('initial_lr', group['lr']))
            self.step.rates.update(dict.fromkeys(group['params'], rates))


def load(file: Path, options: Mapping[str, Any]) -> Config:
    """A config with options as ``--cfg-options`` gives them; a single step, nothing but training."""
    cfg = Config.fromfile(file)
    parts = ('dataloader', 'cfg', 'evaluator')
    only_training = {f'{split}_{part}': None for split in ('val', 'test') for part in parts}
    cfg.merge_from_dict({**only_training, **options})
    for name in only_training:
        cfg[name] = None
    return cfg


def one_step(cfg: Config, work_dir: Path) -> Step:
    """Trains in this process."""
    cfg.work_dir = str(work_dir)
    # MMEngine keeps message hubs, scopes and visualizers by name.
    cfg.experiment_name = f'inherit_{next(_numbers)}'
    cfg.visualizer = dict(type='Visualizer', vis_backends=[], name=cfg.experiment_name)
    cfg.default_hooks.checkpoint = None
    step = Step(Runner.from_cfg(cfg))
    step.runner.register_hook(_Recorder(step))
    step.runner.train()
    assert step.runner.iter == 1
    return step


def free_move(before: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], lr: float) -> Tensor:
    """What the first step of SGD, Adam or AdamW takes away from a weight, without rollback."""
    if 'momentum_buffer' in state:
        return lr * state['momentum_buffer']
    beta1, beta2 = group['betas']
    root = (state['exp_avg_sq'] / (1 - beta2)).sqrt() + group['eps']
    # Not every torch says it; no Adam of ours has weight decay.
    decay = group['weight_decay'] * before if group.get('decoupled_weight_decay', True) else 0.0
    return lr * (state['exp_avg'] / (1 - beta1) / root + decay)


def check_pulled(before: Tensor, after: Tensor, move: Tensor, strength: float) -> bool:
    """One weight is at lerp(theta_pre, theta_0, a), theta_0 being where it was before its first step.

    Returns:
        Whether that is told from a step without rollback: the pull is larger than what float32 rounds away.
    """
    assert torch.isfinite(move).all()
    rounding = 2 * torch.finfo(before.dtype).eps * before.norm().item()
    pull = strength * move.norm().item()
    error = (after - (before - (1 - strength) * move)).norm().item()
    assert error <= rounding + 1e-5 * move.norm().item()
    return pull > 10 * rounding


def check_step(step: Step, max_level: float, power: float) -> dict[str, float]:
    """Every weight of the run is where weight rollback must have put it.

    Args:
        step: The run.
        max_level: iota_1.
        power: gamma; iota_2 is 0.

    Returns:
        Name to level of what is pulled back.
    """
    wrapper = step.runner.optim_wrapper
    layers, anchored = wrapper.rollback_session.layers, step.anchored
    assert anchored
    levels, seen = {}, 0
    for group in wrapper.optimizer.param_groups:
        for name, p in step.names.items():
            if not any(p is one for one in group['params']) or not wrapper.optimizer.state.get(p):
                continue
            lr, initial_lr = step.rates[p]
            level = max_level * (1 - layers.index[name] / layers.num_layers) ** power if name in layers.index else 0.0
            move = free_move(step.before[p], wrapper.optimizer.state[p], group, lr)
            seen += check_pulled(step.before[p], p.detach(), move, level * lr / initial_lr)
            assert (level > 0) == (name in anchored)
            if level:
                levels[name] = level
                assert torch.equal(anchored[name], step.before[p])
    assert levels.keys() == anchored.keys()
    assert seen > len(levels) / 2, f'the pull can be seen in {seen} of {len(levels)} weights only'
    return levels
