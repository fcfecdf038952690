"""form='single_pass': the step and the pull together give what the step and then the pull give."""

import copy
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from olor_mm.rollback import Keep, Rollback
from olor_mm.rollback.single_pass import cpu
from tests._torch import grad_scaler

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))]
OPTIMIZERS = {
    'AdamW': (torch.optim.AdamW, {}),
    'AdamW, plain': (torch.optim.AdamW, {'fused': None}),
    'AdamW, maximize': (torch.optim.AdamW, {'maximize': True, 'weight_decay': 0.3}),
    'Adam': (torch.optim.Adam, {}),
    'Adam, L2': (torch.optim.Adam, {'weight_decay': 0.1, 'betas': (0.5, 0.75), 'eps': 1e-3}),
    'SGD': (torch.optim.SGD, {'momentum': 0.9}),
    'SGD, L2, dampening': (torch.optim.SGD, {'momentum': 0.5, 'weight_decay': 0.1, 'dampening': 0.25}),
    'SGD, Nesterov': (torch.optim.SGD, {'momentum': 0.9, 'nesterov': True, 'maximize': True}),
}
SHAPES = [(37, 41), (128,), (3,), (), (5000, 7), (8, 4, 3, 3)]


@pytest.fixture(scope='module', autouse=True)
def _compiled():
    try:
        cpu.load()
    except cpu.BuildError as error:
        pytest.skip(str(error))


def has_fused(cls, device):
    try:
        cls([torch.ones(1, device=device)], lr=1.0, fused=True)
    except (RuntimeError, TypeError):
        return False
    return True


class Run:
    """Parameters of several shapes, the last two without pull, trained on drawn gradients."""

    def __init__(self, name, form, device='cpu', dtype=torch.float32, levels=None):
        torch.manual_seed(0)
        self.params = [nn.Parameter(torch.randn(shape, dtype=dtype).to(device)) for shape in [*SHAPES, (9,), (2, 2)]]
        self.params[5].data = self.params[5].data.contiguous(memory_format=torch.channels_last)
        cls, options = OPTIMIZERS[name]
        groups = [{'params': self.params[:3]}, {'params': self.params[3:], 'lr': 2e-2}]
        fused = {'fused': True} if has_fused(cls, device) else {}
        self.optimizer = cls(groups, lr=1e-2, **{**fused, **options})
        self.rollback = self.join(form, levels)
        self.generator = torch.Generator().manual_seed(1)
        self.coarse = False

    def join(self, form, levels=None):
        pulled = self.params[: len(SHAPES)]
        levels = levels or [0.01 * (i + 1) for i in range(len(pulled))]
        self.rollback = Rollback(self.optimizer, dict(zip(pulled, levels, strict=True)), form=form)
        return self.rollback

    def step(self, count=1):
        for _ in range(count):
            for group in self.optimizer.param_groups:
                group['lr'] *= 0.9
            for p in self.params:
                p.grad = torch.empty_like(p)
                drawn = torch.randn(p.shape, generator=self.generator)
                p.grad.copy_(drawn.bfloat16() if self.coarse else drawn)
            self.optimizer.step()

    def assert_like(self, other, **tolerance):
        for p, q in zip(self.params, other.params, strict=True):
            torch.testing.assert_close(p, q, **tolerance)
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)
            mine, theirs = self.optimizer.state[p], other.optimizer.state[q]
            assert mine.keys() == theirs.keys()
            for key in mine:
                torch.testing.assert_close(mine[key], theirs[key], **tolerance)
        assert self.rollback.num_steps == other.rollback.num_steps
        assert self.rollback.num_rolled_back == other.rollback.num_rolled_back


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_it_is_the_step_and_then_the_pull(name, dtype, device, caplog):
    plain, single = Run(name, 'foreach', device, dtype), Run(name, 'single_pass', device, dtype)
    plain.step(6)
    single.step(6)
    eps = torch.finfo(dtype).eps
    single.assert_like(plain, rtol=16 * eps, atol=16 * eps)
    assert not caplog.records


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_it_is_as_exact_as_the_step_and_then_the_pull(name):
    """In float32, against float64: a pass of its own rounds once more."""
    truth, plain, single = Run(name, 'foreach', dtype=torch.float64), Run(name, 'foreach'), Run(name, 'single_pass')
    for p, q, r in zip(truth.params, plain.params, single.params, strict=True):
        # The same start, and the same gradients in all three.
        for other in (p, q, r):
            other.data.copy_(q.detach().bfloat16())
    for run in (truth, plain, single):
        run.coarse = True
        run.step(12)

    def error(run):
        return sum((p.double() - q).square().sum() for p, q in zip(run.params, truth.params, strict=True)).sqrt()

    assert 0 < error(single) <= 1.05 * error(plain)


