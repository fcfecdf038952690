"""SPD and projection: against the formulas written out, the invariants of the core, and what they cost."""

import copy
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olor_mm.rollback import ANCHOR_KEY, Rollback, kernels, layerwise_radii
from olor_mm.rollback import _measures as measures
from olor_mm.rollback.reference import projection_reference, spd_reference
from olor_mm.rollback.rules import projection, spd

shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)
weight = st.floats(0.01, 1)
OPTIMIZERS = {
    'SGD': {'lr': 0.3, 'momentum': 0.9},
    'Adam': {'lr': 0.1},
    'AdamW': {'lr': 0.1, 'weight_decay': 0.1},
}
names = st.sampled_from(sorted(OPTIMIZERS))
rules = st.sampled_from(['spd', 'projection'])


def make(shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def build(name, params):
    return getattr(torch.optim, name)(params, **OPTIMIZERS[name])


def gradients(params, step, scale=1.0):
    """Some of them point away from where the weights came from."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)


def train(optimizer, params, steps, rollback=None):
    for step in steps:
        gradients(params, step)
        optimizer.step()


def distances(params, theta_0):
    return [float((p.detach().double() - t.double()).norm()) for p, t in zip(params, theta_0, strict=True)]


@settings(max_examples=25, deadline=None)
@given(shapes=shapes, name=names, rule=rules, amounts=st.lists(weight, min_size=5, max_size=5))
def test_every_step_is_the_reference(shapes, name, rule, amounts):
    ours, theirs = make(shapes), make(shapes)
    theta_0 = [p.detach().clone() for p in ours]
    optimizer, base = build(name, ours), build(name, theirs)
    Rollback(optimizer, dict(zip(ours, amounts, strict=False)), rule=rule)
    for step in range(8):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        before = [p.detach().clone() for p in theirs]
        base.step()
        with torch.no_grad():
            for p, theta, start, amount in zip(theirs, before, theta_0, amounts, strict=False):
                if rule == 'spd':
                    p.copy_(spd_reference(theta, p, start, p.grad, amount))
                else:
                    p.copy_(projection_reference(p, start, amount))
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


@settings(max_examples=15, deadline=None)
@given(shapes=shapes, name=names, rule=rules, amount=weight, form=st.sampled_from(['foreach', 'single_tensor']))
def test_a_pull_never_leads_away_and_never_past_theta_0(shapes, name, rule, amount, form):
    ours, base = make(shapes, torch.float32), make(shapes, torch.float32)
    theta_0 = [p.detach().clone() for p in ours]
    optimizer, plain = build(name, ours), build(name, base)
    Rollback(optimizer, dict.fromkeys(ours, amount), rule=rule, form=form)
    for step in range(5):
        # The same state before the step, so that only the pull differs.
        with torch.no_grad():
            for p, q in zip(base, ours, strict=True):
                p.copy_(q)
        plain.load_state_dict(copy.deepcopy(without_anchor(optimizer.state_dict())))
        for params, stepped in ((ours, optimizer), (base, plain)):
            gradients(params, step)
            stepped.step()
        for p, after, pre in zip(ours, distances(ours, theta_0), distances(base, theta_0), strict=True):
            rounding = 1e-6 * float(p.detach().norm())
            assert after <= pre + rounding
            assert rule != 'projection' or after <= amount + rounding


def without_anchor(state):
    groups = [{k: v for k, v in group.items() if not k.startswith('rollback')} for group in state['param_groups']]
    states = {i: {k: v for k, v in s.items() if k != ANCHOR_KEY} for i, s in state['state'].items()}
    return {'state': states, 'param_groups': groups}


@pytest.mark.parametrize(('rule', 'off'), [('spd', 0.0), ('projection', math.inf)])
def test_off_is_the_base_optimizer_and_costs_nothing(rule, off):
    ours, base = make([(3, 2), (4,)]), make([(3, 2), (4,)])
    optimizer, plain = build('AdamW', ours), build('AdamW', base)
    Rollback(optimizer, dict.fromkeys(ours, off), rule=rule)
    train(optimizer, ours, range(3))
    train(plain, base, range(3))
    assert all(torch.equal(p, q) for p, q in zip(ours, base, strict=True))
    assert not optimizer._optimizer_step_pre_hooks
    assert optimizer.state[ours[0]].keys() == plain.state[base[0]].keys()
    assert optimizer.state_dict()['param_groups'][0].keys() == plain.state_dict()['param_groups'][0].keys()


@pytest.mark.parametrize('rule', ['spd', 'projection'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_resumed_run_equals_one_that_never_stopped(rule, dtype, tmp_path):
    def start():
        params = make([(5, 4), (7,), (1,)], dtype)
        optimizer = build('AdamW', params)
        balls = {params[0]: 'a', params[1]: 'a'} if rule == 'projection' else None
        schedule = {'type': 'cosine', 'end': 6} if rule == 'spd' else None
        Rollback(optimizer, dict.fromkeys(params, 0.7), rule=rule, balls=balls, level_schedule=schedule)
        return params, optimizer

    straight, optimizer = start()
    train(optimizer, straight, range(7))
    stopped, optimizer = start()
    train(optimizer, stopped, range(3))
    torch.save({'params': stopped, 'optimizer': optimizer.state_dict()}, tmp_path / 'saved.pth')
    saved = torch.load(tmp_path / 'saved.pth', weights_only=True)
    resumed, optimizer = start()
    optimizer.load_state_dict(saved['optimizer'])
    with torch.no_grad():
        for p, q in zip(resumed, saved['params'], strict=True):
            p.copy_(q)
    train(optimizer, resumed, range(3, 7))
    assert all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_spd_goes_by_the_direction_of_the_step(name):
    """With maximize=True that is the gradient's."""
    results = []
    for maximize in (False, True):
        params = make([(5, 4), (7,)])
        groups = [{'params': params[:1], 'maximize': maximize}, {'params': params[1:]}]
        optimizer = getattr(torch.optim, name)(groups, **OPTIMIZERS[name])
        Rollback(optimizer, dict.fromkeys(params, 0.7), rule='spd')
        for step in range(6):
            gradients(params, step)
            if maximize:
                params[0].grad.neg_()
            optimizer.step()
        results.append(params)
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


def test_tensors_of_a_layer_share_a_ball_also_without_a_gradient():
    params = make([(3, 3), (3,), (4,)])
    theta_0 = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=1.0)
    Rollback(optimizer, dict.fromkeys(params, 0.5), rule='projection', balls={params[0]: 1, params[1]: 1})
    for step in range(4):
        gradients(params, step)
        before = [p.detach().clone() for p in params]
        if step == 2:
            params[1].grad = None
        moved = [p.detach() - (0 if p.grad is None else p.grad) for p in params]
        optimizer.step()
        joint = math.hypot(*distances(moved[:2], theta_0[:2]))
        for p, pre, start in zip(params[:2], moved, theta_0, strict=False):
            torch.testing.assert_close(p.detach(), start + (pre - start) * min(0.5 / joint, 1.0))
        assert math.hypot(*distances(params[:2], theta_0[:2])) == pytest.approx(0.5)
        torch.testing.assert_close(params[2].detach(), projection_reference(moved[2], theta_0[2], 0.5))
        assert step != 2 or not torch.equal(params[1], before[1])


