"""bfloat16 and float16 weights: the pull has the right mean, is never lost, and is the same on every replica."""

import io

import pytest
import torch

from olor_mm.rollback import Rollback
from olor_mm.rollback._batches import pull
from olor_mm.rollback.rounding import COUNT_KEY, stochastic

DTYPES = [torch.bfloat16, torch.float16]
#: Distance of neighbours between 1 and 2.
UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


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
    stochastic([param], [anchor], [a], rng())
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
@pytest.mark.parametrize('start', [1.5, -1.5, 0.01, -300.0])
@pytest.mark.parametrize('a', [0.3, 1e-2, 1e-3])
def test_the_mean_is_exact(dtype, start, a):
    number = 200_000
    param = torch.full((number,), start).to(dtype)
    anchor = torch.full((number,), 1.02 * start).to(dtype)
    exact = param[0].double() + a * (anchor[0].double() - param[0].double())
    stochastic([param], [anchor], [a], rng())
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
    stochastic([param], [anchor], [0.25], rng())
    assert not param[:3].isfinite().any()
    assert torch.equal(param[3:], values[3:])


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