def test_only_the_first_step_is_the_optimizers_own(monkeypatch):
    run = Run('AdamW', 'single_pass')
    seen = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(sum(p.grad is not None for p in run.params)))
    taken = []
    single = run.rollback._single_pass
    original = single.step

    def step(*args):
        left = original(*args)
        taken.append(len(single._hidden))
        assert sum(len(batch.params) for batch in left) == len(SHAPES) - taken[-1]
        return left

    monkeypatch.setattr(single, 'step', step)
    run.step(3)
    assert taken == [0, len(SHAPES), len(SHAPES)]
    assert seen == [len(run.params)] * 3


@pytest.mark.parametrize('forms', [('single_pass', 'foreach'), ('foreach', 'single_pass')])
@pytest.mark.parametrize('name', ['AdamW', 'SGD'])
def test_checkpoints_of_one_go_on_in_the_other(name, forms):
    straight, first, second = Run(name, forms[1]), Run(name, forms[0]), Run(name, forms[1])
    straight.step(5)
    first.step(3)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for p, q in zip(second.params, first.params, strict=True):
        p.data.copy_(q.data)
    second.generator.set_state(first.generator.get_state())
    second.step(2)
    for p, q in zip(second.params, straight.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('levels', [[0.5] * 6, [1.0] * 6, [0.0, 1.0, 0.1, 0.7, 0.0, 0.3]], ids=str)
def test_strengths_that_it_leaves_to_a_pass_of_its_own(levels):
    plain, single = Run('AdamW', 'foreach', levels=levels), Run('AdamW', 'single_pass', levels=levels)
    plain.step(4)
    single.step(4)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_parameters_without_gradient_are_left_alone():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        for p in run.params[:2]:
            p.grad = None
        run.optimizer.step()
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


REFUSED = {
    'amsgrad': (torch.optim.AdamW, {'amsgrad': True}, 'amsgrad=True'),
    'SGD without momentum': (torch.optim.SGD, {}, 'SGD without momentum'),
    'RMSprop': (torch.optim.RMSprop, {}, "RMSprop is none of torch's"),
    'a learning rate on the device': (torch.optim.AdamW, {'lr': torch.tensor(1e-2)}, 'lr is a tensor'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_it_cannot_take_is_said_once_and_pulled_by_itself(case, caplog):
    cls, options, said = REFUSED[case]
    runs = []
    for form in ('foreach', 'single_pass'):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(7))
        optimizer = cls([p], **{'lr': 1e-2, **options})
        Rollback(optimizer, {p: 0.1}, form=form)
        for i in range(3):
            p.grad = torch.full_like(p, 1.0 + i)
            optimizer.step()
        runs.append(p.detach())
    assert torch.equal(*runs)
    assert [said in record.message for record in caplog.records] == [True]


def test_bfloat16_is_pulled_by_itself(caplog):
    p = nn.Parameter(torch.ones(7, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p], lr=1e-2)
    Rollback(optimizer, {p: 0.1}, form='single_pass')
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert [record.message for record in caplog.records] == [
        "form='single_pass' is not possible here (parameters are torch.bfloat16): the pull is a pass of its own"
    ]


def test_a_hook_between_it_and_the_step_sees_all_gradients():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.optimizer.register_step_pre_hook(lambda *_, run=run: nn.utils.clip_grad_norm_(run.params, 0.1) and None)
        run.step(4)
    single.assert_like(plain, rtol=0, atol=0)


def test_a_hook_between_the_step_and_it_sees_all_gradients(caplog):
    run = Run('AdamW', 'foreach')
    run.rollback.detach()
    seen = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(all(p.grad is not None for p in run.params)))
    run.join('single_pass')
    run.step(3)
    assert seen == [True] * 3
    assert [record.message for record in caplog.records] == [
        "form='single_pass' is not possible here (another step hook lies between it and the step, and would miss the "
        'gradients): the pull is a pass of its own'
    ]


def test_a_closure_makes_its_own_gradients(caplog):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)

        def closure(run=run):
            for p in run.params:
                p.grad.mul_(0.5)
            return 0.0

        run.optimizer.step(closure)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)
    assert 'step() is given a closure' in caplog.text


def test_after_an_error_in_the_step_its_gradients_are_used_up():
    """Some parameters have made their step when it ends: as with torch's own, but they do not make it twice."""
    run = Run('AdamW', 'single_pass')
    run.step(2)
    before = [p.detach().clone() for p in run.params]
    # Of one that the optimizer's own step takes.
    state = run.optimizer.state[run.params[-1]]
    moment = state.pop('exp_avg')
    with pytest.raises(KeyError):
        run.optimizer.step()
    state['exp_avg'] = moment
    once = [p.detach().clone() for p in run.params[: len(SHAPES)]]
    assert not any(torch.equal(p, q) for p, q in zip(once, before, strict=False))
    run.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(run.params, once, strict=False))
    run.step(1)
    assert not any(torch.equal(p, q) for p, q in zip(run.params, once, strict=False))
    assert all(p.grad is not None for p in run.params)


