"""The post-step rollback on torch's optimizers equals Algorithms 1 and 2, in float64 to 1e-12."""

import math

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from olor_mm.rollback import Rollback
from olor_mm.rollback.reference import AdamOLORReference, SGDOLORReference
from tests._torch import build_or_skip

STEPS = 40
SCHEDULES = {
    'constant': lambda t: 1.0,
    'warm-up': lambda t: min(1.0, (t + 1) / 10),
    'cosine': lambda t: 0.5 * (1 + math.cos(math.pi * t / STEPS)),
}
FORMS = {
    'for-loop': {'foreach': False},
    'foreach': {'foreach': True},
    'fused': {'fused': True},
}
LEVELS = (0.3, 0.0, 0.01, 1.0)
LRS = (1e-2, 1e-2, 3e-3, 1e-3)


def adam(theta, **kwargs):
    return AdamOLORReference(theta, eps_in_sqrt=False, **kwargs)


# name: (torch's optimizer, its options, the reference)
OPTIMIZERS = {
    'Adam': (Adam, {}, adam),
    'AdamW, decay 0': (AdamW, {'weight_decay': 0.0}, adam),
    'AdamW, decay 0.05': (AdamW, {'weight_decay': 0.05}, lambda theta: adam(theta, weight_decay=0.05)),
    'SGD, undamped': (SGD, {'momentum': 0.9}, lambda theta: SGDOLORReference(theta, 0.9, undamped=True)),
    'SGD, dampened': (
        SGD,
        {'momentum': 0.9, 'dampening': 0.9},
        lambda theta: SGDOLORReference(theta, 0.9, undamped_first=True),
    ),
}


def make_params():
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 3), (5,), (2, 3, 4), (1,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def gradient(t, j, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * t + j), dtype=torch.float64)


@pytest.mark.parametrize('rollback_form', ['foreach', 'single_tensor', 'single_pass'])
@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_torch_with_rollback_is_the_paper(name, form, schedule, rollback_form):
    cls, options, reference = OPTIMIZERS[name]
    params = make_params()
    references = [reference(p) for p in params]
    groups = [{'params': [p], 'lr': lr} for p, lr in zip(params, LRS, strict=True)]
    optimizer = build_or_skip(cls, groups, lr=1e-3, **options, **FORMS[form])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[schedule])
    Rollback(optimizer, dict(zip(params, LEVELS, strict=True)), form=rollback_form)
    for t in range(STEPS):
        factor = SCHEDULES[schedule](t)
        for j, p in enumerate(params):
            p.grad = gradient(t, j, p.shape)
            references[j].step(p.grad, LRS[j] * factor, LEVELS[j] * factor)
        optimizer.step()
        scheduler.step()
        for p, truth in zip(params, references, strict=True):
            torch.testing.assert_close(p.detach(), truth.theta, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_gradient_accumulation_counts_optimizer_steps(name):
    cls, options, reference = OPTIMIZERS[name]
    params = make_params()
    references = [reference(p) for p in params]
    optimizer = cls(params, lr=1e-2, **options)
    rollback = Rollback(optimizer, dict(zip(params, LEVELS, strict=True)))
    for t in range(12):
        for j, p in enumerate(params):
            part = gradient(t, j, p.shape)
            p.grad = part if p.grad is None else p.grad + part
        if t % 3 < 2:
            continue
        for j, p in enumerate(params):
            references[j].step(p.grad, 1e-2, LEVELS[j])
        optimizer.step()
        optimizer.zero_grad()
    assert rollback.num_steps == 4
    for p, truth in zip(params, references, strict=True):
        torch.testing.assert_close(p.detach(), truth.theta, rtol=0, atol=1e-12)


def test_the_printed_algorithms_differ_from_torch_where_documented():
    """What docs/method.md says of torch: eps outside the root, and undamped SGD ten times larger."""
    theta, g = torch.ones(3, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    printed, torchs = AdamOLORReference(theta, eps=1e-2), AdamOLORReference(theta, eps=1e-2, eps_in_sqrt=False)
    assert not torch.allclose(printed.step(g, 0.1, 0.1), torchs.step(g, 0.1, 0.1))
    paper, undamped = SGDOLORReference(theta), SGDOLORReference(theta, undamped=True)
    for _ in range(300):
        before = paper.theta, undamped.theta
        paper.step(g, 1e-3, 0.0)
        undamped.step(g, 1e-3, 0.0)
    small, large = before[0] - paper.theta, before[1] - undamped.theta
    torch.testing.assert_close(large, 10 * small, rtol=1e-9, atol=0)
