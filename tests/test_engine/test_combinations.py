"""Rollback beside what else a run can have, against the plain algorithm: the base optimizer, then a pull by hand."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from olor_mm.engine import wrappers
from olor_mm.rollback import Rollback

from ._replicas import ROLLBACK, SmoothBackbone, SmoothModel, replica_config, state_of
from ._toy import ToyModel, make_runner, toy_config

TOLERANCE = 1e-12
# Of the 18 parameters in the order of the model: 2 of the stem, 4 of each block, 2 of the branch, 2 of the head.
BY_HAND = [0.02 + (1 - i / 3) ** 2 * 0.18 for i, count in enumerate((2, 4, 4, 6)) for _ in range(count)] + [0.0, 0.0]


class Pull:
    """After the base optimizer's step what the paper says, one tensor after the other."""

    def __init__(self, params, levels=BY_HAND, **options):
        super().__init__(params, **options)
        self.levels = levels
        self.theta_0 = None

    @torch.no_grad()
    def step(self, closure=None):
        (group,) = self.param_groups
        if self.theta_0 is None:
            self.theta_0 = [p.detach().clone() for p in group['params']]
        super().step(closure)
        for p, theta_0, level in zip(group['params'], self.theta_0, self.levels, strict=True):
            a = level * group['lr'] / group['initial_lr']
            if p.grad is not None:
                p.copy_((1 - a) * p + a * theta_0)


@OPTIMIZERS.register_module(force=True)
class AdamWByHand(Pull, torch.optim.AdamW):
    """AdamW."""


@OPTIMIZERS.register_module(force=True)
class SGDByHand(Pull, torch.optim.SGD):
    """SGD."""


@MODELS.register_module(force=True)
class CheckpointedModel(SmoothModel):
    """Two blocks are computed again in the backward pass; the names of their parameters have a component more."""

    def __init__(self, **options):
        super().__init__(**options)
        for i in (0, 2):
            self.backbone.blocks[i] = checkpoint_wrapper(self.backbone.blocks[i])
        assert any('_checkpoint_wrapped_module' in name for name, _ in self.named_parameters())


def configs(tmp_path, wrapper=None, **overrides):
    """The same run with our rollback and with the pull by hand."""
    ours = replica_config(tmp_path / 'ours', 2, **overrides)
    hand = replica_config(tmp_path / 'hand', 2, rollback=None, **overrides)
    hand.optim_wrapper.optimizer.type += 'ByHand'
    for config in (ours, hand):
        config.optim_wrapper.update(wrapper or {})
    return ours, hand


def check(found, expected):
    assert found['weights'].keys() == expected['weights'].keys()
    for name, value in expected['weights'].items():
        torch.testing.assert_close(found['weights'][name], value, rtol=0, atol=TOLERANCE, msg=name)


