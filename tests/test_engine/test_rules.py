"""Rules, L2-SP and schedules of the level in a run: what the config says is what happens, and it resumes exactly."""

import copy
import gc
import json
import math
import weakref

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper

from olor_mm.engine.saved import describe
from olor_mm.engine.settings import RollbackSettings
from olor_mm.engine.sharding import refuse_rule

from ._toy import ToyModel, make_runner, toy_config, weights
from ._wrappers import Net, amp_on, batch

ALPHA, BETA = 0.3, 0.2
OPTIMIZERS = {'SGD': {'lr': 0.1, 'momentum': 0.9}, 'Adam': {'lr': 0.01}}


def train(ours, kind, optimizer, overflow=(), accumulate=1, clip=None, level=0.0, steps=6):
    """A model whose wrapper adds L2-SP, or whose loss has it."""
    torch.manual_seed(0)
    model = Net()
    theta_0 = [p.detach().clone() for p in model.backbone.parameters()]
    cfg = {'type': kind, 'optimizer': {'type': optimizer, **OPTIMIZERS[optimizer]}, 'accumulative_counts': accumulate}
    if kind == 'AmpOptimWrapper':
        cfg['loss_scale'] = {'init_scale': 1024.0, 'growth_interval': 2}
    if clip:
        cfg['clip_grad'] = dict(clip)
    if ours or level:
        cfg['constructor'] = 'olor_mm.OLOROptimWrapperConstructor'
        l2_sp = {'l2_sp': {'alpha': ALPHA, 'beta': BETA}} if ours else {}
        cfg['rollback'] = {'log': False, **({'max_level': level, 'min_level': level} if level else {}), **l2_sp}
    wrapper = build_optim_wrapper(model, cfg)
    wrapper.initialize_count_status(model, 0, steps)
    for i in range(steps):
        with wrapper.optim_context(model):
            loss = model(batch(i, bad=i in overflow))
        if not ours:
            old = sum((p - t).square().sum() for p, t in zip(model.backbone.parameters(), theta_0, strict=True))
            loss = loss + ALPHA / 2 * old + BETA / 2 * sum(p.square().sum() for p in model.head.parameters())
        wrapper.update_params(loss)
    return model, wrapper


CASES = {
    'plain': {},
    'with the rollback': {'level': 0.1},
    'clipped by norm': {'clip': {'max_norm': 0.05}},
    'clipped by value': {'clip': {'type': 'value', 'clip_value': 0.02}},
    'accumulated, with a remainder': {'accumulate': 4, 'clip': {'max_norm': 0.05}},
}


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('kind', ['OptimWrapper', 'AmpOptimWrapper'])
def test_l2_sp_is_the_loss_term(kind, optimizer, case, monkeypatch):
    amp_on('cpu', monkeypatch)
    overflow = (0, 3) if kind == 'AmpOptimWrapper' and 'accumulate' not in case else ()
    ours, wrapper = train(True, kind, optimizer, overflow, **copy.deepcopy(case))
    theirs, _ = train(False, kind, optimizer, overflow, **copy.deepcopy(case))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    rollback = wrapper.rollback_session.rollback
    assert len(rollback.pulled) == (4 if 'level' in case else 0)
    assert rollback.num_steps == 6 // case.get('accumulate', 1) + ('accumulate' in case) - len(overflow)


RUNS = {
    'SPD': {'rule': 'spd', 'max_level': 1.0, 'min_level': 0.5},
    'projection by layer': {
        'rule': 'projection',
        'radius': (0.05, 0.2),
        'ball': 'layer',
        'l2_sp': {'alpha': 0.001, 'beta': 0.01},
    },
    'cosine in epochs': {
        'max_level': 0.5,
        'level_schedule': {'type': 'cosine', 'begin': 1, 'end': 3, 'by_epoch': True, 'end_factor': 0.1},
        'l2_sp': {'alpha': 0.1, 'beta': 0.05},
    },
}


