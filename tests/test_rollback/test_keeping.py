"""However theta_0 is kept and saved, the weights are those of the plain form, bit by bit."""

import contextlib
import copy
import itertools
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from olor_mm.rollback import ANCHOR_KEY, Keep, Rollback
from olor_mm.rollback._lossless import narrowed, same_bits
from olor_mm.rollback._references import REFERENCE_KEY
from olor_mm.rollback.single_pass import cpu

REPO = Path(__file__).resolve().parents[2]
GPU = pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))
OPTIMIZERS = {
    'SGD': (torch.optim.SGD, {}),
    'SGD, momentum': (torch.optim.SGD, {'momentum': 0.9}),
    'Adam': (torch.optim.Adam, {}),
    'AdamW': (torch.optim.AdamW, {'fused': None}),
}
FORMS = ['foreach', 'single_tensor', 'single_pass']
KEEPS = {
    'lossless': {'dtype': 'lossless'},
    'pinned': {'memory': 'pinned'},
    'mapped': {'memory': 'mapped'},
    'mapped, lossless': {'memory': 'mapped', 'dtype': 'lossless'},
    'reference': {'saved': 'reference'},
    'all': {'memory': 'mapped', 'dtype': 'lossless', 'saved': 'reference'},
}
SHAPES = [(7, 9), (65,), (), (4, 3, 2, 2), (2000, 3), (0,), (5,)]


@pytest.fixture(scope='module', autouse=True)
def _compiled():
    """Once, in the real cache."""
    with contextlib.suppress(cpu.BuildError):
        cpu.load()


@pytest.fixture(autouse=True)
def _cache(_compiled, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a cache'))


class Run:
    """Parameters of many kinds, some with the values of a half precision file, trained on drawn gradients."""

    def __init__(self, where, name='AdamW', form='foreach', numbers=torch.float32, device='cpu', level=0.1, **keep):
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(shape, generator=generator) for shape in SHAPES]
        values = [value.half().float() if i % 2 else value for i, value in enumerate(values)]
        self.params = [nn.Parameter(value.to(device, numbers)) for value in values]
        self.params[3].data = self.params[3].data.contiguous(memory_format=torch.channels_last)
        self.names = {p: f'layer{i}.weight' for i, p in enumerate(self.params)}
        # The last one is random: in no file.
        self.file = Path(where, 'pre trained.pth')
        if not self.file.exists():
            held = dict(zip(self.names.values(), values[:-1], strict=False))
            torch.save({'state_dict': {f'backbone.{key}': value.to(numbers) for key, value in held.items()}}, self.file)
        cls, options = OPTIMIZERS[name]
        self.optimizer = cls([{'params': self.params[:3]}, {'params': self.params[3:], 'lr': 2e-2}], lr=1e-2, **options)
        self.form, self.level, self.options = form, level, keep
        self.start = [p.detach().clone() for p in self.params]
        self.rollback = self.join(**keep)

    def join(self, **keep):
        levels = dict.fromkeys(self.params, self.level)
        rollback = Rollback(self.optimizer, levels, names=self.names, form=self.form, keep=Keep(**keep))
        if rollback.keeper is not None:
            rollback.keeper.origins.files.append(str(self.file))
        return rollback

    def step(self, steps=(0, 1, 2)):
        for t in steps:
            generator = torch.Generator().manual_seed(100 + t)
            for p in self.params:
                p.grad = torch.empty_like(p)
                p.grad.copy_(torch.randn(p.shape, generator=generator))
            self.optimizer.step()
        return self

    def weights(self):
        return [p.detach().clone() for p in self.params]

    def state(self):
        return [self.weights(), self.optimizer.state_dict()]

    def resume(self, weights, state):
        with torch.no_grad():
            for p, value in zip(self.params, weights, strict=True):
                p.copy_(value)
        self.optimizer.load_state_dict(state)
        return self


