"""On a GPU: no wait of the host, no memory in steady state, kernels that do not grow with the number of tensors."""

import pytest
import torch

from olor_mm.rollback import Rollback
from tests._torch import build_or_skip, grad_scaler

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

OPTIMIZERS = {'AdamW': {}, 'Adam': {}, 'SGD': {'momentum': 0.9}}


def build(name, form, number=40, size=1000):
    params = [torch.ones(size, device='cuda', requires_grad=True) for _ in range(number)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = build_or_skip(getattr(torch.optim, name), params, lr=1e-3, fused=True, **OPTIMIZERS[name])
    rollback = None
    if form:
        levels = {p: 0.01 * (j % 12 + 1) for j, p in enumerate(params)}
        rollback = Rollback(optimizer, levels, form=form)
        assert rollback.form_in_use == form
    for _ in range(3):
        optimizer.step()
    return optimizer, rollback


@pytest.mark.parametrize('form', ['foreach', 'single_tensor', 'single_pass'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_host_never_waits(name, form):
    optimizer, _ = build(name, form)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(3):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('form', ['foreach', 'single_pass'])
def test_the_host_never_waits_with_a_scaler(form):
    optimizer, rollback = build('AdamW', form)
    scaler = grad_scaler('cuda', init_scale=1024.0)
    params = optimizer.param_groups[0]['params']
    scaler.scale(sum(p.sum() for p in params)).backward()
    scaler.step(optimizer)
    torch.cuda.set_sync_debug_mode('error')
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert rollback.num_steps == 5


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_pull_of_its_own_allocates_nothing(name):
    _, rollback = build(name, 'foreach')
    rollback._after_step()
    before = torch.cuda.memory_stats()['allocation.all.allocated']
    for _ in range(3):
        rollback._after_step()
    assert torch.cuda.memory_stats()['allocation.all.allocated'] == before


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_single_pass_takes_tables_of_scalars_alone(name):
    optimizer, _ = build(name, 'single_pass', number=10, size=1_000_000)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before < 1 << 20
    assert torch.cuda.memory_allocated() == before


def launches(optimizer):
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    events = profile.events()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)


@pytest.mark.parametrize('form', ['foreach', 'single_pass'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_number_of_kernels_does_not_follow_that_of_tensors(name, form):
    """torch's own take some dozens of tensors at once: ten times the tensors may not be three times the kernels."""
    few, many = (launches(build(name, form, number)[0]) for number in (30, 300))
    plain_few, plain_many = (launches(build(name, None, number)[0]) for number in (30, 300))
    assert many - plain_many <= 3 * max(few - plain_few, 8)