@pytest.mark.parametrize('case', RUNS)
def test_a_resumed_run_equals_the_uninterrupted_one(case, tmp_path):
    config = toy_config(tmp_path / 'straight', rollback=RUNS[case], optimizer={'type': 'AdamW', 'lr': 0.01})
    straight = make_runner(config)
    start = weights(straight)
    straight.train()
    first = str(tmp_path / 'straight' / 'epoch_1.pth')
    resumed = make_runner(config, work_dir=str(tmp_path / 'resumed'), load_from=first, resume=True)
    resumed.train()
    found = weights(resumed)
    assert all(torch.equal(value, found[name]) for name, value in weights(straight).items())
    if case.startswith('projection'):
        (log,) = (tmp_path / 'straight').glob('*/*.log')
        text = log.read_text()
        assert 'Weight rollback (projection) of 10 tensors' in text
        assert 'parameters  radius' in text
        assert 'L2-SP: alpha=0.001 on 10 tensors, beta=0.01 on 2 new ones' in text
        for i, radius in enumerate((0.05, 0.1, 0.15)):
            names = [name for name, _ in straight.model.named_parameters() if _layer(name) == i]
            moved = math.sqrt(sum(float((found[name] - start[name]).square().sum()) for name in names))
            assert moved == pytest.approx(radius, rel=1e-4)


def _layer(name):
    return 0 if 'patch_embed' in name else int(name.split('.')[2]) + 1 if '.blocks.' in name else None


def test_the_level_is_in_the_log_and_follows_its_schedule(tmp_path):
    schedule = [{'type': 'warmup', 'end': 6}, {'type': 'cosine', 'begin': 1, 'by_epoch': True}]
    config = toy_config(tmp_path, rollback={'max_level': 0.5, 'level_schedule': schedule})
    config.optim_wrapper.accumulative_counts = 2
    runner = make_runner(config)
    runner.train()
    (file,) = tmp_path.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in file.read_text().splitlines()]
    found = {row['step']: row['rollback/level'] for row in logged if 'rollback/level' in row}
    for step, level in found.items():
        i = step - 1
        factor = i / 6 if i < 6 else (1 + math.cos(math.pi * (i - 6) / 12)) / 2
        assert level == pytest.approx(0.5 * factor)
    assert len(found) == 9
    assert 'train/rollback/level' not in MessageHub.get_instance(runner.experiment_name).state_dict()['log_scalars']


@pytest.mark.parametrize('loop', [{'by_epoch': False}, {'type': 'IterBasedTrainLoop'}])
def test_epochs_in_a_run_that_counts_iterations_are_an_error(loop, tmp_path):
    """MMEngine takes such a run for a single epoch: a warm-up of two would end after twice the run."""
    schedule = {'type': 'warmup', 'by_epoch': True, 'end': 2}
    config = toy_config(tmp_path, by_epoch=False, rollback={'max_level': 0.5, 'level_schedule': schedule})
    config.train_cfg = {**loop, 'max_iters': 18}
    with pytest.raises(ValueError, match=r'level_schedule\.by_epoch=True, but .* runs that count iterations'):
        make_runner(config).train()


def test_an_only_epoch_is_one(tmp_path):
    schedule = {'type': 'warmup', 'by_epoch': True, 'end': 0.5}
    config = toy_config(tmp_path, rollback={'max_level': 0.5, 'level_schedule': schedule})
    config.train_cfg.max_epochs = 1
    runner = make_runner(config)
    runner.train()
    assert [runner.optim_wrapper.rollback_session.pace(i) for i in (0, 1, 3, 5)] == pytest.approx([0, 1 / 3, 1, 1])


@pytest.mark.parametrize('schedule', ['lr', 'warmup'])
def test_a_run_that_is_over_is_freed(schedule, tmp_path):
    """MMEngine's message hubs, which hold what is logged, live as long as the process."""
    runner = make_runner(toy_config(tmp_path, rollback={'max_level': 0.5, 'level_schedule': schedule}))
    runner.train()
    held = weakref.ref(runner.model)
    del runner
    gc.collect()
    assert held() is None


