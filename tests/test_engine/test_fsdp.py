"""FSDP through FlexibleRunner: the weights of the unsharded run, theta_0 in shards, checkpoints, resume."""

import ast
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('torch.distributed.fsdp')

from olor_mm.engine import FSDPStrategy
from tests._torch import needs_fsdp_on_the_cpu

from ._ranks import on_ranks
from ._replicas import SmoothModel, replica, replica_config, state_of
from ._sharded import ROLLBACK, WRAPPER, probe, saved, sharded_config, sharded_run, shards_of
from ._toy import make_runner

#: Rounding of sums in another order, grown over 9 steps in float64.
TOLERANCE = 1e-12
PRETRAINED = {'type': 'Pretrained', 'checkpoint': 'FILE'}


@pytest.fixture(scope='module', autouse=True)
def _on_cpus():
    (reason,) = on_ranks(1, probe)
    if reason:
        pytest.skip(reason)


def plain(work_dir, world=1, **overrides):
    config = replica_config(work_dir, world, rollback=ROLLBACK, **overrides)
    config.optim_wrapper.update(WRAPPER)
    config.default_hooks.logger.interval = 1
    return config


def scalars(work_dir):
    lines = [
        json.loads(line) for file in Path(work_dir).rglob('scalars.json') for line in file.read_text().splitlines()
    ]
    return {
        line['step']: {k: v for k, v in line.items() if k.startswith('rollback/discrepancy')}
        for line in lines
        if 'rollback/discrepancy' in line
    }


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """One process, no wrapper: its final checkpoint, and its log."""
    folder = tmp_path_factory.mktemp('run of one process')
    runner = make_runner(plain(folder))
    runner.train()
    return folder, saved(folder / 'epoch_3.pth')[0], state_of(runner)


def ddp(rank, work_dir):
    runner = replica(plain(work_dir, 2))
    runner.train()
    return state_of(runner)['weights']


def through(rank, work_dir, options, world=2):
    """Uninterrupted, and resumed from the middle."""
    config = sharded_config(str(Path(work_dir, 'whole')), world, **options)
    whole = shards_of(sharded_run(config))
    middle = str(Path(work_dir, 'whole', 'epoch_2.pth'))
    again = sharded_config(str(Path(work_dir, 'again')), world, **options)
    return whole, shards_of(sharded_run(again, resume=True, load_from=middle))


def equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            equal(value, other[key])
        else:
            assert torch.equal(value, other[key]), key


def close(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=TOLERANCE, msg=key)


@needs_fsdp_on_the_cpu
@pytest.mark.parametrize('blocks', [True, False])
@pytest.mark.parametrize('state', ['full', 'local'])
def test_weights_and_a_resume(state, blocks, alone, tmp_path):
    ranks = on_ranks(2, through, str(tmp_path), {'state': state, 'blocks': blocks})
    for whole, resumed in ranks:
        equal(whole, resumed)
    # Something is missing on each rank, and theta_0 is cut as the weights are.
    for whole, _ in ranks:
        assert any(not value.numel() for value in whole['weights'].values())
        assert all(value.shape == whole['weights'][name].shape for name, value in whole['theta_0'].items())
    if state == 'full':
        found, _ = saved(tmp_path / 'whole' / 'epoch_3.pth')
        close(found, alone[1])
        again, _ = saved(tmp_path / 'again' / 'epoch_3.pth')
        equal(found, again)
    whole_weights = {
        name: torch.cat([whole['weights'][name].flatten() for whole, _ in ranks]) for name in alone[2]['weights']
    }
    close(whole_weights, {name: value.flatten() for name, value in alone[2]['weights'].items()})
    expected = scalars(alone[0])
    logged = scalars(tmp_path / 'whole')
    assert logged.keys() == expected.keys()
    for step, values in expected.items():
        assert logged[step] == pytest.approx(values, rel=1e-9)


def test_bfloat16_and_activation_checkpointing(tmp_path):
    """Shards stay in float32, and so does theta_0."""
    model = {'type': 'SmoothModel', 'dtype': 'float32'}
    ranks = on_ranks(2, through, str(tmp_path), {'lean': True, 'model': model})
    for whole, resumed in ranks:
        equal(whole, resumed)
        for kind in ('weights', 'theta_0'):
            assert all(value.dtype == torch.float32 for value in whole[kind].values())
    assert set(ranks[0][0]['theta_0']) == {name for name in ranks[0][0]['weights'] if name.startswith('backbone')} - {
        name for name in ranks[0][0]['weights'] if name.startswith(('backbone.blocks.2', 'backbone.branch'))
    }


