"""bfloat16 and float16 weights: the pull has the right mean, is never lost, and is the same on every replica."""

import io

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from olor_mm.rollback import Rollback, _numbers, kernels, rounding
from olor_mm.rollback._batches import pull
from olor_mm.rollback._numbers import Numbers
from olor_mm.rollback.rounding import COUNT_KEY, SPARE, stochastic

DTYPES = [torch.bfloat16, torch.float16]
#: Distance of neighbours between 1 and 2.
UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(dtype, seed=0):
    return Numbers(rng(seed), SPARE[dtype])


def any_values(dtype, number=4000, seed=0):
    """Finite numbers of every size: random bits."""
    bits = torch.randint(-(2**15), 2**15, (number,), generator=rng(seed), dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    return torch.where(values.isfinite(), values, torch.ones_like(values))


def neighbours(exact, dtype):
    """The largest value of the dtype not above, and the smallest not below, of float64 numbers."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()].double().unique()
    above = torch.searchsorted(every, exact)
    below = torch.searchsorted(every, exact, right=True) - 1
    return every[below.clamp(min=0)], every[above.clamp(max=len(every) - 1)]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('a', [1.0, 0.5, 0.1, 1e-3, 1e-5])
def test_a_neighbour_of_the_exact_value_and_between_the_two(dtype, a):
    param, anchor = any_values(dtype, seed=1), any_values(dtype, seed=2)
    # Half of the pairs are near to each other, as after fine-tuning.
    anchor[::2] = (param[::2].float() * 1.01).to(dtype)
    anchor = torch.where(anchor.isfinite(), anchor, param)
    before = param.clone()
    stochastic([param], [anchor], [a], numbers(dtype))
    exact = before.double() + a * (anchor.double() - before.double())
    below, above = neighbours(exact, dtype)
    after = param.double()
    # float32 carries the sum: an exact value that is within its error of a number may round past that number.
    slack = 2.0**-22 * torch.maximum(before.double().abs(), anchor.double().abs())
    assert ((after >= below - slack) & (after <= above + slack)).all()
    assert (after >= torch.minimum(before, anchor).double() - slack).all()
    assert (after <= torch.maximum(before, anchor).double() + slack).all()
    if a == 1.0:
        assert torch.equal(param, anchor)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('start', [1.5, -1.5, 1.0, -1.0, 0.01, -300.0, 1e-5, -6e-5])
@pytest.mark.parametrize('a', [0.3, 1e-2, 1e-3])
def test_the_mean_is_exact(dtype, start, a):
    number = 200_000
    param = torch.full((number,), start).to(dtype)
    # Below 6e-5 the numbers of float16 are as far apart as those just above.
    anchor = torch.full((number,), (1.02 if abs(start) > 1e-4 else 1.1) * start).to(dtype)
    exact = param[0].double() + a * (anchor[0].double() - param[0].double())
    stochastic([param], [anchor], [a], numbers(dtype))
    found = param.double()
    # Four standard errors.
    assert abs(found.mean() - exact) <= 4 * found.std() / number**0.5 + 2.0**-40 * abs(exact)
    assert found.unique().numel() <= 2


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('a', [0.1, 0.01, 0.001])
def test_where_rounding_to_the_nearest_loses_the_pull(dtype, a):
    """The bound in the documents: fewer than 1 / (2a) units away, nothing moves; just above it, something does."""
    bound = round(0.5 / a)
    units = torch.tensor([0.9, 1.1]) * bound
    theta_0 = torch.full((2,), 1.5, dtype=torch.float64)
    theta = torch.full((2,), 1.5, dtype=torch.float32)
    near = theta + (a * units * UNIT[dtype]).float()
    assert (near.to(dtype) == theta_0.to(dtype)).tolist() == [True, False]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('a', 'steps'), [(0.1, 10), (1e-2, 100), (1e-3, 500)])
def test_many_pulls_leave_what_the_closed_form_says(dtype, a, steps):
    generator = rng()
    theta_0 = (0.02 * torch.randn(20_000, generator=generator)).to(dtype)
    start = (theta_0 * (1 + 0.05 * torch.randn(20_000, generator=generator))).to(dtype)
    param = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([param], lr=1.0)
    Rollback(optimizer, {param: a}, anchor={param: theta_0})
    for _ in range(steps):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    first = start.double() - theta_0.double()
    left = ((param.detach().double() - theta_0.double()) * first).sum() / first.square().sum()
    assert left.item() == pytest.approx((1 - a) ** steps, abs=0.01)


@pytest.mark.parametrize('dtype', DTYPES)
def test_what_is_not_finite_stays_so_and_equal_stays_equal(dtype):
    values = torch.tensor(
        [float('nan'), float('inf'), -float('inf'), 0.0, -0.0, 1.0, torch.finfo(dtype).max], dtype=dtype
    )
    param, anchor = values.clone(), values.clone()
    anchor[:3] = 1.0
    stochastic([param], [anchor], [0.25], numbers(dtype))
    assert not param[:3].isfinite().any()
    assert torch.equal(param[3:], values[3:])


@pytest.mark.parametrize('sign', [1.0, -1.0])
@pytest.mark.parametrize('towards', [1.125, 0.875])
def test_a_pull_that_float32_cannot_hold(sign, towards):
    """From a power of two, below which the units are half as large."""
    number, a = 2**23, 2e-7
    param = torch.full((number,), sign).bfloat16()
    anchor = torch.full((number,), sign * towards).bfloat16()
    assert torch.equal(torch.lerp(param[:1].float(), anchor[:1].float(), a), param[:1].float())
    unit = 2.0**-7 if towards > 1 else 2.0**-8
    expected = number * a * abs(towards - 1) / unit
    stochastic([param], [anchor], [a], numbers(torch.bfloat16))
    moved = (param != sign).sum().item()
    assert abs(moved - expected) < 4 * expected**0.5
    assert param.double().sub(sign).abs().max() == unit


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_spread_of_a_sum_is_that_of_independent_roundings(dtype, monkeypatch):
    """Over many blocks, which share random numbers, and within one."""
    monkeypatch.setattr(_numbers, '_WIDTH', 64)
    monkeypatch.setattr(_numbers, '_GROUP', 16)
    blocks, tries = 64, 400
    share, counts = 0.3, []
    for seed in range(tries):
        param = torch.ones(64 * blocks, dtype=dtype)
        anchor = param + 2 * UNIT[dtype]
        stochastic([param], [anchor], [share / 2], numbers(dtype, seed))
        counts.append((param > 1).view(blocks, 64))
    counts = torch.stack(counts).double()
    one = share * (1 - share)
    all_of_it, across, within = counts.sum((1, 2)), counts.sum(1).view(-1), counts.sum(2).view(-1)
    for sums, number in ((all_of_it, 64 * blocks), (across, blocks), (within, 64)):
        assert sums.mean().item() == pytest.approx(number * share, abs=4 * (number * one / len(sums)) ** 0.5)
        # The variance of a variance is about 2 / n; sums within one try are not independent of each other.
        assert sums.var().item() == pytest.approx(number * one, rel=4 * (2 / tries) ** 0.5)


@pytest.mark.parametrize('dtype', DTYPES)
def test_how_it_is_cut_up_does_not_matter(dtype, monkeypatch):
    """The random number of an element is that of its place among all, whatever the threads or the tensors."""
    monkeypatch.setattr(_numbers, '_WIDTH', 128)
    monkeypatch.setattr(_numbers, '_GROUP', 2)
    before, anchor = torch.randn(1000, generator=rng(1)).to(dtype), torch.randn(1000, generator=rng(2)).to(dtype)
    whole = before.clone()
    stochastic([whole], [anchor], [0.1], numbers(dtype))
    for chunk in (100, 128, 1000):
        monkeypatch.setattr(rounding, '_CHUNK', chunk)
        for sizes in ([1000], [1, 0, 499, 500], [130] * 7 + [90], [1] * 1000):
            params = [part.clone() for part in before.split(sizes)]
            stochastic(params, anchor.split(sizes), [0.1] * len(sizes), numbers(dtype))
            assert torch.equal(torch.cat(params), whole)
            # And in several calls, as where theta_0 comes in parts.
            params, one_after_another = [part.clone() for part in before.split(sizes)], numbers(dtype)
            for param, target in zip(params[:20], anchor.split(sizes)[:20], strict=True):
                stochastic([param], [target], [0.1], one_after_another)
            assert torch.equal(torch.cat(params[:20]), whole[: sum(sizes[:20])])


def test_numbers_are_uniform_and_pairs_of_them_independent(monkeypatch):
    """Every pair of bits of two numbers is 00, 01, 10 and 11 as often, whatever lies between the two."""
    monkeypatch.setattr(_numbers, '_WIDTH', 4)
    monkeypatch.setattr(_numbers, '_GROUP', 2)
    tries = 4000
    taken = torch.empty(tries, 24, dtype=torch.int64)
    for seed in range(tries):
        source = Numbers(rng(seed), 3)
        taken[seed] = source.take(24, source.room(24))
    assert taken.min() == 0
    assert taken.max() == 7
    bits = torch.stack([taken >> k & 1 for k in range(3)]).double() * 2 - 1
    assert bits.mean(1).abs().max() < 5 / tries**0.5
    products = torch.einsum('ktn,ktm->knm', bits, bits) / tries - torch.eye(24)
    assert products.abs().max() < 5 / tries**0.5


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('tensors', [False, True])
def test_each_tensor_has_its_own_strength(dtype, tensors):
    weights = [0.0, 0.25, 0.5, 1.0]
    given = [torch.tensor(weight) for weight in weights] if tensors else weights
    params = [torch.zeros(1000, dtype=dtype) for _ in weights]
    stochastic(params, [torch.ones(1000, dtype=dtype) for _ in weights], given, numbers(dtype))
    assert [param.unique().tolist() for param in params] == [[weight] for weight in weights]


@pytest.mark.parametrize('layout', ['channels_last', 'transposed', 'gaps', 'anchor otherwise'])
def test_every_memory_layout(layout):
    params = torch.randn(4, 6, 5, 5, generator=rng(1)).bfloat16(), torch.randn(4, 6, 5, 5, generator=rng(2)).bfloat16()
    if layout == 'channels_last':
        param, anchor = (p.clone(memory_format=torch.channels_last) for p in params)
    elif layout == 'transposed':
        param, anchor = (p.clone().transpose(0, 1) for p in params)
    elif layout == 'gaps':
        param, anchor = (torch.stack([p, p], -1)[..., 0] for p in params)
    else:
        param, anchor = params[0].clone(), params[1].clone(memory_format=torch.channels_last)
    before, strides = param.clone(), param.stride()
    stochastic([param], [anchor], [0.5], numbers(torch.bfloat16))
    exact = (before.double() + anchor.double()) / 2
    assert (param.double() - exact).abs().max() <= 2.0**-7 * exact.abs().max()
    assert (param != before).any()
    assert param.stride() == strides


def test_without_float64_it_is_computed_on_the_cpu(monkeypatch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    dither = rounding.Dither(optimizer)
    dither.next_step()
    monkeypatch.setattr(rounding, '_has_float64', lambda _: False)
    assert dither.numbers(torch.device('cuda'), torch.bfloat16).device.type == 'cpu'


class Operators(TorchDispatchMode):
    """Counts what is computed; a view costs no kernel."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and 'split' not in str(func)
        # torch 2.1 names an overload that it does not take itself.
        return func.overloadpacket(*args, **(kwargs or {}))


def test_the_number_of_operators_does_not_grow_with_the_tensors():
    # What it asks for once and keeps.
    kernels._foreach_lerp_takes_a_list()
    counts = []
    for number in (2, 200):
        params = list(torch.ones(2000).bfloat16().split(2000 // number))
        anchors = list(torch.zeros(2000).bfloat16().split(2000 // number))
        with Operators() as operators:
            stochastic(params, anchors, [0.1 + 0.1 * (i % 2) for i in range(number)], numbers(torch.bfloat16))
        counts.append(operators.count)
    assert counts[0] == counts[1] < 20


def train(model, optimizer, steps, seed=0):
    for t in range(seed, seed + steps):
        optimizer.zero_grad()
        x = torch.randn(8, 16, generator=rng(t)).bfloat16()
        model(x).float().square().mean().backward()
        optimizer.step()


def build(level=0.01, lr=0.1):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, optimizer, Rollback(optimizer, dict.fromkeys(model.parameters(), level))


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_replicas_round_alike_and_nobody_elses_numbers_change():
    one, other = build(), build()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(*one[:2], 20)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    train(*other[:2], 20)
    assert same(one[0], other[0])


def test_resume_is_exact():
    straight = build()
    train(*straight[:2], 20)
    first = build()
    train(*first[:2], 11)
    file = io.BytesIO()
    torch.save([first[0].state_dict(), first[1].state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = build()
    resumed[0].load_state_dict(weights)
    resumed[1].load_state_dict(state)
    train(*resumed[:2], 9, seed=11)
    assert same(resumed[0], straight[0])


def test_the_count_is_only_there_where_it_is_needed():
    model, optimizer, rollback = build()
    train(model, optimizer, 3)
    assert optimizer.param_groups[0][COUNT_KEY] == 3
    rollback.detach()
    assert COUNT_KEY not in optimizer.param_groups[0]
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([param], lr=0.1)
    Rollback(optimizer, {param: 0.1})
    param.grad = torch.ones(3)
    optimizer.step()
    assert COUNT_KEY not in optimizer.param_groups[0]


@pytest.mark.parametrize('form', ['foreach', 'single_tensor', 'single_pass'])
def test_no_learning_rate_no_change(form):
    param = torch.nn.Parameter(torch.randn(100, generator=rng()).bfloat16())
    optimizer = torch.optim.SGD([{'params': [param], 'lr': 0.0, 'initial_lr': 0.1}])
    Rollback(optimizer, {param: 0.5}, anchor={param: torch.zeros(100).bfloat16()}, form=form)
    before = param.detach().clone()
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize(('found_inf', 'moves'), [(0.0, True), (1.0, False)])
def test_a_device_may_decide_that_the_step_was_none(found_inf, moves):
    param = torch.nn.Parameter(torch.randn(1000, generator=rng()).bfloat16())
    optimizer = torch.optim.SGD([param], lr=0.1)
    rollback = Rollback(optimizer, {param: 0.1}, anchor={param: torch.zeros(1000).bfloat16()})
    param.grad = torch.zeros_like(param)
    optimizer.step()
    before = param.detach().clone()
    with torch.no_grad():
        rollback._dither.next_step()
        for batch in rollback._plan():
            pull(batch, [1.0], torch.tensor([found_inf]), rollback.form, rollback._dither)
    assert torch.equal(param, before) != moves
