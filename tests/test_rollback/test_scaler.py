"""Mixed precision: a step that the scaler skips rolls nothing back, fused or not, and no step is rolled back twice."""

import copy

import pytest
import torch

from olor_mm.rollback import ANCHOR_KEY, Rollback, kernels
from tests._torch import build_or_skip, grad_scaler

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))]


OPTIMIZERS = {
    'SGD': (torch.optim.SGD, {'lr': 1e-2}),
    'momentum': (torch.optim.SGD, {'lr': 1e-2, 'momentum': 0.9}),
    'Adam': (torch.optim.Adam, {'lr': 1e-2}),
    'AdamW': (torch.optim.AdamW, {'lr': 1e-2}),
}
static = pytest.mark.parametrize('static', [False, True], ids=['dynamic', 'static'])


def optimizer_of(model, name, fused):
    cls, options = OPTIMIZERS[name]
    return build_or_skip(cls, model.parameters(), **options, **({'fused': True} if fused else {}))


def setup(device, fused, name='AdamW'):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)).to(device)
    optimizer = optimizer_of(model, name, fused)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1))
    return model, optimizer, grad_scaler(device, init_scale=1024.0), rollback


def skip_where_torch_fails(fused, name):
    """Without rollback, too, torch's fused SGD (2.5 to 2.15) uses a momentum that its first step never wrote."""
    if fused and name == 'momentum':
        pytest.skip("torch's fused SGD leaves its momentum uninitialised where its first step overflows")


def backward(model, scaler, bad=False, dtype=None):
    device = next(model.parameters()).device
    x = torch.ones(2, 4, device=device) * (float('inf') if bad else 1.0)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()


def step(model, optimizer, scaler, bad=False, static=False, dtype=None):
    backward(model, scaler, bad, dtype)
    scaler.step(optimizer)
    scaler.update(1024.0 if static else None)
    optimizer.zero_grad()


def all_of(model, optimizer, rollback):
    """Weights, the optimizer's state with theta_0 and its counters, our counter."""
    state = optimizer.state_dict()['state']
    tensors = {f'{i}.{k}': torch.as_tensor(v) for i, s in state.items() for k, v in s.items() if v is not None}
    theta_0 = {f'theta_0.{k}': rollback.anchor(p) for k, p in model.named_parameters()}
    return copy.deepcopy({**model.state_dict(), **tensors, **theta_0, 'steps': torch.tensor(rollback.num_steps)})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@static
@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('device', DEVICES)
def test_an_overflowed_step_changes_nothing(device, fused, name, static):
    model, optimizer, scaler, rollback = setup(device, fused, name)
    for _ in range(2):
        step(model, optimizer, scaler, static=static)
    before = all_of(model, optimizer, rollback)
    for overflows in range(1, 3):
        step(model, optimizer, scaler, bad=True, static=static)
        assert scaler.get_scale() == (1024.0 if static else 1024.0 / 2**overflows)
        assert same(all_of(model, optimizer, rollback), before)
    step(model, optimizer, scaler, static=static)
    assert not torch.equal(model.state_dict()['0.weight'], before['0.weight'])
    assert rollback.num_steps == 3