def test_weights_are_those_of_ddp(alone, tmp_path):
    for weights in on_ranks(2, ddp, str(tmp_path)):
        close(weights, alone[2]['weights'])


def from_plain(rank, work_dir, file):
    return shards_of(sharded_run(sharded_config(work_dir), resume=True, load_from=file))


@needs_fsdp_on_the_cpu
def test_a_run_moves_between_fsdp_and_one_process(alone, tmp_path):
    """Full checkpoints are those of an unsharded run."""
    on_ranks(2, from_plain, str(tmp_path / 'sharded'), str(alone[0] / 'epoch_1.pth'))
    found, checkpoint = saved(tmp_path / 'sharded' / 'epoch_3.pth')
    close(found, alone[1])
    told = saved(alone[0] / 'epoch_3.pth')[1]['optimizer']['rollback']
    assert checkpoint['optimizer']['rollback'] == {**told, 'world_size': 2}
    middle = str(tmp_path / 'sharded' / 'epoch_2.pth')
    runner = make_runner(plain(tmp_path / 'plain'), resume=True, load_from=middle)
    runner.train()
    close(state_of(runner)['weights'], alone[2]['weights'])
    assert all(torch.equal(value, alone[2]['theta_0'][name]) for name, value in state_of(runner)['theta_0'].items())


def from_full_to_local(rank, work_dir, file):
    config = sharded_config(str(Path(work_dir, 'resumed')), state='local')
    resumed = shards_of(sharded_run(config, resume=True, load_from=file))
    full = sharded_config(str(Path(work_dir, 'full')))
    loaded = [sharded_config(str(Path(work_dir, f'loaded {state}')), state=state) for state in ('local', 'full')]
    return (
        resumed,
        shards_of(sharded_run(full, resume=True, load_from=file)),
        [shards_of(sharded_run(each, load_from=file)) for each in loaded],
    )


@needs_fsdp_on_the_cpu
def test_full_weights_go_into_a_run_that_saves_shards(alone, tmp_path):
    for resumed, full, loaded in on_ranks(2, from_full_to_local, str(tmp_path), str(alone[0] / 'epoch_2.pth')):
        equal(resumed, full)
        equal(*loaded)


@needs_fsdp_on_the_cpu
def test_other_numbers_of_processes(alone, tmp_path):
    """Full checkpoints fit, shards are refused."""
    on_ranks(2, save_both, str(tmp_path))
    (text,) = on_ranks(1, resume_alone, str(tmp_path))
    assert 'holds the shards of 2 processes, and this run has 1' in text
    assert "state_dict_cfg='full'" in text
    close(saved(tmp_path / 'one' / 'epoch_3.pth')[0], alone[1])


def save_both(rank, work_dir):
    for state in ('full', 'sharded'):
        sharded_run(sharded_config(str(Path(work_dir, state)), state=state))


def resume_alone(rank, work_dir):
    file = str(Path(work_dir, 'full', 'epoch_2.pth'))
    sharded_run(sharded_config(str(Path(work_dir, 'one')), 1), resume=True, load_from=file)
    folder = str(Path(work_dir, 'sharded', 'epoch_2.pth'))
    with pytest.raises(ValueError, match='resume with as many') as error:
        sharded_run(sharded_config(str(Path(work_dir, 'two')), 1, state='local'), resume=True, load_from=folder)
    return str(error.value)


#: Where theta_0 comes from: rollback, other parts of the config.
SOURCES = {
    'anchor': ({'anchor': 'FILE'}, {}),
    'load_from': ({}, {'load_from': 'FILE'}),
    'loaded': ({'roots': 'loaded'}, {'load_from': 'FILE'}),
    'init_cfg': ({'roots': 'loaded'}, {'model': {'type': 'SmoothModel', 'init_cfg': PRETRAINED}}),
    'anchor of init_cfg': ({'anchor': 'init_cfg'}, {'model': {'type': 'SmoothModel', 'init_cfg': PRETRAINED}}),
}


