"""UnfreezeHook: equal to a loop by hand, exact on resume, whoever groups the parameters and whoever froze them."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODEL_WRAPPERS, MODELS
from torch import nn

from olor_mm.engine import UnfreezeHook
from olor_mm.engine.rebuilding import check_wrapper

from ._toy import ToyBackbone, make_runner, toy_config, weights

LINEAR = {'type': 'olor_mm.Tuned', 'of': 'ToyModel', 'method': 'Linear'}
RANDOM = {'type': 'olor_mm.ResumableRandomnessHook'}
ROLLBACK = {'max_level': 0.2, 'min_level': 0.02, 'power': 2}
ADAM = {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.05}
GROUPS = {'norm_decay_mult': 0.0, 'custom_keys': {'head': {'lr_mult': 3.0}}}
#: In two steps: the last block, then all of the backbone.
STEPS = [('backbone.blocks.2', 1), ('backbone', 2)]


def hooks(*steps, unit='epoch'):
    return [RANDOM, *({'type': 'olor_mm.UnfreezeHook', 'train': f'^{name}', unit: at} for name, at in steps)]


def config_of(work_dir, steps=STEPS, unit='epoch', wrapper=None, **options):
    config = toy_config(work_dir, **{'model': LINEAR, 'custom_hooks': hooks(*steps, unit=unit), **options})
    config.optim_wrapper.update(wrapper or {})
    return config


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@HOOKS.register_module(force=True)
class ByHand(Hook):
    """The same by the plainest means, on a model that is not tuned: flags and modes are set in every iteration."""

    def __init__(self, steps, unit):
        self.steps, self.unit = steps, unit

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        now = [name for name, at in self.steps if getattr(runner, self.unit) >= at]
        for name, param in runner.model.backbone.named_parameters():
            param.requires_grad_(any(f'backbone.{name}'.startswith(each) for each in now))
        for module in runner.model.backbone.modules():
            params = [*module.parameters()]
            module.train(any(p.requires_grad for p in params))


@pytest.mark.parametrize('unit', ['epoch', 'iter'])
def test_equal_to_a_loop_by_hand(unit, tmp_path):
    by_epoch = unit == 'epoch'
    steps = [(name, at if unit == 'epoch' else 5 * at) for name, at in STEPS]
    options = {'optimizer': {**ADAM, 'weight_decay': 0.5}, 'by_epoch': by_epoch, 'workers': int(not by_epoch)}
    runner = make_runner(config_of(tmp_path / 'a', steps, unit, **options))
    runner.train()
    by_hand = [RANDOM, {'type': 'ByHand', 'steps': steps, 'unit': unit}]
    plain = make_runner(config_of(tmp_path / 'b', **options, model={'type': 'ToyModel'}, custom_hooks=by_hand))
    plain.train()
    assert same(weights(runner), weights(plain))


RESUMED = {
    'OLOR': {'optimizer': ADAM, 'rollback': ROLLBACK, 'custom_hooks': [*hooks(*STEPS), {'type': 'EMAHook'}]},
    'OLOR, SGD without state': {'optimizer': {'type': 'SGD', 'lr': 0.05}, 'rollback': ROLLBACK},
    'OLOR, groups': {'optimizer': ADAM, 'rollback': ROLLBACK, 'wrapper': {'paramwise_cfg': GROUPS}},
    'groups, accumulation': {'optimizer': ADAM, 'wrapper': {'paramwise_cfg': GROUPS, 'accumulative_counts': 3}},
}


@pytest.mark.parametrize('case', RESUMED)
def test_resumed_before_at_and_after_equals_uninterrupted(case, tmp_path):
    config = config_of(tmp_path / 'straight', **RESUMED[case])
    straight = make_runner(config)
    start = weights(straight)
    straight.train()
    found = weights(straight)
    one, two = (torch.load(tmp_path / 'straight' / f'epoch_{i}.pth', weights_only=False) for i in (1, 2))
    assert same({k: v for k, v in one['state_dict'].items() if 'backbone' in k and 'running' not in k},
                {k: v for k, v in start.items() if 'backbone' in k and 'running' not in k})  # fmt: skip
    assert not torch.equal(two['state_dict']['backbone.blocks.2.weight'], start['backbone.blocks.2.weight'])
    assert torch.equal(two['state_dict']['backbone.blocks.1.weight'], start['backbone.blocks.1.weight'])
    assert not any(torch.equal(found[k], start[k]) for k in found if k.endswith('weight'))
    for epoch in (1, 2):
        file = str(tmp_path / 'straight' / f'epoch_{epoch}.pth')
        resumed = make_runner(config, work_dir=str(tmp_path / f'from {epoch}'), load_from=file, resume=True)
        resumed.train()
        assert same(weights(resumed), found)
        session = getattr(resumed.optim_wrapper, 'rollback_session', None)
        if session is not None:
            for name, p in session.names.items():
                if name.startswith('backbone'):
                    assert torch.equal(session.rollback.anchor(p), start[name]), name


@MODELS.register_module(force=True)
class StagedBackbone(ToyBackbone):
    """Freezes its stem and first blocks as OpenMMLab's backbones do: anew whenever it is put into train mode."""

    def __init__(self, frozen_stages=2, stubborn=False, **kwargs):
        super().__init__(**kwargs)
        self.frozen_stages, self.stubborn = frozen_stages, stubborn
        self.blocks[0].register_module('norm', nn.BatchNorm1d(8))
        self.train()

    def train(self, mode=True):
        super().train(mode)
        stages = [self.patch_embed, *self.blocks][: 4 if self.stubborn else self.frozen_stages + 1]
        for stage in stages:
            stage.eval()
            stage.requires_grad_(False)
        return self


