"""form='single_pass': what it leaves to a pass of its own, and what an error in a step leaves behind."""

import copy

import pytest
import torch
from torch import nn

from olor_mm.rollback import Rollback

from ._single_pass import OPTIMIZERS, SHAPES, Run, compiled_or_skip


@pytest.fixture(scope='module', autouse=True)
def _compiled():
    compiled_or_skip()


REFUSED = {
    'amsgrad': (torch.optim.AdamW, {'amsgrad': True}, 'amsgrad=True'),
    'SGD without momentum': (torch.optim.SGD, {}, 'SGD without momentum'),
    'RMSprop': (torch.optim.RMSprop, {}, "RMSprop is none of torch's"),
    'a learning rate on the device': (torch.optim.AdamW, {'lr': torch.tensor(1e-2)}, 'lr is a tensor'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_it_cannot_take_is_said_once_and_pulled_by_itself(case, caplog):
    cls, options, said = REFUSED[case]
    runs = []
    for form in ('foreach', 'single_pass'):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(7))
        optimizer = cls([p], **{'lr': 1e-2, **options})
        Rollback(optimizer, {p: 0.1}, form=form)
        for i in range(3):
            p.grad = torch.full_like(p, 1.0 + i)
            optimizer.step()
        runs.append(p.detach())
    assert torch.equal(*runs)
    assert [said in record.message for record in caplog.records] == [True]


def test_bfloat16_is_pulled_by_itself(caplog):
    p = nn.Parameter(torch.ones(7, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p], lr=1e-2)
    Rollback(optimizer, {p: 0.1}, form='single_pass')
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert [record.message for record in caplog.records] == [
        "form='single_pass' is not possible here (parameters are torch.bfloat16): the pull is a pass of its own"
    ]


def test_a_hook_between_it_and_the_step_sees_all_gradients():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.optimizer.register_step_pre_hook(lambda *_, run=run: nn.utils.clip_grad_norm_(run.params, 0.1) and None)
        run.step(4)
    single.assert_like(plain, rtol=0, atol=0)


def test_a_hook_between_the_step_and_it_sees_all_gradients(caplog):
    run = Run('AdamW', 'foreach')
    run.rollback.detach()
    seen = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(all(p.grad is not None for p in run.params)))
    run.join('single_pass')
    run.step(3)
    assert seen == [True] * 3
    assert [record.message for record in caplog.records] == [
        "form='single_pass' is not possible here (another step hook lies between it and the step, and would miss the "
        'gradients): the pull is a pass of its own'
    ]


def test_a_closure_makes_its_own_gradients(caplog):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)

        def closure(run=run):
            for p in run.params:
                p.grad.mul_(0.5)
            return 0.0

        run.optimizer.step(closure)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)
    assert 'step() is given a closure' in caplog.text


def test_after_an_error_in_the_step_its_gradients_are_used_up():
    """Some parameters have made their step when it ends: as with torch's own, but they do not make it twice."""
    run = Run('AdamW', 'single_pass')
    run.step(2)
    before = [p.detach().clone() for p in run.params]
    # Of one that the optimizer's own step takes.
    state = run.optimizer.state[run.params[-1]]
    moment = state.pop('exp_avg')
    with pytest.raises(KeyError):
        run.optimizer.step()
    state['exp_avg'] = moment
    once = [p.detach().clone() for p in run.params[: len(SHAPES)]]
    assert not any(torch.equal(p, q) for p, q in zip(once, before, strict=False))
    run.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(run.params, once, strict=False))
    run.step(1)
    assert not any(torch.equal(p, q) for p, q in zip(run.params, once, strict=False))
    assert all(p.grad is not None for p in run.params)


@pytest.mark.parametrize('others_only', [False, True])
def test_gradients_of_a_failed_step_do_not_come_back(others_only):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        saved = copy.deepcopy((run.optimizer.state_dict(), [p.detach() for p in run.params]))
        state = run.optimizer.state[run.params[-1]]
        moment = state.pop('exp_avg')
        with pytest.raises(KeyError):
            run.optimizer.step()
        state['exp_avg'] = moment
        run.optimizer.load_state_dict(saved[0])
        for p, q in zip(run.params, saved[1], strict=True):
            p.data.copy_(q)
            p.grad = None
        if others_only:
            run.params[-1].grad = torch.ones_like(run.params[-1])
            run.optimizer.step()
            assert all(p.grad is None for p in run.params[: len(SHAPES)])
        run.step(2)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('grown', ['moments', 'parameter'])
@pytest.mark.parametrize('name', ['AdamW', 'SGD'])
def test_tensors_of_another_shape_are_torchs_error(name, grown):
    """Equal strides are not equal lengths: the kernels would write beyond the end."""
    p = nn.Parameter(torch.randn(10, 64))
    cls, options = OPTIMIZERS[name]
    optimizer = cls([p], lr=1e-2, foreach=True, **options)
    Rollback(optimizer, {p: 0.1}, form='single_pass')
    p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    if grown == 'parameter':
        p.data = torch.cat([p.data, p.data])
        p.grad = torch.ones_like(p)
    else:
        key = 'exp_avg' if name == 'AdamW' else 'momentum_buffer'
        optimizer.state[p][key] = torch.zeros(5, 64)
    with pytest.raises(RuntimeError, match=r'size|shape'):
        optimizer.step()


@pytest.mark.parametrize('option', ['weight_decay', 'eps', 'lr'])
def test_numbers_that_are_tensors_count_as_such(option):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.optimizer.defaults['foreach'] = False
        for group in run.optimizer.param_groups:
            group.update({'fused': None, 'foreach': False, option: torch.tensor(group[option])})
            group['rollback_initial_lr'] = 1e-2
        for _ in range(3):
            for p in run.params:
                p.grad = torch.full_like(p, 0.1)
            run.optimizer.step()
    single.assert_like(plain, rtol=0, atol=0)