@static
@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('device', DEVICES)
def test_an_overflow_at_the_first_step_keeps_the_right_theta_0(device, fused, name, static):
    skip_where_torch_fails(fused, name)
    model, optimizer, scaler, rollback = setup(device, fused, name)
    start = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, scaler, bad=True, static=static)
    assert all(torch.equal(p, t) for p, t in zip(model.parameters(), start, strict=True))
    assert rollback.num_steps == 0
    for _ in range(3):
        step(model, optimizer, scaler, static=static)
    assert all(torch.equal(rollback.anchor(p), t) for p, t in zip(model.parameters(), start, strict=True))
    assert all(ANCHOR_KEY in optimizer.state[p] for p in model.parameters())
    assert rollback.num_steps == 3


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('device', DEVICES)
def test_with_overflows_or_without_the_real_steps_are_the_same(device, fused, name):
    """The truth never saw the overflowing batches."""
    skip_where_torch_fails(fused, name)
    runs = [setup(device, fused, name) for _ in range(2)]
    for bad in (True, False, False, True, True, False):
        for number, (model, optimizer, scaler, _) in enumerate(runs):
            if number == 0 or not bad:
                step(model, optimizer, scaler, bad, static=True)
    ours, truth = (all_of(model, optimizer, rollback) for model, optimizer, _, rollback in runs)
    assert same(ours, truth)


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('device', DEVICES)
def test_an_overflow_at_the_first_step_after_a_resume(device, fused, name, tmp_path):
    runs = [setup(device, fused, name) for _ in range(2)]
    (model, optimizer, scaler, _), (again, again_optimizer, again_scaler, again_rollback) = runs
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        step(model, optimizer, scaler)
    saved = {'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict()}
    torch.save(saved, tmp_path / 'saved.pth')
    saved = torch.load(tmp_path / 'saved.pth', weights_only=True)
    again.load_state_dict(saved['model'])
    again_optimizer.load_state_dict(saved['optimizer'])
    again_scaler.load_state_dict(saved['scaler'])
    for bad in (True, False, False):
        for some, some_optimizer, some_scaler, _ in runs:
            step(some, some_optimizer, some_scaler, bad)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(again_rollback.anchor(p), t) for p, t in zip(again.parameters(), start, strict=True))
    assert again_rollback.num_steps == 2


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('device', DEVICES)
def test_unscaled_clipped_and_accumulated(device, fused, name):
    """Three batches an update; a bad one among them costs the update, also where clipping makes it finite again."""
    model, optimizer, scaler, rollback = setup(device, fused, name)
    before = None
    for update in range(3):
        for part in range(3):
            backward(model, scaler, bad=(update, part) == (1, 0))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
        for p in model.parameters():
            p.grad.nan_to_num_(0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert update != 1 or same(all_of(model, optimizer, rollback), before)
        before = all_of(model, optimizer, rollback)
    assert rollback.num_steps == 2


@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('device', DEVICES)
def test_bfloat16_autocast(device, fused, name, scaled):
    """Weights stay in float32, and so does the pull; the truth is torch's step and the rollback by hand."""
    model, optimizer, scaler, rollback = setup(device, fused, name)
    other = copy.deepcopy(model)
    truth = optimizer_of(other, name, fused)
    theta_0 = [p.detach().clone() for p in other.parameters()]
    scalers = [scaler if scaled else grad_scaler(device, enabled=False)]
    scalers.append(copy.deepcopy(scalers[0]))
    for bad in (False, True, False) if scaled else (False, False):
        for some, some_optimizer, some_scaler in zip((model, other), (optimizer, truth), scalers, strict=True):
            step(some, some_optimizer, some_scaler, bad, dtype=torch.bfloat16)
        with torch.no_grad():
            for p, start in zip(other.parameters(), theta_0, strict=True):
                p.copy_(p if bad else torch.lerp(p, start, 0.1))
    assert rollback.num_steps == 2
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('fused', [False, True])
def test_two_optimizers_with_one_scaler(device, fused):
    """Each skips its own overflow alone."""
    first, second = setup(device, fused), setup(device, fused, 'momentum')
    scaler = first[2]
    for bad in ((False, False), (True, False), (False, True), (True, True), (False, False)):
        before = [all_of(model, optimizer, rollback) for model, optimizer, _, rollback in (first, second)]
        for (model, *_), overflows in zip((first, second), bad, strict=True):
            backward(model, scaler, overflows)
        for _, optimizer, _, _ in (first, second):
            scaler.step(optimizer)
        scaler.update()
        for (model, optimizer, _, rollback), overflows, old in zip((first, second), bad, before, strict=True):
            optimizer.zero_grad()
            # The first step fills the state.
            assert same(all_of(model, optimizer, rollback), old) == overflows
    assert [rollback.num_steps for *_, rollback in (first, second)] == [3, 3]


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
    fused = kernels.fused
    monkeypatch.setattr(kernels, 'fused', lambda *a, **k: (calls.append(len(a)), fused(*a, **k)))
    torch.manual_seed(0)
    ours, truth = (torch.nn.Linear(4, 4) for _ in range(2))
    truth.load_state_dict(ours.state_dict())
    optimizers = [build_or_skip(torch.optim.AdamW, m.parameters(), lr=1e-2, fused=True) for m in (ours, truth)]
    rollbacks = [
        Rollback(optimizer, dict(zip(m.parameters(), (0.1, 0.7), strict=True)))
        for m, optimizer in zip((ours, truth), optimizers, strict=True)
    ]
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
    # Asked for, the count is that of real steps.
    assert [rollback.num_steps for rollback in rollbacks] == [2, 2]
    # With found_inf as the fourth argument; the other optimizer's two good steps without.
    assert sorted(calls) == [3, 3, 4, 4, 4]
