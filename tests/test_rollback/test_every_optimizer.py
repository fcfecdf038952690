"""For every optimizer of torch.optim that takes dense gradients: the distance to theta_0 is 1 - a of the base's."""

import inspect

import pytest
import torch

from olor_mm.rollback import Rollback
from tests._torch import build_or_skip

TAKES_SPARSE_ONLY = {'SparseAdam'}
A = 0.125


def _optimizers():
    for name, cls in vars(torch.optim).items():
        if inspect.isclass(cls) and torch.optim.Optimizer in cls.__mro__[1:] and name not in TAKES_SPARSE_ONLY:
            yield name, cls


OPTIMIZERS = dict(_optimizers())


def options_of(cls):
    taken = inspect.signature(cls.__init__).parameters
    for extra in ({}, {'momentum': 0.9}, {'foreach': True}, {'foreach': False}, {'fused': True}, {'amsgrad': True}):
        if all(k in taken for k in extra) and not (extra.get('fused') and cls.__name__ == 'Adagrad'):
            yield extra


CASES = [(name, extra) for name, cls in OPTIMIZERS.items() for extra in options_of(cls)]


def run(cls, extra, steps, rollback_at=None):
    """Two matrices trained by ``cls``; the last ``rollback_at`` step is rolled back. Muon takes matrices alone."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    theta_0 = [p.detach().clone() for p in params]
    optimizer = build_or_skip(cls, params, lr=0.05, **extra)

    def closure():
        optimizer.zero_grad()
        loss = sum((p**2).sum() * (j + 1) for j, p in enumerate(params))
        loss.backward()
        return loss

    for t in range(steps):
        if t == rollback_at:
            Rollback(optimizer, {params[0]: A}, anchor={params[0]: theta_0[0]})
        optimizer.step(closure)
    return params, theta_0, optimizer


@pytest.mark.parametrize(('name', 'extra'), CASES, ids=[f'{n}-{"-".join(e) or "default"}' for n, e in CASES])
@pytest.mark.parametrize('steps', [1, 4])
def test_distance_after_a_step(name, extra, steps):
    base, theta_0, _ = run(OPTIMIZERS[name], extra, steps)
    ours, _, optimizer = run(OPTIMIZERS[name], extra, steps, rollback_at=steps - 1)
    moved = (base[0] - theta_0[0]).norm()
    assert moved > 0
    torch.testing.assert_close(ours[0] - theta_0[0], (1 - A) * (base[0] - theta_0[0]), rtol=1e-12, atol=1e-13)
    if name != 'LBFGS':
        # LBFGS alone couples its parameters; even there nothing has been rolled back before the last step.
        assert torch.equal(ours[1], base[1])
    # What was trained with rollback can be saved and loaded by the base optimizer alone.
    fresh = OPTIMIZERS[name]([p.detach().clone().requires_grad_() for p in ours], lr=0.05, **extra)
    fresh.load_state_dict(optimizer.state_dict())


def test_the_list_is_not_empty():
    assert {'Adam', 'AdamW', 'SGD', 'LBFGS', 'Rprop', 'Adagrad', 'RAdam', 'NAdam', 'ASGD'} <= set(OPTIMIZERS)


@pytest.mark.parametrize('form', ['foreach', 'single_tensor', 'single_pass'])
@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW])
def test_complex_weights_are_pulled_back_as_others_are(kind, form):
    start = torch.randn(4, 3, dtype=torch.complex128)
    ours, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = kind([ours], lr=0.1), kind([plain], lr=0.1)
    rollback = Rollback(optimizers[0], {ours: 0.3}, form=form)
    for _ in range(5):
        ours.grad = torch.randn_like(start)
        plain.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            plain.lerp_(start, 0.3)
    torch.testing.assert_close(ours, plain)
    assert rollback.discrepancy({0: [ours]})[0] == pytest.approx(float((ours - start).norm() / start.norm()))
