"""Invariants of the rollback, over random tensors, levels and groupings."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olor_mm.rollback import Rollback, kernels
from olor_mm.rollback.reference import rollback_reference

shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)
level = st.floats(0, 1, allow_subnormal=False)
dtypes = st.sampled_from([torch.float32, torch.float64])
optimizers = st.sampled_from(['SGD', 'AdamW', 'RMSprop'])


def make(shapes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]


def train(optimizer, params, steps=3, start=0):
    for t in range(start, start + steps):
        generator = torch.Generator().manual_seed(1000 + t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def build(name, params, groups=1):
    split = [{'params': params[g::groups]} for g in range(groups) if params[g::groups]]
    return getattr(torch.optim, name)(split, lr=0.01)


@settings(max_examples=30, deadline=None)
@given(shapes=shapes, dtype=dtypes, name=optimizers)
def test_level_0_is_the_base_optimizer_and_costs_nothing(shapes, dtype, name):
    base, ours = make(shapes, dtype), make(shapes, dtype)
    base_optimizer, optimizer = build(name, base), build(name, ours)
    rollback = Rollback(optimizer, dict.fromkeys(ours, 0.0))
    train(base_optimizer, base)
    train(optimizer, ours)
    assert all(torch.equal(p, q) for p, q in zip(base, ours, strict=True))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for p, q in zip(base, ours, strict=True):
        assert base_optimizer.state[p].keys() == optimizer.state[q].keys()
    assert rollback.num_steps == 0


@settings(max_examples=30, deadline=None)
@given(shapes=shapes, dtype=dtypes, name=optimizers)
def test_level_1_is_theta_0(shapes, dtype, name):
    params = make(shapes, dtype)
    theta_0 = [p.detach().clone() for p in params]
    optimizer = build(name, params)
    Rollback(optimizer, dict.fromkeys(params, 1.0))
    train(optimizer, params)
    assert all(torch.equal(p, q) for p, q in zip(params, theta_0, strict=True))


@settings(max_examples=50, deadline=None)
@given(shapes=shapes, a=level, name=optimizers)
def test_distance_after_is_one_minus_a_of_before(shapes, a, name):
    base, ours = make(shapes, torch.float64), make(shapes, torch.float64)
    theta_0 = [p.detach().clone() for p in ours]
    base_optimizer, optimizer = build(name, base), build(name, ours)
    Rollback(optimizer, dict.fromkeys(ours, a))
    train(base_optimizer, base, 1)
    train(optimizer, ours, 1)
    for p, pre, start in zip(ours, base, theta_0, strict=True):
        torch.testing.assert_close((p - start).norm(), (1 - a) * (pre - start).norm(), rtol=1e-9, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(shapes=shapes, name=optimizers, groups=st.integers(2, 4), levels=st.lists(level, min_size=5, max_size=5))
def test_regrouping_changes_nothing(shapes, name, groups, levels):
    one, many = make(shapes, torch.float32), make(shapes, torch.float32)
    for params, number in ((one, 1), (many, groups)):
        optimizer = build(name, params, number)
        Rollback(optimizer, dict(zip(params, levels, strict=False)))
        train(optimizer, params)
    assert all(torch.equal(p, q) for p, q in zip(one, many, strict=True))


@settings(max_examples=20, deadline=None)
@given(shapes=shapes, name=optimizers, levels=st.lists(level, min_size=5, max_size=5), stop=st.integers(0, 4))
def test_save_and_resume_equals_never_having_stopped(shapes, name, levels, stop, tmp_path_factory):
    straight, resumed = make(shapes, torch.float32), make(shapes, torch.float32)
    optimizer = build(name, straight)
    Rollback(optimizer, dict(zip(straight, levels, strict=False)))
    train(optimizer, straight, 6)

    optimizer = build(name, resumed)
    Rollback(optimizer, dict(zip(resumed, levels, strict=False)))
    train(optimizer, resumed, stop)
    file = tmp_path_factory.mktemp('resume') / 'last.pth'
    torch.save({'weights': resumed, 'optimizer': optimizer.state_dict()}, file)

    saved = torch.load(file, weights_only=True)
    params = [p.detach().clone().requires_grad_() for p in saved['weights']]
    fresh = build(name, params)
    Rollback(fresh, dict(zip(params, levels, strict=False)))
    fresh.load_state_dict(saved['optimizer'])
    train(fresh, params, 6 - stop, start=stop)
    assert all(torch.equal(p, q) for p, q in zip(straight, params, strict=True))


@settings(max_examples=50, deadline=None)
@given(shapes=shapes, dtype=dtypes, weights=st.lists(level, min_size=5, max_size=5))
@pytest.mark.parametrize('kernel', ['foreach', 'single_tensor', 'fused', 'fused, masked'])
@pytest.mark.parametrize('lists', [True, False])
def test_every_kernel_is_the_reference(kernel, lists, shapes, dtype, weights):
    params = [p.detach() for p in make(shapes, dtype)]
    anchors = [p.detach() for p in make(shapes, dtype, seed=1)]
    truth = [rollback_reference(p, t, a) for p, t, a in zip(params, anchors, weights, strict=False)]
    kept = copy.deepcopy(anchors)
    arguments = [params, anchors, weights[: len(params)]]
    kernel, _, masked = kernel.partition(', ')
    if masked:
        arguments.append(torch.zeros(1))
    with pytest.MonkeyPatch.context() as patch:
        # An older torch has no foreach lerp with a list of weights and no fused SGD.
        if not lists:
            patch.setattr(kernels, '_foreach_lerp_takes_a_list', lambda: False)
            patch.setattr(kernels, '_fused_sgd_takes', lambda device, dtype: False)
        getattr(kernels, kernel)(*arguments)
    eps = torch.finfo(dtype).eps
    for p, t, before, after in zip(params, truth, kept, anchors, strict=True):
        torch.testing.assert_close(p, t, rtol=8 * eps, atol=8 * eps)
        assert torch.equal(before, after)


@pytest.mark.parametrize('lists', [True, False])
def test_a_masked_step_changes_nothing(lists, monkeypatch):
    if not lists:
        monkeypatch.setattr(kernels, '_fused_sgd_takes', lambda device, dtype: False)
    params = [torch.randn(3), torch.randn(2, 2), torch.tensor([-0.0])]
    kept = copy.deepcopy(params)
    kernels.fused(params, [torch.ones_like(p) for p in params], [0.1, 0.7, 1.0], torch.ones(1))
    assert all(torch.equal(p, q) for p, q in zip(params, kept, strict=True))