RUNNER = {
    'nothing else': {},
    'accumulation': {'wrapper': {'accumulative_counts': 3}},
    'accumulation with a remainder': {'wrapper': {'accumulative_counts': 4}},
    'clipped by norm': {'wrapper': {'clip_grad': {'max_norm': 0.05}}},
    'clipped by value': {'wrapper': {'clip_grad': {'type': 'value', 'clip_value': 0.001}}},
    'a branch that some steps leave out': {'model': {'type': 'SmoothModel', 'every': 3}},
    'activation checkpointing': {'activation_checkpointing': ['backbone.blocks.0', 'backbone.blocks.2']},
    "torch's checkpoint wrapper": {'model': {'type': 'CheckpointedModel'}},
    # torch's compiled Adam corrects its bias in float32.
    'compiled': {'compile': {'backend': 'eager'}, 'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
    'EMA': {'custom_hooks': [{'type': 'EMAHook', 'begin_iter': 3}]},
}


@pytest.mark.parametrize('case', RUNNER)
def test_runner(case, tmp_path, request):
    if case == 'compiled':
        request.getfixturevalue('compiler')
    ours, hand = (make_runner(config) for config in configs(tmp_path, **RUNNER[case]))
    start = state_of(ours)['weights']
    ours.train()
    hand.train()
    check(state_of(ours), state_of(hand))
    theta_0 = state_of(ours)['theta_0']
    assert len(theta_0) == 16
    assert all(torch.equal(value, start[name]) for name, value in theta_0.items())


FLEXIBLE = {
    'nothing else': {},
    "torch's checkpoint wrapper": {'model': {'type': 'CheckpointedModel'}},
    'accumulation with a remainder': {'wrapper': {'accumulative_counts': 4}},
    # torch's compiled Adam corrects its bias in float32.
    'compiled': {'compile': {'backend': 'eager'}, 'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
}


@pytest.mark.parametrize('case', FLEXIBLE)
def test_flexible_runner(case, tmp_path):
    states = []
    for config in configs(tmp_path, **FLEXIBLE[case]):
        config.strategy = {'type': 'SingleDeviceStrategy'}
        config.env_cfg = {'dist_cfg': {'backend': 'gloo'}}
        config.experiment_name = config.work_dir
        torch.manual_seed(0)
        runner = FlexibleRunner.from_cfg(config)
        runner.train()
        states.append(state_of(runner))
    check(*states)
    assert len(states[0]['theta_0']) == 16


@pytest.fixture
def compiler():
    """Skips the test where torch cannot compile the step of SGD by itself, as 2.1 cannot."""
    torch.compiler.reset()
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    try:
        torch.compile(lambda: optimizer.step(), backend='eager')()
    except Exception as error:
        pytest.skip(f'torch {torch.__version__} does not compile SGD: {type(error).__name__}')


def graphs_of_a_compiled_step(level):
    """How many graphs torch compiles while the learning rate changes."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([{'params': [p], 'initial_lr': 0.1}], lr=0.1, momentum=0.9)
    rollback = Rollback(optimizer, {p: level})
    step = torch.compile(lambda: optimizer.step(), backend=backend)
    for number in range(6):
        optimizer.param_groups[0]['lr'] = 0.1 * (1 - number / 7)
        p.grad = torch.ones(3)
        step()
    assert rollback.num_steps == (6 if level else 0)
    return len(graphs)


def test_the_first_step_of_a_compiled_run_compiles_nothing_of_the_rollback(compiler, tmp_path, monkeypatch):
    run = {'compile': {'backend': 'eager'}, 'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}}
    seen = []
    real = wrappers._samples
    monkeypatch.setattr(wrappers, '_samples', lambda params: seen.append(torch.compiler.is_compiling()) or real(params))
    runner = make_runner(toy_config(tmp_path, rollback={'max_level': 0.1}, train_cfg={'max_epochs': 1}, **run))
    runner.train()
    assert seen == [False]


def test_a_compiled_step_is_not_compiled_anew_for_the_rollback(compiler):
    assert graphs_of_a_compiled_step(0.5) == graphs_of_a_compiled_step(0.0) > 0


def test_a_parameter_without_gradient_is_left_alone_in_that_step():
    torch.manual_seed(0)
    model = SmoothModel(every=2)
    config = {'optimizer': {'type': 'AdamW', 'lr': 0.1}, 'rollback': {'max_level': 0.5, 'min_level': 0.5}}
    wrapper = build_optim_wrapper(model, {'constructor': 'olor_mm.OLOROptimWrapperConstructor', **config})
    seen = []
    for _ in range(4):
        wrapper.update_params(model(torch.ones(2, 4), torch.zeros(2, 2), mode='loss')['loss'])
        seen.append((model.backbone.branch.weight.detach().clone(), model.backbone.patch_embed.weight.detach().clone()))
    moved = [[not torch.equal(new, old) for new, old in zip(b, a, strict=True)] for a, b in pairwise(seen)]
    assert moved == [[False, True], [True, True], [False, True]]


@pytest.mark.parametrize('before', [False, True])
def test_converted_to_sync_batch_norm(before):
    """The parameters stay the same objects, whenever it is done."""
    torch.manual_seed(0)
    model = ToyModel()
    plain = build_levels(copy.deepcopy(model))
    if before:
        levels = build_levels(convert_sync_batchnorm(model, 'torch'))
    else:
        wrapper = built(model)
        model = convert_sync_batchnorm(model, 'torch')
        names = {p: name for name, p in model.named_parameters()}
        levels = {names[p]: level for p, level in wrapper.rollback_session.rollback.levels.items()}
    assert isinstance(model.backbone.norm, nn.SyncBatchNorm)
    assert levels == plain


def built(model):
    config = {'optimizer': {'type': 'SGD', 'lr': 0.1}, 'rollback': {'max_level': 0.1, 'min_level': 0.01}}
    return build_optim_wrapper(model, {'constructor': 'olor_mm.OLOROptimWrapperConstructor', **config})


def build_levels(model):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: level for p, level in built(model).rollback_session.rollback.levels.items()}


# ---------------------------------------------------------------- two optimizers


@MODELS.register_module(force=True)
class Pair(SmoothModel):
    """Two backbones in turns, as a generator and a discriminator; the second one in every other step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.other = SmoothBackbone().to(self.head.weight.dtype)
        self.steps = 0

    def train_step(self, data, optim_wrapper):
        inputs, target = (torch.stack(list(data[key])).to(self.head.weight.dtype) for key in ('inputs', 'target'))
        loss = (self.head(self.backbone(inputs)) - target).square().mean()
        optim_wrapper['one'].update_params(loss)
        if self.steps % 2 == 0:
            optim_wrapper['two'].update_params((self.other(inputs) - 1).square().mean())
        self.steps += 1
        return {'loss': loss.detach()}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class PairConstructor:
    """As projects with two networks write it: one wrapper for each, from a config of its own."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.cfg = optim_wrapper_cfg

    def __call__(self, model):
        one = nn.ModuleDict({'backbone': model.backbone, 'head': model.head})
        two = nn.ModuleDict({'backbone': model.other})
        return OptimWrapperDict(
            one=build_optim_wrapper(one, copy.deepcopy(self.cfg['one'])),
            two=build_optim_wrapper(two, copy.deepcopy(self.cfg['two'])),
        )


def pair_config(work_dir, rollback=ROLLBACK):
    config = replica_config(work_dir, 2, model={'type': 'Pair'}, rollback=rollback)
    one = dict(config.optim_wrapper)
    two = copy.deepcopy(one)
    if rollback is None:
        one['optimizer'] = {**one['optimizer'], 'type': 'AdamWByHand'}
        two['optimizer'] = {**two['optimizer'], 'type': 'AdamWByHand', 'levels': [0.5] * 16}
    else:
        two['rollback'] = {'max_level': 0.5, 'min_level': 0.5}
    config.optim_wrapper = {'constructor': 'PairConstructor', 'one': one, 'two': two}
    config.param_scheduler = {'one': config.param_scheduler, 'two': config.param_scheduler}
    return config


def test_optim_wrapper_dict(tmp_path):
    config = pair_config(tmp_path / 'straight')
    runner = make_runner(config)
    start = {k: v.detach().clone() for k, v in runner.model.named_parameters()}
    runner.train()
    final = {k: v.detach().clone() for k, v in runner.model.named_parameters()}
    hand = make_runner(pair_config(tmp_path / 'hand', rollback=None))
    hand.train()
    check(state_of(runner), state_of(hand))
    for name, prefix, steps in (('one', 'backbone', 18), ('two', 'other', 9)):
        rollback = runner.optim_wrapper[name].rollback_session.rollback
        assert rollback.num_steps == steps
        assert len(rollback.levels) == 16
        for key, p in runner.model.named_parameters():
            if key.startswith(prefix):
                assert torch.equal(rollback.anchor(p), start[key])
    # Both are logged, each by layer too.
    (file,) = (tmp_path / 'straight').rglob('scalars.json')
    last = {key: value for line in map(json.loads, file.read_text().splitlines()) for key, value in line.items()}
    for key, name in (('one', 'rollback/discrepancy'), ('two', 'rollback/discrepancy_2')):
        overall, layers = runner.optim_wrapper[key].rollback_session.measure()
        assert last[name] == pytest.approx(overall)
        assert len([k for k in last if k.startswith(f'{name}/')]) == len(layers) == 4
    resumed = make_runner(
        config, work_dir=str(tmp_path / 'resumed'), load_from=str(tmp_path / 'straight' / 'epoch_2.pth'), resume=True
    )
    resumed.train()
    assert all(torch.equal(p, final[k]) for k, p in resumed.model.named_parameters())


# ---------------------------------------------------------------- EMA


@METRICS.register_module(force=True)
class Nothing(BaseMetric):
    """A validation without result."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


class AfterIteration(Hook):
    """Calls a function."""

    def __init__(self, call):
        self.call = call

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.call()


@pytest.mark.parametrize('resume', [False, True])
def test_theta_0_is_never_the_averaged_model(resume, tmp_path):
    """Validation swaps the two models in place, at every epoch, and so does the checkpoint."""
    hooks = [{'type': 'EMAHook', 'begin_iter': 3, 'momentum': 0.3}]
    loader = {'dataset': {'type': 'QuietDataset'}, 'batch_size': 8, 'num_workers': 0}
    loader.update(sampler={'type': 'DefaultSampler', 'shuffle': False}, collate_fn={'type': 'pseudo_collate'})
    validation = {'val_dataloader': loader, 'val_cfg': {}, 'val_evaluator': {'type': 'Nothing'}}
    config = replica_config(tmp_path / 'ema', 2, custom_hooks=hooks, **validation)
    runner = make_runner(config)
    start = state_of(runner)['weights']
    average = {}
    step = 0

    def follow(*_):
        nonlocal step
        step += 1
        for name, p in runner.model.named_parameters():
            share = 0.3 if step > 3 else 1.0  # the first one is a copy
            old = average.get(name, p.detach())
            average[name] = (1 - share) * old + share * p.detach()

    runner.register_hook(AfterIteration(follow), priority='LOWEST')
    runner.train()
    alone = make_runner(replica_config(tmp_path / 'alone', 2))
    alone.train()
    if resume:
        first = str(tmp_path / 'ema' / 'epoch_1.pth')
        runner = make_runner(config, work_dir=str(tmp_path / 'resumed'), load_from=first, resume=True)
        runner.train()
    assert all(torch.equal(v, state_of(alone)['weights'][k]) for k, v in state_of(runner)['weights'].items())
    assert all(torch.equal(v, start[k]) for k, v in state_of(runner)['theta_0'].items())
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    for name, p in hook.ema_model.module.named_parameters():
        torch.testing.assert_close(p.detach(), average[name], rtol=0, atol=TOLERANCE)
        assert not torch.equal(p.detach(), state_of(runner)['weights'][name])
