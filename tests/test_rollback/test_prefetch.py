"""theta_0 in pinned memory: what is copied when, and freed when. The copies themselves need a GPU, the rest not."""

import gc
import logging

import pytest
import torch
from torch import nn

from olor_mm.rollback import ANCHOR_KEY, Keep, Rollback
from olor_mm.rollback._lossless import same_bits
from olor_mm.rollback._prefetch import Prefetch

from .test_keeping import GPU, OPTIMIZERS, Run

PINNED = {'memory': 'pinned'}


class Copies:
    """Copies on the CPU, with a record."""

    def __init__(self):
        self.log = []

    def begin(self, source, device):
        copy = source.clone()
        self.log.append('begin')
        return copy

    def finish(self, copies):
        copies = list(copies)
        if copies:
            self.log.append(f'finish {len(copies)}')


class Model:
    """Three layers, prefetched by a recorder."""

    def __init__(self):
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        self.weights = [layer.weight for layer in self.layers]
        self.anchors = {p: p.detach().clone().half() for p in self.weights}
        self.copies = Copies()
        self.prefetch = Prefetch(self.anchors.get, self.copies)
        self.prefetch.watch(self.weights)

    def backward(self):
        self.layers(torch.ones(1, 3)).sum().backward()


def test_copies_begin_with_the_gradients_and_are_waited_for_once():
    model = Model()
    order = []
    for i, p in enumerate(model.weights):
        p.register_post_accumulate_grad_hook(lambda _, i=i: order.append((i, len(model.copies.log))))
    model.backward()
    # The deepest layer first, each as soon as its gradient is there.
    assert order == [(2, 1), (1, 2), (0, 3)]
    assert model.copies.log == ['begin'] * 3
    assert model.prefetch.num_bytes == 2 * sum(p.numel() for p in model.weights)
    found = [model.prefetch.arrived(p) for p in model.weights]
    assert all(torch.equal(a, model.anchors[p]) for a, p in zip(found, model.weights, strict=True))
    assert model.copies.log[3:] == ['finish 3']
    model.prefetch.drop()
    assert model.prefetch.num_bytes == 0
    assert model.copies.log[3:] == ['finish 3']
    assert model.prefetch.arrived(model.weights[0]) is None


def test_what_is_dropped_without_having_been_read_is_waited_for():
    model = Model()
    model.backward()
    model.prefetch.drop()
    assert model.copies.log[3:] == ['finish 3']


def test_several_backward_passes_copy_once_and_an_inactive_one_not_at_all():
    model = Model()
    model.prefetch.active = False
    model.backward()
    assert model.copies.log == []
    model.prefetch.active = True
    model.backward()
    model.backward()
    assert model.copies.log == ['begin'] * 3


def test_a_gradient_that_comes_between_reading_and_the_end_is_waited_for_too():
    model = Model()
    model.weights[0].requires_grad_(False)
    model.backward()
    assert model.prefetch.arrived(model.weights[1]) is not None
    model.prefetch.begin(model.weights[0])
    assert model.prefetch.arrived(model.weights[0]) is not None
    assert model.copies.log == ['begin', 'begin', 'finish 2', 'begin', 'finish 1']


def test_frozen_parameters_are_watched_once_they_are_trained():
    model = Model()
    weight = nn.Parameter(torch.ones(2), requires_grad=False)
    model.anchors[weight] = weight.detach()
    model.prefetch.watch([weight])
    assert not weight._post_accumulate_grad_hooks
    weight.requires_grad_()
    model.prefetch.watch([weight])
    model.prefetch.watch([weight])
    assert len(weight._post_accumulate_grad_hooks) == 1


def test_closing_takes_the_hooks_off_and_the_model_keeps_nothing_alive():
    model = Model()
    model.backward()
    model.prefetch.close()
    assert not any(p._post_accumulate_grad_hooks for p in model.weights)
    model = Model()
    layers = model.layers
    held = [torch.as_tensor(value) for value in model.anchors.values()]
    model.prefetch._anchor = None
    del model
    gc.collect()
    layers(torch.ones(1, 3)).sum().backward()
    assert len(held) == 3


def test_on_the_cpu_it_changes_nothing_and_says_so_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = Run(tmp_path, **PINNED).step()
    assert caplog.text.count("anchor_memory='pinned' changes nothing on the CPU") == 1
    assert not any(p._post_accumulate_grad_hooks for p in run.params)
    assert all(same_bits(run.optimizer.state[p][ANCHOR_KEY], s) for p, s in zip(run.params, run.start, strict=True))


def test_other_devices_are_refused():
    param = nn.Parameter(torch.ones(2, device='meta'))
    rollback = Rollback(torch.optim.SGD([param], lr=0.1), {param: 0.1}, keep=Keep(**PINNED))
    with pytest.raises(ValueError, match=r"anchor_memory='pinned' is for CUDA, but .* is on meta"):
        rollback.keeper.keep({param: torch.ones(2)})


# ---------------------------------------------------------------- on a GPU


@pytest.mark.parametrize('device', [GPU])
@pytest.mark.parametrize('lossless', ['param', 'lossless'])
@pytest.mark.parametrize('form', ['foreach', 'single_pass'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_weights_are_those_of_the_plain_form_on_a_gpu(name, form, lossless, device, tmp_path):
    plain = Run(tmp_path, name, form, device=device)
    others = [Run(tmp_path, name, form, device=device, memory=m, dtype=lossless) for m in ('pinned', 'mapped', 'param')]
    for t in range(4):
        for run in (plain, *others):
            run.optimizer.zero_grad()
            # By a backward pass in every second step: else nothing is copied ahead.
            if t % 2:
                sum((p * p.detach().cos()).sum() for p in run.params).backward()
                run.optimizer.step()
            else:
                run.step([t])
    for run in others:
        assert all(map(same_bits, plain.weights(), run.weights()))
        assert run.rollback.keeper.prefetch is None or run.rollback.keeper.prefetch.num_bytes == 0
    pinned = [others[0].optimizer.state[p][ANCHOR_KEY] for p in others[0].params if p.numel()]
    assert all(value.is_pinned() for value in pinned)


@pytest.mark.parametrize('device', [GPU])
def test_loading_leaves_theta_0_off_the_gpu(device, tmp_path):
    first = Run(tmp_path, device=device, **PINNED).step()
    weights, state = first.weights(), first.optimizer.state_dict()
    second = Run(tmp_path, device=device, **PINNED).resume(weights, state)
    assert not second.optimizer.state[second.params[0]][ANCHOR_KEY].is_cuda
    second.step([3])
    assert second.optimizer.state[second.params[0]][ANCHOR_KEY].is_pinned()
    assert all(map(same_bits, second.weights(), first.step([3]).weights()))


@pytest.mark.parametrize('device', [GPU])
def test_a_step_leaves_nothing_on_the_gpu(device):
    params = [nn.Parameter(torch.randn(1 << 20, device=device)) for _ in range(8)]
    optimizer = torch.optim.SGD(params, lr=0.1)
    Rollback(optimizer, dict.fromkeys(params, 0.1), keep=Keep(**PINNED))
    used = []
    for _ in range(4):
        optimizer.zero_grad()
        sum(p.square().sum() for p in params).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[1]
    assert used[-1] < 1.5 * 4 * 8 * (1 << 20)
