"""Symmetric cross-entropy against the formula, sample by sample."""

import math

import pytest
import torch
from mmengine.registry import MODELS

PRED = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) * 8
LABELS = torch.tensor([3, 0, 1, 1, 2])
SOFT = torch.tensor([[0, 0, 0, 1.0], [0.25, 0.75, 0, 0], [0, 0.5, 0.5, 0], [0.1, 0.2, 0.3, 0.4], [0, 0, 1.0, 0]])
WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])


def build(**options):
    return MODELS.build({'type': 'olor_mm.SymmetricCrossEntropyLoss', **options})


def formula(pred, q, alpha, beta, floor=1e-4):
    losses = []
    for z, target in zip(pred.double().tolist(), q.tolist(), strict=True):
        top = max(z)
        p = [math.exp(value - top) / sum(math.exp(other - top) for other in z) for value in z]
        ce = -sum(t * math.log(pk) for t, pk in zip(target, p, strict=True) if t)
        rce = -sum(min(max(pk, 1e-7), 1) * math.log(max(t, floor)) for t, pk in zip(target, p, strict=True))
        losses.append(alpha * ce + beta * rce)
    return torch.tensor(losses)


@pytest.mark.parametrize(('alpha', 'beta'), [(1, 0.1), (0.5, 0.5), (1, 0), (0, 1)])
@pytest.mark.parametrize('soft', [False, True])
def test_is_the_formula(alpha, beta, soft):
    q = SOFT if soft else torch.eye(4)[LABELS]
    found = build(alpha=alpha, beta=beta, reduction='none')(PRED, SOFT if soft else LABELS)
    torch.testing.assert_close(found, formula(PRED, q, alpha, beta), rtol=1e-5, atol=1e-6)


def test_what_is_improbable_counts_as_1e_7_in_the_reverse_part():
    # Of 4 classes that all but have no probability: 3 * 1e-7 * ln 1e4, and a gradient of 0 through the clamp.
    pred = torch.tensor([[0.0, -60, -60, -60]], requires_grad=True)
    loss = build(alpha=0, beta=1)(pred, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(3e-7 * math.log(1e4)), rtol=1e-4, atol=0)
    loss.backward()
    assert float(pred.grad.abs().max()) == 0


@pytest.mark.parametrize('weight', [None, WEIGHT])
def test_reductions(weight):
    each = formula(PRED, torch.eye(4)[LABELS], 1, 0.1) * (1 if weight is None else weight)
    wanted = {
        ('mean', None): each.mean(), ('mean', 2): each.sum() / 2, ('sum', None): each.sum(), ('none', 2): each,
    }  # fmt: skip
    for (reduction, avg_factor), value in wanted.items():
        found = build(reduction=reduction, loss_weight=3.0)(PRED, LABELS, weight, avg_factor)
        torch.testing.assert_close(found, 3 * value, rtol=1e-5, atol=1e-6)
        found = build()(PRED, LABELS, weight, avg_factor, reduction_override=reduction)
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="avg_factor=2 is for the reduction 'mean'"):
        build(reduction='sum')(PRED, LABELS, avg_factor=2)


def test_gradient_is_that_of_the_formula():
    pred = PRED.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: build(reduction='none')(z, SOFT.double()), [pred])


def test_half_precision_is_computed_in_single():
    loss = build()(PRED.half(), LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, build()(PRED.half().float(), LABELS))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'alpha': -1}, 'alpha=-1 must be a number of 0 or more'),
        ({'beta': float('nan')}, 'beta=nan must be'),
        ({'log_floor': 0}, r'log_floor=0 must be in \(0, 1\)'),
        ({'reduction': 'man'}, "reduction='man' is not known: choose one of none, mean, sum"),
        ({'class_weight': [1, 2]}, r'class_weight=\[1, 2\] has no meaning'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r'label has the shape \(5, 1\), but cls_score \(5, 4\)'):
        build()(PRED, LABELS[:, None])
