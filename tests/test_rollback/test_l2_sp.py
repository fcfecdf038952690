"""L2-SP is the loss term, by autograd, and shares theta_0 with the rollback."""

import copy
import math

import pytest
import torch
from torch import nn

from olor_mm.rollback import ANCHOR_KEY, L2SP, Rollback
from olor_mm.rollback import l2_sp as module
from tests._torch import build_or_skip, grad_scaler

ALPHA, BETA = 0.3, 0.2
OPTIMIZERS = {
    'SGD': {'lr': 0.1, 'momentum': 0.9},
    'Adam': {'lr': 0.01},
    'AdamW': {'lr': 0.01, 'weight_decay': 0.1, 'fused': True},
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Net(nn.Module):
    """Two pre-trained layers, one of them not reached by the loss of odd steps, and a new head."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 5, dtype=dtype)
        self.side = nn.Linear(4, 5, dtype=dtype)
        self.head = nn.Linear(5, 2, dtype=dtype)

    def loss(self, i):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i)).to(self.head.weight.dtype)
        hidden = self.body(x) + (self.side(x) if i % 2 == 0 else 0)
        out = self.head(torch.tanh(hidden))
        return out.to(torch.promote_types(out.dtype, torch.float32)).square().mean()

    @property
    def old(self):
        return [*self.body.parameters(), *self.side.parameters()]


def build(name, net):
    return build_or_skip(getattr(torch.optim, name), net.parameters(), **OPTIMIZERS[name])


def penalty(net, theta_0):
    term = sum((p - t).square().sum() for p, t in zip(net.old, theta_0, strict=True)) * ALPHA / 2
    return term + sum(p.square().sum() for p in net.head.parameters()) * BETA / 2


def run(name, dtype, ours, *, level=0.0, clip=None, scaler=None, micro=1, steps=5, overflow=()):
    net = Net(dtype)
    theta_0 = [p.detach().clone() for p in net.old]
    optimizer = build(name, net)
    by_hand = clip is not None
    strengths = L2SP(ALPHA, BETA, by_hand) if ours else None
    rollback = Rollback(optimizer, dict.fromkeys(net.old, level), l2_sp=strengths) if ours or level else None
    for i in range(steps):
        optimizer.zero_grad()
        for j in range(micro):
            loss = net.loss(i * micro + j)
            if not ours:
                loss = loss + penalty(net, theta_0).to(loss.dtype)
            loss = loss / micro * (math.inf if i in overflow else 1.0)
            (loss if scaler is None else scaler.scale(loss)).backward()
        if clip is not None:
            if scaler is not None:
                # Before the gradients are unscaled, as a wrapper that cannot tell does.
                if ours:
                    rollback.add_l2_sp(scaler.scale(torch.ones(())))
                scaler.unscale_(optimizer)
            elif ours:
                rollback.add_l2_sp()
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return net, optimizer, rollback


def check(first, second, dtype):
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize('level', [0.0, 0.1])
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_it_is_the_loss_term(name, dtype, level):
    if dtype is torch.bfloat16 and level:
        pytest.skip('the rollback rounds 16-bit weights at random')
    ours, _, _ = run(name, dtype, True, level=level)
    theirs, _, _ = run(name, dtype, False, level=level)
    check(ours, theirs, dtype)
    without, _, _ = run(name, dtype, False, level=level, steps=0)
    assert not torch.allclose(ours.body.weight, without.body.weight, atol=1e-2)


@pytest.mark.parametrize('micro', [1, 3])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_before_clipping_and_once_for_accumulated_gradients(name, micro):
    for clip in (None, 0.05):
        ours, _, _ = run(name, torch.float64, True, clip=clip, micro=micro)
        theirs, _, _ = run(name, torch.float64, False, clip=clip, micro=micro)
        check(ours, theirs, torch.float64)


@pytest.mark.parametrize('clip', [None, 0.05])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_scaled_gradients_and_skipped_steps(name, clip):
    """AdamW is fused: there the gradients are still scaled when its step begins."""
    results = []
    for ours in (True, False):
        scaler = grad_scaler('cpu', init_scale=2.0**10, growth_interval=2)
        results.append(run(name, torch.float32, ours, clip=clip, scaler=scaler, overflow=(0, 2)))
    check(results[0][0], results[1][0], torch.float32)
    _, _, rollback = results[0]
    assert rollback.num_steps == 3


@pytest.mark.parametrize('level', [0.0, 0.1])
def test_there_is_one_theta_0(level):
    net, optimizer, rollback = run('SGD', torch.float64, True, level=level)
    start = Net(torch.float64)
    kept = [s[ANCHOR_KEY] for s in optimizer.state.values() if ANCHOR_KEY in s]
    assert len(kept) == 4
    assert {k.data_ptr() for k in kept} == {rollback.anchor(p).data_ptr() for p in net.old}
    assert all(torch.equal(a, p) for a, p in zip(kept, start.old, strict=True))
    assert ANCHOR_KEY not in optimizer.state[net.head.weight]
    sizes = sum(v.numel() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    assert sizes == sum(p.numel() for p in net.parameters()) + sum(p.numel() for p in net.old)
    assert len(rollback.pulled) == (4 if level else 0)
    assert rollback.num_rolled_back == (4 if level else 0)


def test_it_resumes_exactly(tmp_path):
    straight, _, _ = run('Adam', torch.float64, True)
    stopped, optimizer, _ = run('Adam', torch.float64, True, steps=2)
    torch.save([stopped.state_dict(), optimizer.state_dict()], tmp_path / 'saved.pth')
    weights, state = torch.load(tmp_path / 'saved.pth', weights_only=True)
    net = Net(torch.float64)
    net.load_state_dict(weights)
    optimizer = build('Adam', net)
    Rollback(optimizer, dict.fromkeys(net.old, 0.0), l2_sp={'alpha': ALPHA, 'beta': BETA})
    optimizer.load_state_dict(state)
    for i in range(2, 5):
        optimizer.zero_grad()
        net.loss(i).backward()
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), net.parameters(), strict=True))


def test_off_is_the_base_optimizer_and_costs_nothing():
    nets = [Net(torch.float64) for _ in range(2)]
    optimizers = [build('AdamW', net) for net in nets]
    Rollback(optimizers[0], dict.fromkeys(nets[0].old, 0.0), l2_sp={'alpha': 0.0})
    for net, optimizer in zip(nets, optimizers, strict=True):
        net.loss(1).backward()
        optimizer.step()
        assert net.side.weight.grad is None
    assert all(torch.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True))
    assert not optimizers[0]._optimizer_step_pre_hooks
    assert optimizers[0].state_dict()['param_groups'] == optimizers[1].state_dict()['param_groups']


def test_frozen_and_new_parameters_are_left_alone_without_beta():
    net = Net(torch.float64)
    net.side.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    Rollback(optimizer, dict.fromkeys(net.old, 0.0), l2_sp=L2SP(1.0))
    start = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        net.body.weight.grad = torch.zeros_like(net.body.weight)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), start, strict=True))
    assert net.side.weight.grad is None
    assert net.head.weight.grad is None


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('by_hand', [False, True])
def test_new_parameters_have_their_penalty_also_in_a_step_of_theirs_alone(by_hand, frozen):
    """As in the first epochs of a run that unfreezes its backbone later."""
    net = Net(torch.float64)
    for p in net.old:
        p.requires_grad_(not frozen)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rollback = Rollback(optimizer, dict.fromkeys(net.old, 0.0), l2_sp=L2SP(ALPHA, BETA, by_hand))
    start = [p.detach().clone() for p in net.parameters()]
    for p in net.head.parameters():
        p.grad = torch.zeros_like(p)
    if by_hand:
        rollback.add_l2_sp()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(net.old, start, strict=False))
    for p, q in zip(net.head.parameters(), start[4:], strict=True):
        torch.testing.assert_close(p.detach(), q * (1 - BETA))


@pytest.mark.parametrize('scaled', [False, True])
def test_what_is_maximised_is_less_the_penalty(scaled):
    """Groups that go along their gradients, beside others."""
    nets = [Net(torch.float64) for _ in range(2)]
    for net, maximize in zip(nets, (False, True), strict=True):
        groups = [{'params': net.old}, {'params': [net.head.weight], 'maximize': maximize}, {'params': [net.head.bias]}]
        groups[0]['maximize'] = maximize
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        rollback = Rollback(optimizer, dict.fromkeys(net.old, 0.0), l2_sp=L2SP(ALPHA, BETA, by_hand=True))
        for i in range(4):
            optimizer.zero_grad()
            net.loss(i).backward()
            flipped = [*net.old, net.head.weight] if maximize else []
            for p in flipped:
                p.grad = None if p.grad is None else -p.grad
            rollback.add_l2_sp(torch.ones(()) if scaled else 1.0)
            optimizer.step()
    check(*nets, torch.float64)


def test_a_distributed_checkpoint_is_loaded_also_where_it_is_added_by_hand():
    """torch makes an optimizer have a state by a step at a learning rate of 0."""
    state_dict = pytest.importorskip('torch.distributed.checkpoint.state_dict')
    if not hasattr(state_dict, 'set_optimizer_state_dict'):
        pytest.skip('torch has no functions for state dicts yet')

    def start():
        net = Net(torch.float64)
        optimizer = build('Adam', net)
        return net, optimizer, Rollback(optimizer, dict.fromkeys(net.old, 0.1), l2_sp=L2SP(ALPHA, BETA, by_hand=True))

    def train(net, optimizer, rollback, steps):
        for i in steps:
            optimizer.zero_grad()
            net.loss(i).backward()
            rollback.add_l2_sp()
            optimizer.step()

    straight, resumed = start(), start()
    train(*straight, range(2))
    net, optimizer, _ = resumed
    net.load_state_dict(straight[0].state_dict())
    saved = copy.deepcopy(state_dict.get_optimizer_state_dict(*straight[:2]))
    state_dict.set_optimizer_state_dict(net, optimizer, saved)
    train(*straight, range(2, 4))
    train(*resumed, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(straight[0].parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize('rule', ['spd', 'projection'])
def test_it_goes_with_other_rules_and_in_buckets(rule, monkeypatch):
    results = []
    for bucket in (1, 16 << 20):
        monkeypatch.setattr(module, '_BUCKET', bucket)
        net = Net(torch.float64)
        optimizer = build('SGD', net)
        rollback = Rollback(optimizer, dict.fromkeys(net.old, 0.3), rule=rule, l2_sp=L2SP(ALPHA))
        for i in range(4):
            optimizer.zero_grad()
            net.loss(i).backward()
            optimizer.step()
        assert rollback.num_rolled_back == 4
        results.append(net)
    check(*results, torch.float64)


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        (0.01, r'l2_sp=0\.01 must be a dict such as dict\(alpha=0\.01'),
        ({}, r'l2_sp\.alpha is not set'),
        ({'alpha': -1}, r'l2_sp\.alpha=-1 must be a finite number from 0'),
        ({'alpha': 1, 'beta': math.inf}, r'l2_sp\.beta=inf must be a finite number'),
        ({'alpha': True}, r'l2_sp\.alpha=True must be'),
        ({'alfa': 1}, r'l2_sp\.alfa=1 is not an option: did you mean alpha\?'),
        ({'alpha': 0, 'beta': 1}, r'l2_sp\.beta=1 with alpha=0 is weight decay'),
        ({'alpha': 1, 'by_hand': 1}, r'l2_sp\.by_hand=1 must be True or False'),
    ],
)
def test_mistakes(value, said):
    net = Net(torch.float64)
    with pytest.raises(ValueError, match=said):
        Rollback(build('SGD', net), dict.fromkeys(net.old, 0.1), l2_sp=value)


def test_a_call_that_is_missing_or_too_much_is_an_error():
    net = Net(torch.float64)
    optimizer = build('SGD', net)
    rollback = Rollback(optimizer, dict.fromkeys(net.old, 0.1), l2_sp=L2SP(0.1, by_hand=True))
    net.loss(0).backward()
    with pytest.raises(RuntimeError, match=r'add_l2_sp\(\) was not called before this step'):
        optimizer.step()
    rollback.add_l2_sp()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r'add_l2_sp\(\) was not called before this step'):
        optimizer.step()
    rollback.detach()
    rollback = Rollback(optimizer, dict.fromkeys(net.old, 0.1), anchor='current', l2_sp=L2SP(0.1))
    with pytest.raises(RuntimeError, match='a second time'):
        rollback.add_l2_sp()
    with pytest.raises(ValueError, match='l2_sp changes gradients before the step'):
        optimizer.step(lambda: net.loss(0))
