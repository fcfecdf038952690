"""Mixed precision: a step that the scaler skips rolls nothing back, fused or not, and no step is rolled back twice."""

import copy

import pytest
import torch

from olor_mm.rollback import ANCHOR_KEY, Rollback
from olor_mm.rollback import rollback as module
from tests._torch import build_or_skip, grad_scaler

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))]


def setup(device, fused, rolled=True):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)).to(device)
    optimizer = build_or_skip(torch.optim.AdamW, model.parameters(), lr=1e-2, fused=fused)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1)) if rolled else None
    return model, optimizer, grad_scaler(device, init_scale=1024.0), rollback


def step(model, optimizer, scaler, bad=False):
    device = next(model.parameters()).device
    x = torch.ones(2, 4, device=device) * (float('inf') if bad else 1.0)
    scaler.scale(model(x).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('fused', [False, True])
def test_an_overflowed_step_changes_nothing(device, fused):
    model, optimizer, scaler, rollback = setup(device, fused)
    step(model, optimizer, scaler)
    step(model, optimizer, scaler)
    weights = copy.deepcopy(model.state_dict())
    anchors = [rollback.anchor(p).clone() for p in model.parameters()]
    steps = [float(optimizer.state[p]['step']) for p in model.parameters()]
    step(model, optimizer, scaler, bad=True)
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
    assert all(torch.equal(rollback.anchor(p), t) for p, t in zip(model.parameters(), anchors, strict=True))
    assert [float(optimizer.state[p]['step']) for p in model.parameters()] == steps
    step(model, optimizer, scaler)
    assert not torch.equal(model.state_dict()['0.weight'], weights['0.weight'])


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('fused', [False, True])
def test_an_overflow_at_the_first_step_keeps_the_right_theta_0(device, fused):
    model, optimizer, scaler, rollback = setup(device, fused)
    start = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, scaler, bad=True)
    for _ in range(3):
        step(model, optimizer, scaler)
    assert all(torch.equal(rollback.anchor(p), t) for p, t in zip(model.parameters(), start, strict=True))
    assert all(ANCHOR_KEY in optimizer.state[p] for p in model.parameters())


def test_the_device_decides_where_reading_found_inf_would_wait(monkeypatch):
    """The path that a GPU takes, forced on the CPU: it must be the same rollback, and skip the same steps."""

    class Elsewhere(torch.Tensor):
        """A found_inf that says that it is not on the CPU and must not be read by the host."""

        device = torch.device('meta')

        def item(self):
            raise RuntimeError('the host waited for the device')

        def to(self, *_, **__):
            return self.as_subclass(torch.Tensor)

    calls = []
    fused = module.kernels.fused
    monkeypatch.setattr(module.kernels, 'fused', lambda *a, **k: (calls.append(len(a)), fused(*a, **k)))
    torch.manual_seed(0)
    ours, truth = (torch.nn.Linear(4, 4) for _ in range(2))
    truth.load_state_dict(ours.state_dict())
    optimizers = [build_or_skip(torch.optim.AdamW, m.parameters(), lr=1e-2, fused=True) for m in (ours, truth)]
    for m, optimizer in zip((ours, truth), optimizers, strict=True):
        Rollback(optimizer, dict(zip(m.parameters(), (0.1, 0.7), strict=True)))
    for overflow in (0.0, 1.0, 0.0):
        for m, optimizer in zip((ours, truth), optimizers, strict=True):
            for p in m.parameters():
                p.grad = torch.full_like(p, 0.5)
            found_inf = torch.tensor(overflow)
            optimizer.grad_scale = torch.tensor(1.0)
            # torch's own step reads found_inf before our hook does.
            optimizer.found_inf = found_inf
            handle = None
            if m is ours:
                handle = optimizer.register_step_post_hook(lambda *_: None)
                hooks = optimizer._optimizer_step_post_hooks
                hook = lambda o, *_, f=found_inf: setattr(o, 'found_inf', f.as_subclass(Elsewhere))  # noqa: E731
                handle = optimizer.register_step_post_hook(hook)
                hooks.move_to_end(handle.id, last=False)
            optimizer.step()
            if handle is not None:
                handle.remove()
        for p, q in zip(ours.parameters(), truth.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    # With found_inf as the fourth argument; the other optimizer's two good steps without.
    assert sorted(calls) == [3, 3, 4, 4, 4]
