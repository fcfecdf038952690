"""form='single_pass': its kernels are compiled once, anew where they are broken, and not where they cannot be."""

import logging
import os
import subprocess
import sys

import pytest

from olor_mm.rollback.single_pass import cpu

from ._single_pass import Run, compiled_or_skip


@pytest.fixture(scope='module', autouse=True)
def _compiled():
    compiled_or_skip()


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
