"""ZeroRedundancyOptimizer in the plain API: each rank keeps and pulls its share, before the weights are sent round."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip('torch.distributed.optim.zero_redundancy_optimizer')

from torch.distributed.optim import ZeroRedundancyOptimizer

from olor_mm.rollback import ANCHOR_KEY, Rollback
from tests.test_engine._ranks import on_ranks

LEVELS = (0.3, 0.2, 0.1, 0.0)


def make_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def levels_of(model):
    return dict(zip(model.parameters(), LEVELS, strict=True))


def steps(model, optimizer, numbers):
    """All ranks see the same data, so no gradient has to be averaged."""
    for i in numbers:
        torch.manual_seed(100 + i)
        model(torch.randn(8, 5, dtype=torch.float64)).square().mean().backward()
        for group in optimizer.param_groups:
            group['lr'] = 0.05 / (1 + i)
        optimizer.step()
        optimizer.zero_grad()


def zero(model, **options):
    groups = [{'params': list(part.parameters()), 'initial_lr': 0.05} for part in model if isinstance(part, nn.Linear)]
    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, lr=0.05, **options)


def alone():
    model = make_model()
    groups = [{'params': list(part.parameters()), 'initial_lr': 0.05} for part in model if isinstance(part, nn.Linear)]
    optimizer = torch.optim.AdamW(groups, lr=0.05)
    rollback = Rollback(optimizer, levels_of(model))
    steps(model, optimizer, range(6))
    return model, rollback


def through(rank, folder, bucket_view):
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    model = make_model()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = zero(model, parameters_as_bucket_view=bucket_view)
    rollback = Rollback(optimizer, levels_of(model))
    steps(model, optimizer, range(3))
    optimizer.consolidate_state_dict(to=0)
    file = Path(folder, 'saved.pth')
    if rank == 0:
        torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, file)
    dist.barrier()
    steps(model, optimizer, range(3, 6))
    params = list(model.parameters())
    kept = {i: rollback.anchor(p) for i, p in enumerate(params) if rollback.anchor(p) is not None}
    assert all(torch.equal(anchor, start[i]) for i, anchor in kept.items())
    assert all(optimizer.optim.state[params[i]][ANCHOR_KEY] is anchor for i, anchor in kept.items())

    saved = torch.load(file, weights_only=True)
    other = make_model()
    other.load_state_dict(saved['model'])
    optimizer = zero(other, parameters_as_bucket_view=bucket_view)
    Rollback(optimizer, levels_of(other))
    optimizer.load_state_dict(saved['optimizer'])
    steps(other, optimizer, range(3, 6))
    return {
        'one': discrepancy_of_one(),
        'weights': [p.detach() for p in params],
        'resumed': [p.detach() for p in other.parameters()],
        'kept': sorted(kept),
        'discrepancy': rollback.discrepancy({'all': params}),
    }


def discrepancy_of_one():
    """Where all of what is pulled back is in the share of one rank."""
    model = make_model()
    optimizer = zero(model)
    rollback = Rollback(optimizer, {model[0].weight: 0.1})
    steps(model, optimizer, range(1))
    return rollback.discrepancy({'all': list(model.parameters())})


@pytest.mark.parametrize('bucket_view', [False, True])
def test_shares_are_pulled_once_and_resumed_exactly(bucket_view, tmp_path):
    model, rollback = alone()
    ranks = on_ranks(2, through, str(tmp_path), bucket_view)
    for found in ranks:
        for key in ('weights', 'resumed'):
            for value, other, expected in zip(found[key], ranks[0]['weights'], model.parameters(), strict=True):
                assert torch.equal(value, other)
                torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-14)
        assert found['discrepancy'] == pytest.approx(rollback.discrepancy({'all': list(model.parameters())}), rel=1e-9)
    assert ranks[0]['one'] == ranks[1]['one']
    assert ranks[0]['one']['all'] > 0
    # Every theta_0 is kept, and none twice.
    assert sorted(ranks[0]['kept'] + ranks[1]['kept']) == [0, 1, 2]


def overlapping(rank):
    dist.init_process_group('gloo')
    model = make_model()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.05, overlap_with_ddp=True)
    with pytest.raises(ValueError, match='overlap_with_ddp=True'):
        Rollback(optimizer, levels_of(model))


def test_steps_that_overlap_the_backward_pass_are_refused():
    on_ranks(1, overlapping)
