"""lr / initial_lr of a group: numbers, and tensors whose device decides."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from olor_mm.rollback import INITIAL_LR_KEY, Rollback
from olor_mm.rollback.schedule import lr_ratio


class OnDevice(torch.Tensor):
    """A number that says it lies on a GPU, and cannot be read."""

    @property
    def device(self):
        return SimpleNamespace(type='cuda')

    def item(self):
        raise AssertionError('the host waited for the device')

    def to(self, *_, **__):
        return self

    __bool__ = __float__ = item


def on_device(value):
    return torch.tensor(value).as_subclass(OnDevice)


def value(ratio):
    return ratio.as_subclass(torch.Tensor).item() if isinstance(ratio, torch.Tensor) else ratio


@pytest.mark.parametrize('make', [float, torch.tensor, on_device], ids=['number', 'tensor', 'on a device'])
def test_a_warm_up_from_0_without_a_scheduler(make):
    group = {'lr': make(0.0)}
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for lr in (0.0, 0.5, 0.25, 0.0, 1.0):
            group['lr'] = make(lr)
            found.append(value(lr_ratio(group)))
    # The first learning rate above 0 stands for the peak.
    assert found == [0.0, 1.0, 0.5, 0.0, 2.0]


@pytest.mark.parametrize('make', [float, torch.tensor, on_device], ids=['number', 'tensor', 'on a device'])
@pytest.mark.parametrize('initial', [0.5, 0.0])
def test_the_schedulers_peak_goes_first(make, initial):
    group = {'lr': make(0.25), 'initial_lr': initial, INITIAL_LR_KEY: 7.0}
    assert value(lr_ratio(group)) == (0.5 if initial else 0.0)


@pytest.mark.parametrize('make', [float, on_device], ids=['number', 'on a device'])
def test_a_kept_first_learning_rate_outlives_the_kind_of_lr(make):
    assert value(lr_ratio({'lr': make(0.25), INITIAL_LR_KEY: 0.5})) == 0.5


def test_the_warning_of_a_raised_learning_rate_comes_once():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([param], lr=1e-6)
    Rollback(optimizer, {param: 0.01})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')
        for step in range(20):
            optimizer.param_groups[0]['lr'] = 1e-6 * (step + 1)
            param.grad = torch.ones(3)
            optimizer.step()
    assert sum('initial_lr' in str(warning.message) for warning in caught) == 1
