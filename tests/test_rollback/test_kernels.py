"""The number of kernels: it does not grow with the number of tensors and groups."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from olor_mm.rollback import Rollback, kernels


class Recorder(TorchDispatchMode):
    """Names of the operators that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators(number, dtypes, groups, levels):
    """Those of the pull after the third step."""
    params = [torch.zeros(3, dtype=dtypes[j % len(dtypes)], requires_grad=True) for j in range(number)]
    split = [{'params': params[g::groups], 'lr': 0.1 / (g + 1)} for g in range(groups)]
    optimizer = torch.optim.SGD(split)
    rollback = Rollback(optimizer, {p: 0.1 * (j % levels + 1) / levels for j, p in enumerate(params)})
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    with Recorder() as recorder:
        rollback._after_step()
    assert rollback.num_rolled_back == number
    return recorder.names


@pytest.mark.parametrize('number', [4, 20, 200])
def test_on_the_cpu_one_operator_for_each_strength(number):
    if not kernels._fused_sgd_takes('cpu', torch.float32):
        pytest.skip('this torch has no fused SGD for the CPU')
    assert operators(number, [torch.float32], 1, levels=4) == ['_fused_sgd_'] * 4


@pytest.mark.parametrize('number', [2, 20, 200])
@pytest.mark.parametrize('groups', [1, 2])
def test_elsewhere_one_operator_for_all_tensors(number, groups, monkeypatch):
    monkeypatch.setattr(kernels, 'fused', lambda p, a, w, dense: kernels.foreach(p, a, w))
    if not kernels._foreach_lerp_takes_a_list():
        pytest.skip('this torch has no foreach lerp with a list of weights')
    assert operators(number, [torch.float32], groups, levels=number) == ['_foreach_lerp_']
    assert operators(number, [torch.float32, torch.float64], groups, levels=3) == ['_foreach_lerp_'] * 2


@pytest.mark.parametrize('number', [20, 200])
def test_one_operator_for_each_strength_where_a_list_is_not_taken(number, monkeypatch):
    monkeypatch.setattr(kernels, 'fused', lambda p, a, w, dense: kernels.foreach(p, a, w))
    monkeypatch.setattr(kernels, '_foreach_lerp_takes_a_list', lambda: False)
    assert operators(number, [torch.float32], 1, levels=4) == ['_foreach_lerp_'] * 4


@pytest.mark.parametrize('layout', ['channels_last', 'transposed', 'sliced'])
def test_any_memory_layout(layout):
    """The fused kernel walks the memory of both tensors as it lies, so the anchor must lie as the parameter does."""
    start = torch.randn(4, 3, 5, 5)
    if layout == 'channels_last':
        value = start.to(memory_format=torch.channels_last)
    elif layout == 'transposed':
        value = start.transpose(0, 1)
    else:
        value = torch.randn(8, 3, 5, 5)[::2]
    param = torch.nn.Parameter(value)
    anchor = torch.randn(param.shape)
    truth = torch.lerp(param.detach(), anchor, 0.25)
    optimizer = torch.optim.SGD([param], lr=0.1)
    Rollback(optimizer, {param: 0.25}, anchor={param: anchor.contiguous()})
    param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(param.detach(), truth)


def test_a_memory_format_that_changes_between_steps():
    """The model may be moved to channels_last after some steps; theta_0 stays as it was laid out."""
    param, plain = (torch.nn.Parameter(torch.arange(120.0).reshape(4, 3, 5, 2)) for _ in range(2))
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in (param, plain)]
    Rollback(optimizers[0], {param: 0.25})
    theta_0 = plain.detach().clone()
    for step in range(3):
        for p, optimizer in zip((param, plain), optimizers, strict=True):
            p.grad = torch.full_like(p, float(step + 1))
            optimizer.step()
        plain.data.lerp_(theta_0, 0.25)
        torch.testing.assert_close(param.detach(), plain.detach())
        if step == 0:
            param.data = param.detach().to(memory_format=torch.channels_last)
    assert param.stride() != plain.stride()


@pytest.mark.parametrize('cls', [torch.optim.AdamW, torch.optim.SGD])
def test_in_a_single_pass_their_number_does_not_grow(cls):
    counts = []
    for number in (4, 40, 400):
        params = [torch.zeros(3, requires_grad=True) for _ in range(number)]
        optimizer = cls(params, lr=0.1, **({'momentum': 0.9} if cls is torch.optim.SGD else {}))
        rollback = Rollback(optimizer, {p: 0.4 * (j + 1) / number for j, p in enumerate(params)}, form='single_pass')
        if rollback.form_in_use != 'single_pass':
            pytest.skip('the kernels cannot be compiled here')
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        with Recorder() as recorder:
            optimizer.step()
        counts.append(len(recorder.names))
        assert rollback.num_rolled_back == number
        assert '_fused_sgd_' not in recorder.names
    assert counts[0] == counts[1] == counts[2]
