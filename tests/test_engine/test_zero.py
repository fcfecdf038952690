"""ZeroRedundancyOptimizer in a config: the weights of one process, whole checkpoints, an exact resume."""

from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict

pytest.importorskip('torch.distributed.optim.zero_redundancy_optimizer')

from olor_mm.engine import load_from_local
from olor_mm.engine.zero import ZeroRedundancyOptimizer, announce, check_zero, check_zero_cfg, gather
from olor_mm.rollback import ANCHOR_KEY, MissingAnchorError

from ._ranks import on_ranks
from ._replicas import SmoothModel, flexible_run, replica, replica_config, state_of
from ._toy import make_runner

ADAM = {'lr': 0.01, 'weight_decay': 0.05}
ZERO = {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'AdamW', **ADAM}
DURABLE = {'type': 'olor_mm.DurableCheckpointHook', 'interval': 1, 'save_best': 'auto'}
#: Rounding of the sums of gradients, grown over 9 steps in float64.
TOLERANCE = 1e-13


def config_of(work_dir, world, optimizer=ZERO, hook=DURABLE, **overrides):
    config = replica_config(work_dir, world, optimizer=optimizer, **overrides)
    config.default_hooks = {**config.get('default_hooks', {}), 'checkpoint': hook}
    config.default_hooks.logger = {'type': 'LoggerHook', 'interval': 1}
    return config


def train(rank, world, work_dir, options=None, resume=None):
    """State of this rank after a run, the number of theta_0 that it keeps, and what it logged."""
    runner = replica(config_of(work_dir, world, **(options or {})), load_from=resume, resume=resume is not None)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    kept = getattr(optimizer, 'optim', optimizer).state
    found = state_of(runner)
    found['kept'] = sum(ANCHOR_KEY in state for state in kept.values())
    found['outer'] = len(optimizer.state)
    found['discrepancy'] = MessageHub.get_current_instance().get_scalar('train/rollback/discrepancy').measure()
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """What two ranks have after a whole run, and where they saved."""
    folder = tmp_path_factory.mktemp('zero')
    return folder, on_ranks(2, train, 2, str(folder))


def test_each_rank_keeps_its_share_and_the_weights_are_those_of_one_process(straight, tmp_path):
    runner = make_runner(config_of(tmp_path, 1, {'type': 'AdamW', **ADAM}, hook={'type': 'CheckpointHook'}))
    runner.train()
    alone = state_of(runner)
    one, other = straight[1]
    assert same(one['weights'], other['weights'])
    for name, value in alone['weights'].items():
        assert (one['weights'][name] - value).abs().max() <= TOLERANCE
    assert not one['theta_0'].keys() & other['theta_0'].keys()
    assert same({**one['theta_0'], **other['theta_0']}, alone['theta_0'])
    assert min(one['kept'], other['kept']) > 0
    expected, of_layers = runner.optim_wrapper.rollback_session.measure()
    for found, layers in (one['discrepancy'], other['discrepancy']):
        assert found == pytest.approx(expected, rel=1e-9)
        assert layers == pytest.approx(of_layers, rel=1e-9)


def test_a_checkpoint_has_the_whole_state(straight):
    folder, ranks = straight
    checkpoint = load_from_local(str(folder / 'epoch_2.pth'), 'cpu')
    names = checkpoint['optimizer']['rollback']['names']
    state = checkpoint['optimizer']['state']
    assert sum(ANCHOR_KEY in of_one for of_one in state.values()) == len(names)
    assert set(names) == {name for found in ranks for name in found['theta_0']}
    assert {tuple(of_one) for of_one in state.values() if ANCHOR_KEY in of_one} == {
        ('step', 'exp_avg', 'exp_avg_sq', ANCHOR_KEY)
    }


@pytest.mark.parametrize('world', [2, 1])
def test_resumed_equals_uninterrupted_also_on_another_number_of_processes(straight, world, tmp_path):
    folder, whole = straight
    first = str(folder / 'epoch_1.pth')
    resumed = on_ranks(world, train, world, str(tmp_path), None, first)
    for name, value in whole[0]['weights'].items():
        found = resumed[0]['weights'][name]
        assert torch.equal(found, value) if world == 2 else (found - value).abs().max() <= TOLERANCE
    assert {name for found in resumed for name in found['theta_0']} == {
        name for found in whole for name in found['theta_0']
    }
    # No second copy of what a rank keeps.
    assert [found['outer'] for found in resumed] == [0] * world


def test_it_goes_on_where_all_was_on_every_rank(straight, tmp_path):
    """From its checkpoint to the bare optimizer: the state is the same."""
    options = {'optimizer': {'type': 'AdamW', **ADAM}}
    first = str(straight[0] / 'epoch_1.pth')
    (found, _) = on_ranks(2, train, 2, str(tmp_path), options, first)
    for name, value in straight[1][0]['weights'].items():
        assert (found['weights'][name] - value).abs().max() <= TOLERANCE


def flexible(rank, work_dir):
    return flexible_run(config_of(work_dir, 2))


def test_flexible_runner(straight, tmp_path):
    for found, expected in zip(on_ranks(2, flexible, str(tmp_path)), straight[1], strict=True):
        assert same(found['weights'], expected['weights'])
        assert same(found['theta_0'], expected['theta_0'])
    assert len(load_from_local(str(tmp_path / 'epoch_3.pth'), 'cpu')['optimizer']['state']) == len(found['weights'])


def test_level_0_saves_and_resumes_too(tmp_path):
    """MMEngine's own hangs."""
    options = {'rollback': {'max_level': 0.0, 'log': False}}
    whole = on_ranks(2, weights, str(tmp_path / 'whole'), options, None)
    resumed = on_ranks(2, weights, str(tmp_path / 'resumed'), options, str(tmp_path / 'whole' / 'epoch_2.pth'))
    assert all(same(found, whole[0]) for found in [*whole, *resumed])