def test_by_epoch_without_a_run_is_an_error():
    model = Net()
    schedule = {'type': 'cosine', 'by_epoch': True, 'end': 2}
    cfg = {
        'constructor': 'olor_mm.OLOROptimWrapperConstructor',
        'optimizer': {'type': 'SGD', 'lr': 0.1},
        'rollback': {'max_level': 0.1, 'level_schedule': schedule},
    }
    wrapper = build_optim_wrapper(model, cfg)
    MessageHub.get_instance('a hub without a run')
    with pytest.raises(ValueError, match='level_schedule'):
        wrapper.update_params(model(batch(0)))


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'rule': 'SPD', 'max_level': 1}, r"rollback\.rule='SPD' is not known: choose one of olor, spd, projection"),
        ({'rule': 'projection'}, r"rollback\.radius is not set: rule='projection' needs"),
        (
            {'rule': 'projection', 'radius': 1, 'max_level': 0.1},
            r"max_level=0\.1: rule='projection' has a radius and no",
        ),
        ({'rule': 'projection', 'radius': -1}, r'rollback\.radius=-1 is not a radius'),
        ({'rule': 'projection', 'radius': (1, 2, 3)}, r'rollback\.radius=\(1, 2, 3\) must be a number, or two'),
        ({'rule': 'projection', 'radius': 1, 'ball': 'block'}, r"rollback\.ball='block' is not known"),
        ({'rule': 'projection', 'radius': 1, 'level_schedule': 'lr'}, r"rollback\.level_schedule='lr' is for a level"),
        ({'max_level': 0.1, 'radius': 1}, r"rollback\.radius=1 is for rule='projection', but rule='olor'"),
        ({'max_level': 0.1, 'ball': 'layer'}, r"rollback\.ball='layer' is for rule='projection'"),
        ({'max_level': 0.1, 'level_schedule': 'linear'}, r"rollback\.level_schedule='linear' is not known"),
        ({'l2_sp': {}}, r'rollback\.max_level is not set'),
        ({'l2_sp': 0.01}, r'rollback\.l2_sp=0\.01 must be a dict'),
        ({'l2_sp': {'alpha': -1}}, r'rollback\.l2_sp\.alpha=-1 must be a finite number from 0'),
        ({'l2_sp': {'alpha': 1, 'gamma': 1}}, r'rollback\.l2_sp\.gamma=1 is not an option'),
        ({'l2_sp': {'alpha': 1, 'by_hand': True}}, r'rollback\.l2_sp\.by_hand=True is not for a config'),
        ({'rule': 'spd'}, r'rollback\.max_level is not set'),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(ValueError, match=said):
        RollbackSettings.from_cfg(options)


def test_off_is_off():
    for options in ({'max_level': 0.0}, {'max_level': 0, 'l2_sp': {'alpha': 0}}, {'max_level': 0, 'rule': 'spd'}):
        assert not RollbackSettings.from_cfg(options).is_on
    torch.manual_seed(0)
    model = ToyModel()
    cfg = {'constructor': 'olor_mm.OLOROptimWrapperConstructor', 'optimizer': {'type': 'SGD', 'lr': 0.1}}
    wrapper = build_optim_wrapper(model, {**cfg, 'rollback': {'max_level': 0, 'l2_sp': {'alpha': 0}}})
    assert wrapper.rollback_session.rollback is None
    assert 'rollback' not in wrapper.state_dict()
    assert not wrapper.optimizer._optimizer_step_pre_hooks


def test_a_checkpoint_says_what_rule_it_was_and_shards_refuse_others():
    settings = RollbackSettings.from_cfg(
        {'max_level': 0.1, 'rule': 'spd', 'level_schedule': [{'type': 'warmup', 'end': 3}], 'l2_sp': {'alpha': 0.5}}
    )
    told = describe(settings, {'a': 0.1})['settings']
    assert told['rule'] == 'spd'
    assert told['level_schedule'] == [{'type': 'warmup', 'end': 3}]
    assert told['l2_sp'] == {'alpha': 0.5}
    refuse_rule('olor')
    with pytest.raises(ValueError, match=r"rule='spd' is not for models that FSDP has sharded"):
        refuse_rule('spd')