STAGED = {'type': 'ToyModel', 'backbone': {'type': 'StagedBackbone'}}


def test_what_was_loaded_is_pulled_back_once_it_is_trained(tmp_path):
    """With roots='loaded' the rollback joins the optimizer when nothing of it is trained yet."""
    torch.save(ToyBackbone().state_dict(), tmp_path / 'pretrained.pth')
    model = {**LINEAR, 'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'pretrained.pth')}}}
    runs = []
    for roots in (('backbone',), 'loaded'):
        rollback = {**ROLLBACK, 'roots': roots}
        runner = make_runner(config_of(tmp_path / str(len(runs)), model=model, optimizer=ADAM, rollback=rollback))
        runner.train()
        runs.append(weights(runner))
    assert same(*runs)


def test_stages_that_the_model_itself_freezes(tmp_path):
    runner = make_runner(config_of(tmp_path, [('backbone.blocks.0', 1)], model=STAGED))
    start = weights(runner)
    runner.train()
    found, model = weights(runner), runner.model
    changed = {name for name in start if 'weight' in name and not torch.equal(found[name], start[name])}
    assert changed == {'backbone.blocks.0.weight', 'backbone.blocks.2.weight', 'backbone.norm.weight', 'head.weight'}
    model.train()
    model(torch.randn(4, 4), torch.randn(4, 2))
    # What stays frozen goes on in eval mode, though frozen_stages had to be lowered below it.
    assert [m.training for m in (model.backbone.patch_embed, *model.backbone.blocks)] == [False, True, False, True]
    assert [p.requires_grad for p in model.backbone.blocks[1].parameters()] == [False, False]
    assert model.backbone.frozen_stages == 0


def test_the_log_says_it_and_a_test_run_does_nothing(tmp_path):
    runner = make_runner(config_of(tmp_path, optimizer=ADAM, wrapper={'paramwise_cfg': GROUPS}))
    for hook in runner.hooks:
        hook.before_run(runner)
    assert not any(p.requires_grad for p in runner.model.backbone.parameters())
    runner.train()
    (log,) = tmp_path.rglob('*.log')
    rows = log.read_text().splitlines()
    assert [row.partition(' - ')[2].rpartition('INFO - ')[2] for row in rows if 'tensors more' in row] == [
        '2 tensors more are trained from epoch 1 on (olor_mm.UnfreezeHook)',
        '8 tensors more are trained from epoch 2 on (olor_mm.UnfreezeHook)',
    ]
    # The same groups as if nothing had ever been frozen.
    free = make_runner(config_of(tmp_path / 'free', [], optimizer=ADAM, model={'type': 'ToyModel'}))
    free = free.build_optim_wrapper({**free.optim_wrapper, 'paramwise_cfg': GROUPS})
    expected = [(group['weight_decay'], len(group['params'])) for group in free.optimizer.param_groups]
    assert [(g['weight_decay'], len(g['params'])) for g in runner.optim_wrapper.optimizer.param_groups] == expected


WRONG = {
    'neither': ({'train': 'x'}, 'epoch or iter, exactly one'),
    'both': ({'train': 'x', 'epoch': 1, 'iter': 2}, 'exactly one of them; they are 1 and 2'),
    'negative': ({'train': 'x', 'epoch': -1}, 'epoch=-1 must be a whole number of 0 or more'),
    'a fraction': ({'train': 'x', 'iter': 1.5}, r'iter=1\.5 must be a whole number'),
    'a flag': ({'train': 'x', 'epoch': True}, 'epoch=True must be a whole number'),
    'no patterns': ({'train': [], 'epoch': 1}, r'train=\[\] names nothing'),
    'no expression': ({'train': '(', 'epoch': 1}, r"train='\(': '\(' is no regular expression"),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_options_are_said_when_it_is_built(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=f'olor_mm.UnfreezeHook: .*{message}'):
        UnfreezeHook(**options)


LATER = {
    'after the end': ({'steps': [('backbone', 3)]}, 'epoch=3, but training ends after 3.*say 2 at most'),
    'after the last iteration': ({'steps': [('backbone', 18)], 'unit': 'iter'}, 'iter=18, but .* ends after 18'),
    'epochs of a loop by iterations': ({'by_epoch': False}, r'epoch=1, but train_cfg counts iterations: say iter='),
    'finds nothing': ({'steps': [('bakbone', 1)]}, r"train='\^bakbone' is found in no parameter of ToyModel; .*as"),
    'trained already': ({'steps': [('head', 1)]}, r"train=\['\^head'\] finds 2 parameters, .* trained from the start"),
    'frozen again': (
        {'model': {**STAGED, 'backbone': {'type': 'StagedBackbone', 'stubborn': True}}},
        'ToyModel freezes 2 parameters anew whenever it is put into train mode: backbone.blocks.2.weight',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', LATER)
def test_what_cannot_be_is_said_before_training(case, tmp_path):
    options, message = LATER[case]
    runner = make_runner(config_of(tmp_path, **options))
    before = [(m.training, getattr(m, 'frozen_stages', None)) for m in runner.model.modules()]
    with pytest.raises(ValueError, match=f'olor_mm.UnfreezeHook: {message}|^{message}'):
        runner.train()
    assert runner.iter == 0
    assert [(m.training, getattr(m, 'frozen_stages', None)) for m in runner.model.modules()] == before


def test_what_comes_later_in_the_process_is_not_of_this_run(tmp_path):
    runner = make_runner(config_of(tmp_path, rollback=ROLLBACK, optimizer=ADAM))
    cfg = runner.optim_wrapper
    runner.train()
    with pytest.raises(ValueError, match='all 10 parameters there are frozen'):
        build_optim_wrapper(MODELS.build(LINEAR), cfg)


def test_an_optimizer_that_cannot_be_built_again_is_said(tmp_path):
    runner = make_runner(config_of(tmp_path))
    optimizer = torch.optim.SGD(runner.model.head.parameters(), lr=0.1)
    runner.optim_wrapper = {'type': 'OptimWrapper', 'optimizer': optimizer}
    runner.cfg.optim_wrapper = None
    with pytest.raises(ValueError, match=r'without 2 parameters that are frozen now, such as backbone\.blocks\.2'):
        runner.train()


def test_wrappers_that_shard_are_refused():
    class MMFullyShardedDataParallel(nn.Module):
        pass

    MODEL_WRAPPERS.register_module(module=MMFullyShardedDataParallel, name='SomeShards', force=True)
    with pytest.raises(ValueError, match=r'x: the model is in MMFullyShardedDataParallel.*use DistributedDataParallel'):
        check_wrapper(MMFullyShardedDataParallel(), 'x')