def equal(some, others):
    return all(same_bits(a.cpu(), b.cpu()) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('keep', KEEPS)
def test_the_weights_are_those_of_the_plain_form(keep, name, form, tmp_path):
    plain, other = Run(tmp_path, name, form).step(), Run(tmp_path, name, form, **KEEPS[keep]).step()
    assert not equal(plain.weights(), plain.start)
    assert equal(plain.weights(), other.weights())
    anchors = [other.rollback.anchor(p) for p in other.params]
    assert equal(anchors, plain.start)
    assert [a.stride() for a in anchors] == [p.stride() for p in other.params]
    parts = {i: [p] for i, p in enumerate(other.params)}
    assert other.rollback.discrepancy(parts) == plain.rollback.discrepancy(dict(enumerate([p] for p in plain.params)))


@pytest.mark.parametrize('numbers', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('keep', ['lossless', 'mapped', 'all'])
def test_in_any_dtype_and_in_small_buckets(keep, numbers, tmp_path, monkeypatch):
    monkeypatch.setattr('olor_mm.rollback._staging._BUCKET', 1 << 10)
    name = 'SGD, momentum'
    plain, other = (Run(tmp_path, name, numbers=numbers, **options) for options in ({}, KEEPS[keep]))
    assert equal(plain.step().weights(), other.step().weights())
    # What is rounded at random is so by the same numbers also where it is brought there in parts.
    for p in other.params:
        other.optimizer.state[p][ANCHOR_KEY] = other.optimizer.state[p][ANCHOR_KEY].double()
    other.rollback.keeper.prefetch = None
    other.rollback._store._known = {p: other.optimizer.state[p][ANCHOR_KEY] for p in other.params}
    other.rollback._batches = None
    assert equal(plain.step([3, 4]).weights(), other.step([3, 4]).weights())
    largest = max(p.numel() for p in other.params) + 64
    assert other.rollback.keeper.stage.num_bytes <= largest * other.params[0].element_size()


@pytest.mark.parametrize(('before', 'after'), list(itertools.permutations(['plain', *KEEPS], 2)))
def test_a_run_goes_on_from_any_way_in_any_other(before, after, tmp_path):
    keeps = {'plain': {}, **KEEPS}
    whole = Run(tmp_path).step(range(5)).weights()
    first = Run(tmp_path, **keeps[before]).step(range(3))
    torch.save(first.state(), tmp_path / 'checkpoint.pth')
    weights, state = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    saved = state['state'][1].get(ANCHOR_KEY)
    assert (None if saved is None else saved.dtype) == (None if before in ('reference', 'all') else torch.float32)
    second = Run(tmp_path, **keeps[after])
    assert equal(second.resume(weights, state).step(range(3, 5)).weights(), whole)
    assert equal([second.rollback.anchor(p) for p in second.params], second.start)
    assert REFERENCE_KEY not in second.optimizer.state[second.params[1]]


@pytest.mark.parametrize('name', ['SGD', 'SGD, momentum', 'Adam'])
@pytest.mark.parametrize(('before', 'after'), [('all', 'plain'), ('plain', 'all'), ('reference', 'lossless')])
def test_so_it_does_with_other_optimizers(before, after, name, tmp_path):
    keeps = {'plain': {}, **KEEPS}
    whole = Run(tmp_path, name).step(range(5)).weights()
    # Plain SGD has no state but theta_0.
    weights, state = Run(tmp_path, name, **keeps[before]).step(range(3)).state()
    second = Run(tmp_path, name, **keeps[after]).resume(weights, copy.deepcopy(state))
    assert equal(second.step(range(3, 5)).weights(), whole)


@pytest.mark.parametrize('keep', ['lossless', 'mapped, lossless'])
def test_the_buffer_is_there_once_and_stays(keep, tmp_path):
    run = Run(tmp_path, **KEEPS[keep]).step()
    (buffer,) = run.rollback.keeper.stage._buffers.values()
    address = buffer.data_ptr()
    run.step(range(3, 6))
    (buffer,) = run.rollback.keeper.stage._buffers.values()
    assert buffer.data_ptr() == address
    run.rollback.detach()
    assert run.rollback.keeper is None


@pytest.mark.parametrize('keep', ['all', 'reference'])
def test_a_state_that_was_loaded_before_there_was_a_rollback(keep, tmp_path):
    whole = Run(tmp_path).step(range(5)).weights()
    weights, state = Run(tmp_path, **KEEPS[keep]).step(range(3)).state()
    second = Run(tmp_path)
    second.rollback.detach()
    second.resume(weights, copy.deepcopy(state))
    # torch casts what it does not know to the dtype of the parameter.
    assert second.optimizer.state[second.params[1]][REFERENCE_KEY].dtype == torch.float32
    second.rollback = second.join()
    assert equal(second.step(range(3, 5)).weights(), whole)


def test_off_means_off(tmp_path):
    run = Run(tmp_path).step()
    hooks = ('load_state_dict_pre', 'load_state_dict_post', 'state_dict_pre', 'state_dict_post')
    assert not any(getattr(run.optimizer, f'_optimizer_{hook}_hooks') for hook in hooks)
    keeper = run.rollback.keeper
    assert keeper.stage is None
    assert keeper.prefetch is None
    assert not any(getattr(p, '_post_accumulate_grad_hooks', None) for p in run.params)
    run = Run(tmp_path, level=0.0)
    assert run.rollback.keeper is None
    assert not run.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize('keep', [{}, *KEEPS.values()])
def test_a_parameter_of_level_0_costs_no_byte(keep, tmp_path):
    params = [nn.Parameter(torch.randn(100)) for _ in range(2)]
    optimizer = torch.optim.AdamW(params, lr=0.1)
    Rollback(optimizer, {params[0]: 0.1, params[1]: 0.0}, keep=Keep(**keep))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    sizes = [sum(v.numel() * v.element_size() for v in optimizer.state[p].values()) for p in params]
    plain = torch.optim.AdamW([params[1]], lr=0.1)
    plain.step()
    assert sizes[1] == sum(v.numel() * v.element_size() for v in plain.state[params[1]].values())
    assert sizes[0] == sizes[1] + 400


def test_detach_takes_everything_off(tmp_path):
    run = Run(tmp_path, **KEEPS['all']).step()
    run.rollback.detach()
    hooks = [name for name in vars(run.optimizer) if name.startswith('_optimizer_') and name.endswith('hooks')]
    assert hooks
    assert not any(getattr(run.optimizer, name) for name in hooks)
    assert not any(ANCHOR_KEY in state for state in run.optimizer.state.values())


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'dtype': 'half'}, r"anchor_dtype='half' .*param, lossless"),
        ({'memory': 'gpu'}, r"anchor_memory='gpu' .*param, pinned, mapped"),
        ({'saved': None}, r'anchor_saved=None .*values, reference'),
        ({'folder': 'x'}, r"anchor_folder='x' is for anchor_memory='mapped'"),
        ({'memory': 'mapped', 'folder': ' '}, r"anchor_folder=' ' must be"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        Keep(**options)


def test_what_is_no_way_to_keep_is_refused(tmp_path):
    run = Run(tmp_path)
    run.rollback.detach()
    with pytest.raises(ValueError, match=r"keep='lossless' must be a Keep"):
        Rollback(run.optimizer, {run.params[0]: 0.1}, keep='lossless')


# ---------------------------------------------------------------- lossless


SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('wide', [torch.float32, torch.float64], ids=str)
def test_every_number_of_half_precision_is_kept_in_it(half, wide):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(half)
    values = bits[bits.isfinite()].to(wide)
    kept = narrowed(values)
    assert kept.dtype == half
    assert same_bits(kept.to(wide), values)
    assert 0.0 in values
    assert values.abs()[values != 0].min() == SMALLEST[half]
    assert torch.signbit(kept[values == 0]).tolist() == torch.signbit(values[values == 0]).tolist()


@pytest.mark.parametrize('value', [1 + 2**-12, 2.0**-150, 3.4e38, math.pi, 65520.0 + 2**-8])
@pytest.mark.parametrize('place', [0, 3_000_000])
def test_one_number_that_is_none_keeps_the_tensor_as_it_is(value, place):
    values = torch.zeros(3_000_001, dtype=torch.float64)
    values[place] = value
    found = torch.tensor(value, dtype=torch.float64)
    expected = torch.float32 if same_bits(found.float().double(), found) else torch.float64
    assert narrowed(values).dtype == expected


def test_other_numbers_and_layouts_stay(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.complex64):
        assert narrowed(torch.ones(3, dtype=dtype)).dtype == dtype
    image = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert narrowed(image).stride() == image.stride()
    assert narrowed(torch.ones(4, 6)[:, ::2]).dtype == torch.float16
    assert narrowed(torch.empty(0)).dtype == torch.float16


def test_what_was_saved_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    Run(tmp_path, **KEEPS['lossless']).step()
    assert [record.levelname for record in caplog.records] == ['INFO']
    # Those of odd number.
    assert caplog.messages == [
        'theta_0: 3 of 7 tensors are kept in fewer bits, all of them in 0.0 MiB instead of 0.0 MiB'
    ]
    caplog.clear()
    params = [nn.Parameter(torch.full((3,), math.pi))]
    optimizer = torch.optim.SGD(params, lr=0.1)
    Rollback(optimizer, {params[0]: 0.1}, keep=Keep(dtype='lossless')).capture()
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'none of the 1 tensors' in caplog.text