@pytest.mark.parametrize('rule', ['spd', 'projection'])
def test_the_first_step_and_a_parameter_without_gradient(rule):
    params = make([(3,), (2,)])
    optimizer = torch.optim.SGD(params, lr=0.0)
    Rollback(optimizer, dict.fromkeys(params, 0.5), rule=rule)
    start = [p.detach().clone() for p in params]
    for _ in range(2):
        gradients(params, 0)
        params[1].grad = None
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, start, strict=True))


def test_the_functions_at_their_edges():
    zero, one, nan = torch.zeros(1), torch.ones(1), torch.full((1,), math.nan)
    assert spd(one, one, zero, zero) == 0
    assert spd(one, zero, zero, one) == 0
    assert spd(one, -one, zero, one) == 0
    assert spd(one, nan, one, 2 * one) == 0
    assert spd(2 * one, one, zero, one) == 1
    assert spd(one, one, 2 * one, one) == 0
    assert projection(zero, zero) == 0
    assert projection(zero, one) == 1
    assert projection(one * math.inf, one) == 0
    assert projection(one, 4 * one) == 0.75


@pytest.mark.parametrize('rule', ['spd', 'projection'])
def test_a_step_that_the_device_skips_changes_nothing(rule):
    """Where found_inf cannot be read: as on a GPU, with the strengths as tensors."""
    params = make([(4, 3), (5,)], torch.float32)
    optimizer = build('AdamW', params)
    rollback = Rollback(optimizer, dict.fromkeys(params, 0.2), rule=rule)
    train(optimizer, params, range(2))
    batches = rollback._plan()
    rollback._ruling.before(batches, [1.0])
    with torch.no_grad():
        params[0].add_(1.0)
    for skipped, expected in ((torch.ones(1), 0.0), (torch.zeros(1), None)):
        (strengths,) = rollback._ruling.after(batches, rollback.pace.ratios(), skipped)
        rollback._ruling.before(batches, [1.0])
        assert expected is None or strengths.tolist() == [0.0, 0.0]
    assert rule != 'projection' or strengths[0] > 0


