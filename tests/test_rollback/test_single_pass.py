"""form='single_pass': the step and the pull together give what the step and then the pull give."""

import copy

import pytest
import torch

from olor_mm.rollback import Keep, Rollback
from tests._torch import grad_scaler

from ._single_pass import OPTIMIZERS, SHAPES, Run, compiled_or_skip

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))]


@pytest.fixture(scope='module', autouse=True)
def _compiled():
    compiled_or_skip()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_it_is_the_step_and_then_the_pull(name, dtype, device, caplog):
    plain, single = Run(name, 'foreach', device, dtype), Run(name, 'single_pass', device, dtype)
    plain.step(6)
    single.step(6)
    eps = torch.finfo(dtype).eps
    single.assert_like(plain, rtol=16 * eps, atol=16 * eps)
    assert not caplog.records


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_it_is_as_exact_as_the_step_and_then_the_pull(name):
    """In float32, against float64: a pass of its own rounds once more."""
    truth, plain, single = Run(name, 'foreach', dtype=torch.float64), Run(name, 'foreach'), Run(name, 'single_pass')
    for p, q, r in zip(truth.params, plain.params, single.params, strict=True):
        # The same start, and the same gradients in all three.
        for other in (p, q, r):
            other.data.copy_(q.detach().bfloat16())
    for run in (truth, plain, single):
        run.coarse = True
        run.step(12)

    def error(run):
        return sum((p.double() - q).square().sum() for p, q in zip(run.params, truth.params, strict=True)).sqrt()

    assert 0 < error(single) <= 1.05 * error(plain)


def test_only_the_first_step_is_the_optimizers_own(monkeypatch):
    run = Run('AdamW', 'single_pass')
    seen = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(sum(p.grad is not None for p in run.params)))
    taken = []
    single = run.rollback._single_pass
    original = single.step

    def step(*args):
        left = original(*args)
        taken.append(len(single._hidden))
        assert sum(len(batch.params) for batch in left) == len(SHAPES) - taken[-1]
        return left

    monkeypatch.setattr(single, 'step', step)
    run.step(3)
    assert taken == [0, len(SHAPES), len(SHAPES)]
    assert seen == [len(run.params)] * 3


@pytest.mark.parametrize('forms', [('single_pass', 'foreach'), ('foreach', 'single_pass')])
@pytest.mark.parametrize('name', ['AdamW', 'SGD'])
def test_checkpoints_of_one_go_on_in_the_other(name, forms):
    straight, first, second = Run(name, forms[1]), Run(name, forms[0]), Run(name, forms[1])
    straight.step(5)
    first.step(3)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for p, q in zip(second.params, first.params, strict=True):
        p.data.copy_(q.data)
    second.generator.set_state(first.generator.get_state())
    second.step(2)
    for p, q in zip(second.params, straight.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('levels', [[0.5] * 6, [1.0] * 6, [0.0, 1.0, 0.1, 0.7, 0.0, 0.3]], ids=str)
def test_strengths_that_it_leaves_to_a_pass_of_its_own(levels):
    plain, single = Run('AdamW', 'foreach', levels=levels), Run('AdamW', 'single_pass', levels=levels)
    plain.step(4)
    single.step(4)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_parameters_without_gradient_are_left_alone():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        for p in run.params[:2]:
            p.grad = None
        run.optimizer.step()
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('anchor_dtype', ['param', 'lossless'])
def test_a_change_of_the_memory_format_between_steps(anchor_dtype):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run, form in ((plain, 'foreach'), (single, 'single_pass')):
        run.rollback.detach()
        levels = dict.fromkeys(run.params, 0.05)
        run.rollback = Rollback(run.optimizer, levels, form=form, keep=Keep(dtype=anchor_dtype))
        run.step(2)
        run.params[5].data = run.params[5].data.contiguous()
        run.step(2)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_with_another_default_device():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        with torch.device('meta'):
            run.optimizer.step()
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('count', ['of shape [1]', 'in float64'])
def test_counts_of_steps_that_differ(count):
    plain, single = Run('AdamW, plain', 'foreach'), Run('AdamW, plain', 'single_pass')
    for run in (plain, single):
        for group in run.optimizer.param_groups:
            group['foreach'] = False
        run.step(2)
        state = run.optimizer.state[run.params[0]]
        state['step'] = state['step'].reshape(1) if count == 'of shape [1]' else state['step'].double()
        run.step(2)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_a_graph_of_before_the_step_is_stale_after_it():
    run = Run('AdamW', 'single_pass')
    run.step(2)
    loss = run.params[0].square().sum()
    run.optimizer.step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_gradients_that_lie_otherwise_in_memory_are_left_to_the_optimizer(caplog):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        run.params[0].grad = run.params[0].grad.t().contiguous().t()
        run.optimizer.step()
    single.assert_like(plain, rtol=2e-6, atol=2e-6)
    assert 'gradients lie otherwise in memory' in caplog.text


def test_other_moments_are_taken_as_they_are():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        for p in run.params:
            run.optimizer.state[p]['exp_avg'] = torch.zeros_like(p)
        run.step(1)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_a_step_that_the_scaler_skips_changes_nothing():
    scaler = grad_scaler('cpu', init_scale=1024.0)
    runs = [Run('AdamW', form) for form in ('foreach', 'single_pass')]
    for run in runs:
        run.step(2)
        scaler = grad_scaler('cpu', init_scale=1024.0)
        for bad in (False, True, False):
            before = [p.detach().clone() for p in run.params]
            for p in run.params:
                p.grad = None
            loss = sum((p * (i + 1)).square().sum() for i, p in enumerate(run.params)) * (float('inf') if bad else 1)
            scaler.scale(loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(run.params, before, strict=True)) == bad
    runs[1].assert_like(runs[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('name', ['AdamW', 'SGD'])
def test_any_number_of_threads_does_the_same(name):
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            runs.append(Run(name, 'single_pass'))
            runs[-1].step(3)
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        run.assert_like(runs[0], rtol=0, atol=0)