@pytest.mark.parametrize('others_only', [False, True])
def test_gradients_of_a_failed_step_do_not_come_back(others_only):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        saved = copy.deepcopy((run.optimizer.state_dict(), [p.detach() for p in run.params]))
        state = run.optimizer.state[run.params[-1]]
        moment = state.pop('exp_avg')
        with pytest.raises(KeyError):
            run.optimizer.step()
        state['exp_avg'] = moment
        run.optimizer.load_state_dict(saved[0])
        for p, q in zip(run.params, saved[1], strict=True):
            p.data.copy_(q)
            p.grad = None
        if others_only:
            run.params[-1].grad = torch.ones_like(run.params[-1])
            run.optimizer.step()
            assert all(p.grad is None for p in run.params[: len(SHAPES)])
        run.step(2)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('grown', ['moments', 'parameter'])
@pytest.mark.parametrize('name', ['AdamW', 'SGD'])
def test_tensors_of_another_shape_are_torchs_error(name, grown):
    """Equal strides are not equal lengths: the kernels would write beyond the end."""
    p = nn.Parameter(torch.randn(10, 64))
    cls, options = OPTIMIZERS[name]
    optimizer = cls([p], lr=1e-2, foreach=True, **options)
    Rollback(optimizer, {p: 0.1}, form='single_pass')
    p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    if grown == 'parameter':
        p.data = torch.cat([p.data, p.data])
        p.grad = torch.ones_like(p)
    else:
        key = 'exp_avg' if name == 'AdamW' else 'momentum_buffer'
        optimizer.state[p][key] = torch.zeros(5, 64)
    with pytest.raises(RuntimeError, match=r'size|shape'):
        optimizer.step()


@pytest.mark.parametrize('option', ['weight_decay', 'eps', 'lr'])
def test_numbers_that_are_tensors_count_as_such(option):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.optimizer.defaults['foreach'] = False
        for group in run.optimizer.param_groups:
            group.update({'fused': None, 'foreach': False, option: torch.tensor(group[option])})
            group['rollback_initial_lr'] = 1e-2
        for _ in range(3):
            for p in run.params:
                p.grad = torch.full_like(p, 0.1)
            run.optimizer.step()
    single.assert_like(plain, rtol=0, atol=0)


@pytest.mark.parametrize('anchor_dtype', ['param', 'lossless'])
def test_a_change_of_the_memory_format_between_steps(anchor_dtype):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run, form in ((plain, 'foreach'), (single, 'single_pass')):
        run.rollback.detach()
        levels = dict.fromkeys(run.params, 0.05)
        run.rollback = Rollback(run.optimizer, levels, form=form, keep=Keep(dtype=anchor_dtype))
        run.step(2)
        run.params[5].data = run.params[5].data.contiguous()
        run.step(2)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_with_another_default_device():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        with torch.device('meta'):
            run.optimizer.step()
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('count', ['of shape [1]', 'in float64'])
def test_counts_of_steps_that_differ(count):
    plain, single = Run('AdamW, plain', 'foreach'), Run('AdamW, plain', 'single_pass')
    for run in (plain, single):
        for group in run.optimizer.param_groups:
            group['foreach'] = False
        run.step(2)
        state = run.optimizer.state[run.params[0]]
        state['step'] = state['step'].reshape(1) if count == 'of shape [1]' else state['step'].double()
        run.step(2)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_a_graph_of_before_the_step_is_stale_after_it():
    run = Run('AdamW', 'single_pass')
    run.step(2)
    loss = run.params[0].square().sum()
    run.optimizer.step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_gradients_that_lie_otherwise_in_memory_are_left_to_the_optimizer(caplog):
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        run.params[0].grad = run.params[0].grad.t().contiguous().t()
        run.optimizer.step()
    single.assert_like(plain, rtol=2e-6, atol=2e-6)
    assert 'gradients lie otherwise in memory' in caplog.text


def test_other_moments_are_taken_as_they_are():
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    for run in (plain, single):
        run.step(2)
        for p in run.params:
            run.optimizer.state[p]['exp_avg'] = torch.zeros_like(p)
        run.step(1)
    single.assert_like(plain, rtol=2e-6, atol=2e-6)


