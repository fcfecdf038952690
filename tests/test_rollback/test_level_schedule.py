"""Schedules of the level: the factors written out, resumed exactly, and what is refused."""

import math

import pytest
import torch

from olor_mm.rollback import Rollback
from olor_mm.rollback._pace import STEPS_KEY
from olor_mm.rollback.level_schedule import LevelSchedule, Ramp, check_schedule

COSINE = {'type': 'cosine', 'begin': 2, 'end': 6, 'end_factor': 0.2}
WARMUP = {'type': 'warmup', 'end': 4, 'start_factor': 0.1}
SCHEDULES = {
    'constant': ('constant', [1.0] * 9),
    'cosine': (COSINE, [1.0] * 3 + [0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3)] + [0.2] * 3),
    'warm-up': (WARMUP, [0.1, 0.325, 0.55, 0.775] + [1.0] * 5),
    'both': ([WARMUP, {'type': 'cosine', 'begin': 4, 'end': 6}], [0.1, 0.325, 0.55, 0.775, 1.0, 0.5, 0.0, 0.0, 0.0]),
    'numbers': ([0.5, 0.25, 1], [0.5, 0.25] + [1.0] * 7),
    'function': (lambda step: 1 / (1 + step), [1 / (1 + step) for step in range(9)]),
}


@pytest.mark.parametrize(('given', 'factors'), SCHEDULES.values(), ids=SCHEDULES)
def test_the_pull_is_level_times_factor_whatever_the_learning_rate(given, factors):
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rollback = Rollback(optimizer, {param: 0.5}, level_schedule=given)
    for factor in factors:
        with torch.no_grad():
            param.fill_(1.0)
        param.grad = torch.zeros_like(param)
        if rollback.num_steps == 0:
            rollback.capture()
            rollback._store._pending[param].zero_()
        assert rollback.pace.factor() == pytest.approx(factor)
        optimizer.step()
        scheduler.step()
        assert float(param.detach()) == pytest.approx(1 - 0.5 * factor, abs=1e-12)
    assert (STEPS_KEY in optimizer.param_groups[0]) == (given != 'constant')
    rollback.detach()
    assert STEPS_KEY not in optimizer.param_groups[0]


def test_lr_is_the_default_and_leaves_no_trace():
    results = []
    for options in ({}, {'level_schedule': 'lr'}, {'level_schedule': None}):
        param = torch.linspace(0, 1, 5).requires_grad_()
        optimizer = torch.optim.AdamW([param], lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        Rollback(optimizer, {param: 0.3}, **options)
        for i in range(4):
            param.grad = torch.full_like(param, i - 1.0)
            optimizer.step()
            scheduler.step()
        assert STEPS_KEY not in optimizer.param_groups[0]
        results.append(param)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert check_schedule('lr') is None


@pytest.mark.parametrize('form', ['foreach', 'single_tensor'])
def test_a_resumed_run_goes_on_with_the_count(form, tmp_path):
    def start():
        param = torch.linspace(0, 1, 5).requires_grad_()
        optimizer = torch.optim.SGD([param], lr=0.1)
        return param, optimizer, Rollback(optimizer, {param: 0.5}, level_schedule=COSINE, form=form)

    def train(param, optimizer, steps):
        for i in steps:
            param.grad = torch.full_like(param, i - 1.0)
            optimizer.step()

    straight, optimizer, _ = start()
    train(straight, optimizer, range(7))
    stopped, optimizer, _ = start()
    train(stopped, optimizer, range(4))
    torch.save([stopped, optimizer.state_dict()], tmp_path / 'saved.pth')
    weights, state = torch.load(tmp_path / 'saved.pth', weights_only=True)
    resumed, optimizer, _ = start()
    optimizer.load_state_dict(state)
    with torch.no_grad():
        resumed.copy_(weights)
    train(resumed, optimizer, range(4, 7))
    assert torch.equal(straight, resumed)


def test_fitted_to_a_run():
    cosine = check_schedule('cosine').fitted(100, None)
    assert [cosine(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    warmup = check_schedule('warmup').fitted(100, None)
    assert [warmup(step) for step in (0, 5, 10, 50)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    epochs = check_schedule({'type': 'warmup', 'begin': 1, 'end': 3, 'by_epoch': True}).fitted(100, 10)
    assert [epochs(step) for step in (10, 20, 30)] == pytest.approx([0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match='not known how long an epoch is'):
        check_schedule({'type': 'cosine', 'by_epoch': True}).fitted(100, None)
    assert LevelSchedule([Ramp('constant')]).is_constant
    assert not LevelSchedule([Ramp('constant'), Ramp('cosine')]).is_constant


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ('linear', r"level_schedule='linear' is not known: choose one of lr, constant, warmup, cosine"),
        ('cosine', r"level_schedule='cosine' does not say in which step it ends.*end=<number of steps>"),
        ({'type': 'warmup', 'end': 3, 'by_epoch': True}, r"level_schedule='warmup' does not say in which step"),
        ({'type': 'linear'}, r"level_schedule\.type='linear' is not known"),
        ({'type': ['cosine']}, r'level_schedule\.type=.* is not known'),
        ({'end': 3}, r'level_schedule=.* has no type'),
        ({'type': 'cosine', 'ende': 3}, r'level_schedule\.ende=3 is not an option: did you mean end\?'),
        ({'type': 'cosine', 'end': -1}, r'level_schedule\.end=-1 must be a number of steps, from 0'),
        ({'type': 'cosine', 'begin': 3, 'end': 3}, r'level_schedule\.end=3 must be above begin=3'),
        ({'type': 'cosine', 'end': 3, 'end_factor': 2}, r'end_factor=2 must be a number in \[0, 1\]'),
        ({'type': 'cosine', 'end': 3, 'by_epoch': 1}, r'by_epoch=1 must be True or False'),
        ({'type': 'constant', 'end': 3}, r"level_schedule\.end=3 is no option of 'constant'"),
        ([], r'level_schedule=\[\] must be one of'),
        ([0.5, 2.0], r'level_schedule=\[0\.5, 2\.0\] must be one of'),
        (0.5, r'level_schedule=0\.5 must be one of'),
    ],
)
def test_mistakes(given, said):
    param = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match=said):
        Rollback(torch.optim.SGD([param], lr=1.0), {param: 0.5}, level_schedule=given)


def test_a_function_that_gives_no_factor():
    param = torch.zeros(1, requires_grad=True)
    param.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([param], lr=1.0)
    Rollback(optimizer, {param: 0.5}, level_schedule=lambda step: -1)
    with pytest.raises(ValueError, match=r'the function gave -1 in step 0'):
        optimizer.step()
