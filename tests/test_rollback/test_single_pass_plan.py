"""What a single pass takes is found once; whatever changes between steps is seen."""

import copy
import gc
import weakref

import pytest
import torch

from olor_mm.rollback import single_pass
from olor_mm.rollback.anchor import ANCHOR_KEY
from olor_mm.rollback.single_pass import Plan

from ._single_pass import Run, compiled_or_skip

compiled_or_skip()


def stopped(run):
    for group in run.optimizer.param_groups:
        group['lr'] = 0.0


def going(run):
    for group in run.optimizer.param_groups:
        group['lr'] = group['initial_lr'] / 2


def otherwise(run):
    state = run.optimizer.state[run.params[5]]
    for key in state.keys() - {'step', ANCHOR_KEY}:
        state[key] = state[key].contiguous()


def transposed_within(run):
    state = run.optimizer.state[run.params[0]]
    for key in state.keys() - {'step', ANCHOR_KEY}:
        state[key].data = state[key].data.t().contiguous().t()


def replaced(run):
    for p, state in run.optimizer.state.items():
        for key in state.keys() - {ANCHOR_KEY}:
            state[key] = state[key] * (0.5 if p.dim() == 2 else 1)


def loaded(run):
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def option(name, value):
    def change(run):
        run.optimizer.param_groups[0][name] = value

    return change


def no_state(run):
    # torch's fused SGD takes buffers of all or of none.
    if not isinstance(run.optimizer, torch.optim.SGD):
        del run.optimizer.state[run.params[7]]


#: What is changed before the fourth step, and what before the seventh.
CHANGES = {
    'the rate is 0 for two steps': (stopped, going),
    'the moments lie otherwise in memory': (otherwise, None),
    'the moments are the same tensors and lie otherwise': (transposed_within, None),
    'the moments are other tensors': (replaced, replaced),
    'a state was loaded': (loaded, loaded),
    'maximize': (option('maximize', True), option('maximize', False)),
    'decay': (option('weight_decay', 0.5), option('weight_decay', 0.0)),
    'the state of one that is not pulled is new': (no_state, None),
}


def train(name, form, changes):
    run = Run(name, form)
    for group in run.optimizer.param_groups:
        group['initial_lr'] = group['lr']
    for change in changes:
        run.step(3)
        if change is not None:
            change(run)
    run.step(3)
    return run


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('name', ['AdamW', 'SGD'])
def test_what_changes_between_steps_is_seen(name, change):
    ours, theirs = (train(name, form, CHANGES[change]) for form in ('single_pass', 'foreach'))
    ours.assert_like(theirs, rtol=1e-5, atol=1e-6)


def test_nothing_is_taken_while_the_rate_is_0():
    run = Run('AdamW', 'single_pass')
    for change, parts in ((going, 1), (stopped, 0), (going, 1)):
        for group in run.optimizer.param_groups:
            group.setdefault('initial_lr', group['lr'])
        change(run)
        run.step(3)
        (plan,) = run.rollback._single_pass._plans.values()
        # A pull of strength 0 turns -0.0 into 0.0.
        assert len(plan.parts) == parts


def test_nesterov_is_seen():
    changes = (option('nesterov', True), option('nesterov', False))
    ours, theirs = (train('SGD', form, changes) for form in ('single_pass', 'foreach'))
    ours.assert_like(theirs, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_lies_otherwise_in_one_step():
    runs = [Run('AdamW', form) for form in ('single_pass', 'foreach')]
    for run in runs:
        run.step(3)
        for p in run.params:
            p.grad = torch.ones_like(p)
        run.params[0].grad = torch.ones(41, 37).t()
        run.optimizer.step()
        run.step(2)
    runs[0].assert_like(runs[1], rtol=1e-5, atol=1e-6)


def test_it_is_found_once(monkeypatch):
    made = []
    find = Plan.__init__
    monkeypatch.setattr(Plan, '__init__', lambda self, *args: made.append(self) or find(self, *args))
    run = Run('AdamW', 'single_pass')
    run.step(2)
    made.clear()
    run.step(5)
    assert not made
    loaded(run)
    run.step(3)
    assert len(made) == 1


def test_moments_that_the_optimizer_gives_up_are_freed():
    run = Run('AdamW', 'single_pass')
    run.step(3)
    held = [weakref.ref(value) for state in run.optimizer.state.values() for value in state.values()]
    run.optimizer.state.clear()
    gc.collect()
    kept = {id(p) for p in run.rollback.levels}
    assert kept
    assert sum(ref() is not None for ref in held) <= len(kept)


def test_a_plan_does_not_outlive_its_batch():
    run = Run('AdamW', 'single_pass')
    run.step(3)
    before = {weakref.ref(batch) for batch in run.rollback._batches}
    run.params[0].requires_grad_(False)
    run.params[0].grad = None
    for p in run.params[1:]:
        p.grad = torch.ones_like(p)
    run.optimizer.step()
    gc.collect()
    assert all(ref() is None for ref in before)


def test_a_capture_that_begins_later_is_seen(monkeypatch):
    """A graph would do each step again with the numbers of the one that was captured."""
    run, other = Run('SGD', 'single_pass'), Run('SGD', 'foreach')
    run.step(3)
    taken = []
    monkeypatch.setattr(single_pass, '_is_captured', lambda batch: True)
    monkeypatch.setattr(single_pass.SinglePass, '_take', lambda self, *args: taken.append(args))
    run.step(2)
    other.step(5)
    assert not taken
    run.assert_like(other, rtol=1e-5, atol=1e-6)