def test_scaled_gradients_make_no_difference_to_spd():
    runs = []
    for scale in (1.0, 2.0**16):
        params = make([(6, 5), (4,)])
        optimizer = torch.optim.SGD(params, lr=0.3 / scale)
        Rollback(optimizer, dict.fromkeys(params, 1.0), rule='spd')
        for step in range(6):
            gradients(params, step, scale)
            optimizer.step()
        runs.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('rule', ['spd', 'projection'])
def test_16_bit_weights_are_rounded_so_that_the_mean_is_right(rule, dtype):
    params = [torch.full((4096,), 1.0, dtype=dtype, requires_grad=True)]
    optimizer = torch.optim.SGD(params, lr=1.0, momentum=0.5)
    Rollback(optimizer, dict.fromkeys(params, 0.31), rule=rule)
    for grad in (-0.25, 2.0**-7)[: 1 if rule == 'projection' else 2]:
        params[0].grad = torch.full_like(params[0], grad)
        optimizer.step()
    offset = params[0].detach().double() - 1
    if rule == 'projection':
        expected = 0.31 / 64
    else:
        # The second gradient points back, and momentum leads on all the same: from 0.25 to 0.3671875.
        pre = 0.3671875
        expected = pre - 0.31 * (pre - 0.25) / pre * pre
    assert float(offset.mean()) == pytest.approx(expected, rel=0.05)
    assert len(offset.unique()) == 2


def test_complex_weights():
    params = [torch.randn(4, 3, dtype=torch.complex128, requires_grad=True)]
    theta_0 = params[0].detach().clone()
    optimizer = torch.optim.SGD(params, lr=1.0)
    Rollback(optimizer, dict.fromkeys(params, 0.5), rule='projection')
    params[0].grad = torch.randn_like(theta_0)
    optimizer.step()
    assert float((params[0].detach() - theta_0).norm()) == pytest.approx(0.5)


# ---------------------------------------------------------------- what it costs


def test_spd_keeps_two_numbers_for_each_tensor_and_nothing_after_the_step():
    params = make([(64, 64)] * 3, torch.float32)
    optimizer = build('AdamW', params)
    rollback = Rollback(optimizer, dict.fromkeys(params, 0.5), rule='spd')
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(dict(rollback._ruling._before)))
    train(optimizer, params, range(2))
    assert [value.numel() for value in seen[-1].values()] == [2, 2, 2]
    assert rollback._ruling._before == {}


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.overloadpacket.__name__ not in ('view', 'detach', '_unsafe_view', 't', 'alias')
        return function(*args, **(kwargs or {}))


def test_kernels_for_strengths_on_a_device_do_not_follow_the_number_of_tensors():
    """Counted by calls, with the kernel that a GPU has, on the CPU."""
    counts = []
    for number in (10, 200):
        params = [torch.randn(8) for _ in range(number)]
        anchors = [torch.randn(8) for _ in range(number)]
        weights = torch.rand(number)
        truth = [torch.lerp(p, a, w) for p, a, w in zip(params, anchors, weights, strict=True)]
        with Count() as count:
            kernels.weighted(params, anchors, weights)
        assert all(torch.equal(p, t) for p, t in zip(params, truth, strict=True))
        counts.append(count.number)
    assert counts[0] == counts[1]


def test_weighted_takes_large_tensors_many_chunks_and_other_layouts(monkeypatch):
    monkeypatch.setattr(kernels, '_SMALL', 40)
    monkeypatch.setattr(kernels, '_GATHERED', 100)
    shapes = [(3, 4), (50,), (2, 3, 3, 2), (39,), (30,), (1,), ()]
    params = [torch.randn(s) for s in shapes] + [torch.randn(3, dtype=torch.complex64)]
    params[2] = params[2].to(memory_format=torch.channels_last)
    anchors = [torch.randn_like(p) for p in params]
    weights = torch.rand(len(params))
    truth = [p + w * (a - p) for p, a, w in zip(params, anchors, weights, strict=True)]
    kernels.weighted(params, anchors, weights)
    for p, t in zip(params, truth, strict=True):
        torch.testing.assert_close(p, t)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.complex128])