def weights(rank, work_dir, options, resume):
    runner = replica(config_of(work_dir, 2, **options), load_from=resume, resume=resume is not None)
    runner.train()
    assert not any(ANCHOR_KEY in state for state in runner.optim_wrapper.optimizer.optim.state.values())
    return state_of(runner)['weights']


def of_two(rank):
    torch.distributed.init_process_group('gloo')
    parts = [torch.nn.Linear(2, 2) for _ in range(2)]
    wrappers = {
        str(i): OptimWrapper(ZeroRedundancyOptimizer(part.parameters(), 'SGD', lr=0.1)) for i, part in enumerate(parts)
    }
    foreign = torch.distributed.optim.ZeroRedundancyOptimizer(parts[0].parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(
        ValueError, match=r"is torch\.distributed.*'s, whose state .* optimizer_type=\.\.\.\), and ours"
    ):
        check_zero(foreign)
    with pytest.raises(ValueError, match='DurableCheckpointHook'):
        check_zero(wrappers['0'].optimizer)
    both = OptimWrapperDict(**wrappers)
    announce(both)
    gather(both)
    check_zero(wrappers['0'].optimizer)
    assert all(wrapper.optimizer.is_gathered for wrapper in wrappers.values())
    return [len(wrapper.state_dict()['param_groups']) for wrapper in wrappers.values()]


def test_several_optimizers():
    assert on_ranks(1, of_two) == [[1, 1]]


def refused(rank, work_dir, options):
    runner = replica(config_of(work_dir, 2, **options))
    with pytest.raises(ValueError) as error:
        runner.train()
    return str(error.value)


def test_a_hook_that_would_hang_is_refused_before_the_first_step(tmp_path):
    options = {'hook': {'type': 'CheckpointHook', 'interval': 1}}
    for said in on_ranks(2, refused, str(tmp_path), options):
        assert "default_hooks.checkpoint.type='olor_mm.DurableCheckpointHook'" in said
    assert not list(Path(tmp_path).glob('*.pth'))


#: A root of two tensors: one of three ranks has none of them.
TWO_TENSORS = {'max_level': 0.2, 'min_level': 0.2, 'roots': ['backbone.branch']}


@pytest.mark.parametrize('anchor', [None, 'FILE'])
def test_a_share_of_nothing(anchor, tmp_path):
    if anchor is not None:
        torch.manual_seed(5)
        anchor = str(tmp_path / 'pretrained.pth')
        torch.save(SmoothModel().state_dict(), anchor)
    ranks = on_ranks(3, train, 3, str(tmp_path), {'rollback': {**TWO_TENSORS, 'anchor': anchor}})
    assert min(found['kept'] for found in ranks) == 0
    assert sum(found['kept'] for found in ranks) == 2
    assert all(same(found['weights'], ranks[0]['weights']) for found in ranks)
    if anchor is not None:
        theta_0 = {name: value for found in ranks for name, value in found['theta_0'].items()}
        pretrained = torch.load(anchor, weights_only=True)
        assert same(theta_0, {name: pretrained[name] for name in theta_0})


def without_theta_0(rank, work_dir, file, anchor):
    options = {'rollback': {**TWO_TENSORS, 'anchor': anchor}}
    runner = replica(config_of(work_dir, 3, **options), load_from=file, resume=True)
    with pytest.raises((MissingAnchorError, FileNotFoundError)) as error:
        runner.train()
    return str(error.value)


@pytest.mark.parametrize(('anchor', 'said'), [(None, 'of the 2 tensors'), ('gone.pth', 'gone')])
def test_what_is_missing_is_said_by_all_also_with_a_share_of_nothing(anchor, said, straight, tmp_path):
    checkpoint = load_from_local(str(straight[0] / 'epoch_1.pth'), 'cpu')
    del checkpoint['optimizer']
    file = tmp_path / 'no_optimizer.pth'
    torch.save(checkpoint, file)
    texts = on_ranks(3, without_theta_0, str(tmp_path / 'work'), str(file), anchor)
    assert len(set(texts)) == 1
    assert said in texts[0]


@pytest.mark.parametrize(
    ('optimizer', 'hooks', 'said'),
    [
        (ZERO, {}, 'DurableCheckpointHook'),
        (ZERO, None, 'DurableCheckpointHook'),
        (ZERO, {'checkpoint': {'type': 'mmengine.CheckpointHook'}}, 'DurableCheckpointHook'),
        (ZERO, {'checkpoint': DURABLE}, None),
        (ZERO, {'checkpoint': None}, None),
        ({'type': 'ZeroRedundancyOptimizer'}, {'checkpoint': DURABLE}, 'optimizer_type=None must be the name'),
        ({**ZERO, 'optimizer_type': 'AdamWW'}, {'checkpoint': DURABLE}, "'AdamWW' must be .* such as 'AdamW'"),
        ({'type': 'AdamW'}, {}, None),
        (None, None, None),
    ],
)
def test_a_config_is_looked_at_before_a_model_is_built(optimizer, hooks, said):
    if said is None:
        check_zero_cfg(optimizer, hooks)
        return
    with pytest.raises(ValueError, match=said):
        check_zero_cfg(optimizer, hooks)


def test_one_process_alone():
    with pytest.raises(ValueError, match=r"was started alone: .*optim_wrapper\.optimizer\.type='AdamW'"):
        ZeroRedundancyOptimizer([torch.nn.Parameter(torch.ones(1))], 'AdamW', lr=0.1)
