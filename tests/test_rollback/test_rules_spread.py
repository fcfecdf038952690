"""SPD, projection and L2-SP in several processes: the sums are over whole tensors, whoever holds what."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip('torch.distributed.fsdp._fully_shard', reason='this torch has no fully_shard')

from torch.distributed.optim import ZeroRedundancyOptimizer

from olor_mm.rollback import L2SP, Rollback
from tests.test_engine._ranks import on_ranks

from .test_fully_shard import close, make_model, shard, start_ranks, steps, whole

WAYS = ('fully_shard', 'fully_shard, replicated', 'DDP', 'ZeRO')


def options_of(model):
    """Each with an amount for the parameters; a rank has nothing of the last one."""
    params = [*model.parameters()]
    shared = {p: i // 2 for i, p in enumerate(params)}
    return {
        'spd': (dict.fromkeys(params, 0.9), {'rule': 'spd'}),
        'projection': (dict.fromkeys(params, 0.02), {'rule': 'projection'}),
        'balls': (dict.fromkeys(params, 0.03), {'rule': 'projection', 'balls': shared}),
        'l2_sp': (dict.fromkeys(params[:4], 0.0), {'l2_sp': L2SP(0.3, 0.2)}),
        'both': (dict.fromkeys(params[:4], 0.1), {'l2_sp': L2SP(0.3)}),
    }


def run(rank, world, way, case):
    bare = make_model()
    model = bare
    if way.startswith('fully_shard'):
        model = shard(bare, (2,) if way == 'fully_shard' else (2, 1))
    elif way in ('DDP', 'ZeRO'):
        model = DistributedDataParallel(bare)
    options = {'lr': 0.02, 'betas': (0.99, 0.999)}
    if way == 'ZeRO':
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **options)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **options)
    levels, given = options_of(model.module if way in ('DDP', 'ZeRO') else model)[case]
    Rollback(optimizer, levels, **given)
    params = model if way in ('DDP', 'ZeRO') else bare
    steps(params, optimizer, range(6), rank, world)
    return [whole(p) for p in bare.parameters()]


def job(rank):
    rank, world = start_ranks()
    found = {}
    for way in WAYS:
        for case in options_of(make_model()):
            if way == 'ZeRO' and case not in ('spd', 'projection'):
                with pytest.raises(ValueError, match='is not for a ZeroRedundancyOptimizer'):
                    run(rank, world, way, case)
            else:
                found[way, case] = run(rank, world, way, case)
    dist.barrier()
    return found


def test_a_run_of_two_processes_is_that_of_one():
    expected = {case: run(0, 1, 'alone', case) for case in options_of(make_model())}
    plain = make_model()
    steps(plain, torch.optim.AdamW(plain.parameters(), lr=0.02, betas=(0.99, 0.999)), range(6))
    for weights in expected.values():
        # Each does something, to each of the first tensors.
        assert not any(torch.allclose(p, q, atol=1e-6) for p, q in zip(weights[:4], plain.parameters(), strict=False))
    for found in on_ranks(2, job):
        assert len(found) == 3 * 5 + 2
        for (_, case), weights in found.items():
            close(weights, expected[case])