@pytest.mark.parametrize('way', ['on a device', 'on a device, many buckets', 'on a CPU', 'on a CPU, many pieces'])
def test_sums_are_those_of_whole_tensors(way, dtype, monkeypatch):
    """What a GPU computes by many tensors at a time is computed so on the CPU here."""
    if 'device' in way:
        monkeypatch.setattr(measures, '_sums_on_host', measures._sums)
    if 'many' in way:
        monkeypatch.setattr(measures, '_BUCKET', 100)
        monkeypatch.setattr(measures, '_PIECE', 7)
    params = [torch.randn(s, dtype=dtype) for s in [(5, 4), (7,), (1,), (30,), (2, 3, 3, 2), ()]]
    params[4] = params[4].to(memory_format=torch.channels_last)
    for p in params:
        p.requires_grad_()
    anchors = {p: torch.randn_like(p) for p in params}
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.SGD(params, lr=0.1)
    rollback = Rollback(optimizer, dict.fromkeys(params, 0.5), rule='spd', anchor=anchors)
    rollback.capture()
    found = measures.measured(rollback._plan(), gradients=True)
    tolerance = 1e-12 if dtype in (torch.float64, torch.complex128) else 1e-4
    for p in params:
        theta, theta_0, grad = (
            (t if t.is_complex() else t.double()) for t in (p.detach(), anchors[p].detach(), p.grad)
        )
        offset = theta - theta_0
        inner = float((grad.conj() * offset).sum().real)
        expected = torch.tensor([inner, float(offset.abs().square().sum())], dtype=torch.float64)
        torch.testing.assert_close(found[p].double(), expected, rtol=tolerance, atol=tolerance * 10)


# ---------------------------------------------------------------- what is refused, or done otherwise


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'rule': 'spc'}, r"rule='spc' is not known: choose one of olor, spd, projection"),
        ({'rule': None}, r'rule=None is not known'),
        ({'rule': 'projection', 'level_schedule': 'cosine'}, r"rule='projection' has none: leave it away"),
        ({'balls': {}}, r"balls is for rule='projection', and rule='olor'"),
        ({'rule': 'projection', 'balls': {'a': 1}}, r'balls=.* must map parameters'),
    ],
)
def test_mistakes(options, said):
    params = make([(2,)])
    with pytest.raises(ValueError, match=said):
        Rollback(torch.optim.SGD(params, lr=0.1), dict.fromkeys(params, 0.5), **options)


@pytest.mark.parametrize(
    ('rule', 'amount', 'said'),
    [
        ('spd', 1.5, 'is not a rollback level'),
        ('projection', -1.0, 'is not a radius: give a number from 0'),
        ('projection', math.nan, 'is not a radius'),
        ('projection', '1', 'is not a radius'),
    ],
)
def test_amounts_that_cannot_be(rule, amount, said):
    params = make([(2,)])
    with pytest.raises(ValueError, match=said):
        Rollback(torch.optim.SGD(params, lr=0.1), dict.fromkeys(params, amount), rule=rule)


def test_a_closure_is_refused_by_spd_and_taken_by_projection():
    params = make([(3,)])
    start = params[0].detach().clone()

    def closure():
        gradients(params, 0, 100.0)
        return torch.zeros(())

    optimizer = torch.optim.SGD(params, lr=1.0)
    rollback = Rollback(optimizer, dict.fromkeys(params, 0.5), rule='spd')
    with pytest.raises(ValueError, match=r"closure, but rule='spd' reads gradients before the step"):
        optimizer.step(closure)
    rollback.detach()
    Rollback(optimizer, dict.fromkeys(params, 0.5), rule='projection')
    optimizer.step(closure)
    assert distances(params, [start]) == [pytest.approx(0.5)]


@pytest.mark.parametrize('rule', ['spd', 'projection'])
def test_a_single_pass_falls_back_and_says_so_once(rule, caplog):
    caplog.set_level(logging.WARNING)
    params = make([(3, 2)])
    optimizer = build('AdamW', params)
    rollback = Rollback(optimizer, dict.fromkeys(params, 0.5), rule=rule, form='single_pass')
    train(optimizer, params, range(3))
    assert [record.getMessage() for record in caplog.records] == [
        f"form='single_pass' is not possible here (rule={rule!r}): the pull is a pass of its own"
    ]
    assert rollback.form_in_use == 'foreach'
    assert rollback.num_rolled_back == 1


def test_radii_by_layer():
    params = make([(1,), (1,), (1,)])
    named = [(str(i), p) for i, p in enumerate(params)]
    index = {'0': 0, '1': 1, '2': 2}
    assert [*layerwise_radii(named, index, 2, 0.5).values()] == [0.5, 0.5, 0.5]
    assert [*layerwise_radii(named, index, 2, (1.0, 3.0)).values()] == [1.0, 2.0, 3.0]
    assert [*layerwise_radii(named, index, 2, (1.0, 3.0), power=2).values()] == [1.0, 2.5, 3.0]
    with pytest.raises(ValueError, match=r'radius=\(1\.0,\) must be a number, or two'):
        layerwise_radii(named, index, 2, (1.0,))