def test_without_a_compiler_it_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setenv('PATH', str(tmp_path))
    cpu._loaded.cache_clear()
    plain, single = Run('AdamW', 'foreach'), Run('AdamW', 'single_pass')
    plain.step(3)
    single.step(3)
    cpu._loaded.cache_clear()
    single.assert_like(plain, rtol=0, atol=0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert 'there is no C++ compiler: install g++' in caplog.text


def test_without_a_home_it_says_so(monkeypatch, caplog):
    def nowhere():
        raise RuntimeError('Could not determine home directory.')

    for name in ('TORCH_EXTENSIONS_DIR', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('pathlib.Path.home', nowhere)
    cpu._loaded.cache_clear()
    run = Run('AdamW', 'single_pass')
    run.step(2)
    cpu._loaded.cache_clear()
    assert run.rollback.form_in_use == 'foreach'
    assert 'there is no home folder' in caplog.text
    assert 'TORCH_EXTENSIONS_DIR' in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize('harm', ['cut', 'emptied at its end'])
def test_a_broken_library_is_compiled_anew(harm, tmp_path):
    """Loading one as it is would end the process."""
    environment = {**os.environ, 'TORCH_EXTENSIONS_DIR': str(tmp_path)}
    kept = cpu._folder() / f'olor_mm_{cpu._key()}.so'
    data = kept.read_bytes()
    half = len(data) // 2
    broken = {'cut': data[:half], 'emptied at its end': data[:half] + bytes(half)}[harm]
    (tmp_path / kept.name).write_bytes(broken)
    script = 'from olor_mm.rollback.single_pass import cpu; cpu.load().adam'
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert cpu._is_whole(tmp_path / kept.name)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_a_step_that_the_scaler_skips_changes_nothing():
    scaler = grad_scaler('cpu', init_scale=1024.0)
    runs = [Run('AdamW', form) for form in ('foreach', 'single_pass')]
    for run in runs:
        run.step(2)
        scaler = grad_scaler('cpu', init_scale=1024.0)
        for bad in (False, True, False):
            before = [p.detach().clone() for p in run.params]
            for p in run.params:
                p.grad = None
            loss = sum((p * (i + 1)).square().sum() for i, p in enumerate(run.params)) * (float('inf') if bad else 1)
            scaler.scale(loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(run.params, before, strict=True)) == bad
    runs[1].assert_like(runs[0], rtol=2e-6, atol=2e-6)


INTERPRETED = """
import torch
from olor_mm.rollback.single_pass import cpu, cuda
from olor_mm.rollback.single_pass.updates import WIDTHS

def drawn(lists):
    torch.manual_seed(0)
    return [[torch.rand(shape) for shape in [(37, 41), (128,), (3,), (), (5000,)]] for _ in range(lists)]

for name, lists, options in [('adam', 5, ()), ('sgd', 4, (False,)), ('sgd', 4, (True,))]:
    ours, theirs, start = drawn(lists), drawn(lists), drawn(lists)
    scalars = torch.rand(5, WIDTHS[name])
    getattr(cpu, name)(*ours, scalars, *options)
    getattr(cuda, name)(*theirs, scalars, *options)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    scale = torch.tensor(4.0)
    getattr(cpu, name)(*ours, scalars, *options, grad_scale=scale)
    getattr(cuda, name)(*theirs, scalars, *options, grad_scale=scale)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    before = [x.clone() for some in theirs for x in some]
    getattr(cuda, name)(*theirs, scalars, *options, found_inf=torch.ones(1))
    assert all(torch.equal(x, y) for x, y in zip(before, [x for some in theirs for x in some], strict=True))
    assert not torch.equal(ours[0][0], start[0][0])
"""

COMPILED = """
import re
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from olor_mm.rollback.single_pass import cuda

types = {'addresses': '*i64', 'pieces': '*i64', 'scalars': '*fp32', 'grad_scale': '*fp32', 'found_inf': '*fp32',
         'sizes': '*i64', 'num': 'i32'}
options = {'block': 2048, 'dtype': tl.pointer_type(tl.float32), 'aligned': True, 'nesterov': False, 'scaled': False}
for kernel, reads, writes in ((cuda._adam, 5, 3), (cuda._sgd, 4, 2)):
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={name: types.get(name, 'constexpr') for name in names},
        constexprs={(names.index(name),): value for name, value in options.items() if name in names},
    )
    ptx = compile(source, target=GPUTarget('cuda', 80, 32)).asm['ptx']
    # 2048 numbers by 128 threads, four at once: as many times four each reads and writes of each.
    assert len(re.findall(r'ld\\.global\\.v4', ptx)) == 4 * reads, ptx
    assert len(re.findall(r'st\\.global\\.v4', ptx)) == 4 * writes, ptx
"""


@pytest.mark.parametrize(('script', 'extra'), [(INTERPRETED, {'TRITON_INTERPRET': '1'}), (COMPILED, {})])
def test_the_gpus_kernels_without_a_gpu(script, extra, tmp_path):
    """Interpreted on the CPU they give what those of the CPU give; compiled, they read four numbers at once."""
    pytest.importorskip('triton.backends')
    environment = {**os.environ, **extra, 'TRITON_CACHE_DIR': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