def from_sources(rank, work_dir, file):
    found = {}
    for name, (rollback, options) in SOURCES.items():
        text = repr(({**ROLLBACK, **rollback}, options)).replace('FILE', file)
        rollback, options = ast.literal_eval(text)
        config = sharded_config(str(Path(work_dir, name)), rollback=rollback, wrapper={}, **options)
        config.train_cfg.max_epochs = 1
        found[name] = shards_of(sharded_run(config))['theta_0']
    return found


@needs_fsdp_on_the_cpu
def test_theta_0_from_a_file_and_from_what_was_loaded(tmp_path):
    torch.manual_seed(5)
    weights = {k: torch.randn_like(v) for k, v in SmoothModel().state_dict().items()}
    weights['head.weight'] = torch.zeros(5, 8, dtype=torch.float64)
    file = tmp_path / 'pre trained.pth'
    torch.save({'state_dict': {f'module.{k}': v for k, v in weights.items()}}, file)
    ranks = on_ranks(2, from_sources, str(tmp_path), str(file))
    for name in SOURCES:
        whole = {k: torch.cat([rank[name][k].flatten() for rank in ranks]) for k in ranks[0][name]}
        assert whole
        assert all(torch.equal(value, weights[k].flatten()) for k, value in whole.items()), name
        # The deepest layer has level 0 here: the head, where that counts too.
        assert ('backbone.branch.bias' in whole) == (name in ('loaded', 'init_cfg'))
        assert not {'head.weight', 'head.bias'} & whole.keys()


def test_what_is_refused(tmp_path):
    config = sharded_config(str(tmp_path))
    config.strategy.model_wrapper.use_orig_params = False
    with pytest.raises(ValueError, match=r'use_orig_params=False .* set it to True'):
        FSDPStrategy(**{k: v for k, v in config.strategy.items() if k != 'type'})


def shared_out_twice(rank, work_dir):
    optimizer = {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'AdamW', 'lr': 0.01}
    with pytest.raises(ValueError, match='FSDP has cut already') as error:
        sharded_run(sharded_config(work_dir, 1, wrapper={'optimizer': optimizer}))
    return str(error.value)


@needs_fsdp_on_the_cpu
def test_zero_is_refused(tmp_path):
    (text,) = on_ranks(1, shared_out_twice, str(tmp_path))
    assert 'optim_wrapper.optimizer.type' in text


def resume_from_weights(rank, work_dir, file):
    with pytest.raises(ValueError, match='no optimizer state') as error:
        sharded_run(sharded_config(work_dir, 1), resume=True, load_from=file)
    return str(error.value)


@needs_fsdp_on_the_cpu
def test_a_resume_from_weights_alone_is_refused(tmp_path):
    file = tmp_path / 'best_epoch_2.pth'
    torch.save({'state_dict': SmoothModel().state_dict(), 'meta': {'epoch': 2, 'iter': 6}}, file)
    (text,) = on_ranks(1, resume_from_weights, str(tmp_path), str(file))
    assert str(file) in text
    assert 'no theta_0' in text
    assert 'give it as load_from' in text


def foreign(rank, work_dir):
    config = sharded_config(work_dir)
    config.strategy.type = 'FSDPStrategy'
    config.strategy.model_wrapper.device_id = torch.device('cpu')
    torch.distributed.init_process_group('gloo')
    with pytest.raises(ValueError, match='wrapped in FullyShardedDataParallel before') as error:
        sharded_run(config)
    return str(error.value)


def test_mmengines_own_strategy_is_refused(tmp_path):
    (text,) = on_ranks(1, foreign, str(tmp_path))
    assert "strategy=dict(type='olor_mm.FSDPStrategy'" in text


def _whole_tensors_in_bfloat16(rank):
    """Weights of NO_SHARD, which every rank has whole, after some rounded pulls."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    from olor_mm.engine.sharding import Shards
    from olor_mm.rollback import Rollback

    torch.distributed.init_process_group('gloo')
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.01))
    shards = Shards(model)
    options = {'use_orig_params': True, 'device_id': torch.device('cpu')}
    wrapped = FullyShardedDataParallel(model, sharding_strategy=ShardingStrategy.NO_SHARD, **options)
    shards.bind(wrapped)
    rollback.shards = shards.numbers
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(torch.full((4, 32), rank + 1.0).bfloat16()).float().square().mean().backward()
        optimizer.step()
    return [p.detach().float() for p in model.parameters()]


def test_what_every_rank_has_whole_is_rounded_alike():
    one, other = on_ranks(2, _whole_tensors_in_bfloat16)
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))
