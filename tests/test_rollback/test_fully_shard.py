"""torch's fully_shard (FSDP2) in the plain API: DTensor parameters, their theta_0, saving, the discrepancy."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip('torch.distributed.fsdp._fully_shard', reason='this torch has no fully_shard')

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from olor_mm.rollback import ANCHOR_KEY, Rollback
from tests.test_engine._ranks import on_ranks

#: Rounding of sums in another order, grown over 6 steps in float64.
TOLERANCE = 1e-12
OPTIMIZERS = {
    'AdamW': lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.1),
    'SGD': lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    'SGD without momentum': lambda params: torch.optim.SGD(params, lr=0.05),
    'Adagrad': lambda params: torch.optim.Adagrad(params, lr=0.05),
}


def make_model(dtype=torch.float64):
    """Sizes that two ranks cannot share equally, and a tensor of one element, of which one rank has nothing."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def levels_of(model):
    return {p: level for (_, p), level in zip(model.named_parameters(), (0.3, 0.2, 0.1, 0.05, 0.0, 0.02), strict=True)}


def steps(model, optimizer, numbers, rank=0, world=1):
    for i in numbers:
        torch.manual_seed(100 + i)
        inputs = torch.randn(8, 5, dtype=next(model.parameters()).dtype)
        inputs = inputs[rank * 8 // world : (rank + 1) * 8 // world]
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def start_ranks():
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    return dist.get_rank(), dist.get_world_size()


def shard(model, shape):
    names = ('shard',) if len(shape) == 1 else ('replicate', 'shard')
    mesh = init_device_mesh('cpu', shape, mesh_dim_names=names)
    for part in model:
        if isinstance(part, nn.Linear):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def result(model, optimizer, rollback):
    parts = {i: [p] for i, p in enumerate(model.parameters())} | {'all': list(model.parameters())}
    return {
        'weights': [whole(p) for p in model.parameters()],
        'theta_0': [None if rollback.anchor(p) is None else whole(rollback.anchor(p)) for p in model.parameters()],
        'state': [{k: whole(torch.as_tensor(v)) for k, v in optimizer.state[p].items()} for p in model.parameters()],
        'discrepancy': rollback.discrepancy(parts),
    }


def train(rank, shape, make, form='foreach'):
    rank, world = start_ranks()
    model = shard(make_model(), shape)
    start = [p.to_local().clone() for p in model.parameters()]
    optimizer = OPTIMIZERS[make](model.parameters())
    rollback = Rollback(optimizer, levels_of(model), form=form)
    steps(model, optimizer, range(6), rank, world)
    for p, value in zip(model.parameters(), start, strict=True):
        anchor = rollback.anchor(p)
        if anchor is not None:
            assert isinstance(anchor, DTensor)
            assert anchor.placements == p.placements
            assert torch.equal(anchor.to_local(), value)
            assert optimizer.state[p][ANCHOR_KEY] is anchor
    return result(model, optimizer, rollback)


def alone(make):
    model = make_model()
    optimizer = OPTIMIZERS[make](model.parameters())
    rollback = Rollback(optimizer, levels_of(model))
    steps(model, optimizer, range(6))
    return result(model, optimizer, rollback)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ('shape', 'make', 'form'),
    [((2,), make, 'foreach') for make in OPTIMIZERS] + [((2, 2), 'AdamW', 'foreach'), ((2,), 'AdamW', 'single_tensor')],
)
def test_a_sharded_run_is_the_run_of_one_process(shape, make, form):
    expected = alone(make)
    world = shape[0] * (shape[1] if len(shape) > 1 else 1)
    for found in on_ranks(world, train, shape, make, form):
        for key in ('weights', 'state'):
            close(found[key], expected[key])
        for one, other in zip(found['theta_0'], expected['theta_0'], strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
        assert found['discrepancy'] == pytest.approx(expected['discrepancy'], rel=1e-9)


def save_and_resume(rank, folder, make, full):
    """Uninterrupted, and by torch's functions for distributed checkpoints through a file."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    rank, world = start_ranks()
    # SGD without momentum keeps nothing but theta_0, and torch is strict about the parameters that have none.
    options = StateDictOptions(full_state_dict=full, strict='without' not in make)
    model = shard(make_model(), (2,))
    optimizer = OPTIMIZERS[make](model.parameters())
    rollback = Rollback(optimizer, levels_of(model))
    steps(model, optimizer, range(3), rank, world)
    state = {
        'model': get_model_state_dict(model, options=options),
        'optimizer': get_optimizer_state_dict(model, optimizer, options=options),
    }
    state = through_a_file(state, folder, full)
    steps(model, optimizer, range(3, 6), rank, world)
    expected = result(model, optimizer, rollback)

    torch.manual_seed(99)
    model = make_model()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    model = shard(model, (2,))
    optimizer = OPTIMIZERS[make](model.parameters())
    rollback = Rollback(optimizer, levels_of(model))
    set_model_state_dict(model, state['model'], options=options)
    set_optimizer_state_dict(model, optimizer, state['optimizer'], options=options)
    steps(model, optimizer, range(3, 6), rank, world)
    return expected, result(model, optimizer, rollback)


def through_a_file(state, folder, full):
    if full:
        file = Path(folder, f'{dist.get_rank()}.pth')
        torch.save(state, file)
        return torch.load(file, weights_only=True)
    import torch.distributed.checkpoint as dcp

    dcp.save(copy.copy(state), checkpoint_id=str(Path(folder, 'sharded')))
    fresh = {kind: zeros_of(value) for kind, value in state.items()}
    dcp.load(fresh, checkpoint_id=str(Path(folder, 'sharded')))
    return fresh


def zeros_of(value):
    if isinstance(value, dict):
        return {key: zeros_of(item) for key, item in value.items()}
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    ('make', 'full'), [('AdamW', True), ('AdamW', False), ('SGD', True), ('SGD without momentum', False)]
)
def test_a_resume_is_exact(make, full, tmp_path):
    for expected, found in on_ranks(2, save_and_resume, str(tmp_path), make, full):
        for key in ('weights', 'theta_0', 'state'):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, equal_nan=False)
        assert found['discrepancy'] == expected['discrepancy']


def given_anchors(rank, file):
    rank, world = start_ranks()
    found = []
    for anchor in ('mapping', 'file'):
        model = shard(make_model(), (2,))
        names = {p: name for name, p in model.named_parameters()}
        values = torch.load(file, weights_only=True)
        given = {p: values[name] for p, name in names.items()} if anchor == 'mapping' else file
        optimizer = OPTIMIZERS['AdamW'](model.parameters())
        rollback = Rollback(optimizer, levels_of(model), anchor=given, names=names)
        steps(model, optimizer, range(1), rank, world)
        found.append({names[p]: whole(rollback.anchor(p)) for p in rollback.levels})
    return found


def test_theta_0_that_is_given_whole(tmp_path):
    torch.manual_seed(11)
    values = {name: torch.randn_like(p) for name, p in make_model().named_parameters()}
    file = str(tmp_path / 'pre trained.pth')
    torch.save(values, file)
    for found in on_ranks(2, given_anchors, file):
        for anchors in found:
            assert len(anchors) == 5
            assert all(torch.equal(anchor, values[name]) for name, anchor in anchors.items())


def rounded(rank):
    start_ranks()
    found = []
    for shape in ((2, 2), (4,)):
        # Every row alike: what the ranks hold differs by nothing but the random numbers.
        model = nn.Sequential(nn.Linear(64, 4, bias=False)).bfloat16()
        nn.init.constant_(model[0].weight, 1.0)
        model = shard(model, shape)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        Rollback(optimizer, {model[0].weight: 0.002}, anchor={model[0].weight: torch.zeros(4, 64).bfloat16()})
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.step()
        found.append(model[0].weight.to_local().clone())
    return found


def test_replicas_round_alike_and_shards_do_not():
    ranks = on_ranks(4, rounded)
    pairs = [found[0] for found in ranks]
    assert torch.equal(pairs[0], pairs[2])
    assert torch.equal(pairs[1], pairs[3])
    assert not torch.equal(pairs[0], pairs[1])
    parts = [found[1] for found in ranks]
    assert not any(torch.equal(parts[i], parts[j]) for i in range(4) for j in range(i))
    assert 0.0 < torch.cat(parts).ne(1.0).float().mean() < 1.0


def rounded_beside_shards(rank):
    """What every rank has whole, after a rounded pull of it and of shards, cut in two ways."""
    start_ranks()
    mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('a', 'b'))
    torch.manual_seed(0)
    values = [torch.randn(8, 16).bfloat16() for _ in range(5)]
    ways = [(mesh, [Shard(0), Replicate()]), (mesh, [Replicate(), Shard(0)]), (mesh['b'], [Shard(1)])]
    params = [nn.Parameter(distribute_tensor(v, *way)) for v, way in zip(values, ways, strict=False)]
    params += [nn.Parameter(distribute_tensor(values[3], mesh, [Replicate(), Replicate()])), nn.Parameter(values[4])]
    optimizer = torch.optim.SGD(params, lr=1.0)
    Rollback(optimizer, dict.fromkeys(params, 0.01), anchor={p: torch.zeros_like(p) for p in params})
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return [p.detach().to_local() if isinstance(p, DTensor) else p.detach() for p in params]


def test_what_ranks_hold_alike_is_rounded_alike_beside_what_they_do_not():
    ranks = on_ranks(4, rounded_beside_shards)
    # Replicas of each: along b, along a, along a, and everywhere.
    for tensor, alike in enumerate([[(0, 1), (2, 3)], *[[(0, 2), (1, 3)]] * 2, *[[(0, 1, 2, 3)]] * 2]):
        for group in alike:
            assert all(torch.equal(ranks[rank][tensor], ranks[group[0]][tensor]) for rank in group), tensor
