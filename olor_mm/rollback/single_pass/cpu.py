"""The single pass on the CPU: ``cpu.cpp``, compiled when it is first asked for and kept for the next time."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ['BuildError', 'adam', 'load', 'sgd']

SOURCE = Path(__file__).with_name('cpu.cpp')

#: What torch says of the processor, to the compiler's options for it. Not -march=native: the result may be kept in a
#: home folder that several machines share.
_INSTRUCTIONS = {
    'AVX2': ['-mavx2', '-mfma'],
    'AVX512': ['-mavx512f', '-mavx512dq', '-mavx512vl', '-mavx512bw', '-mavx2', '-mfma'],
}
_OPTIONS = ['-O3', '-std=c++17', '-fPIC', '-fopenmp', '-fno-math-errno', '-ffp-contract=off']


class BuildError(RuntimeError):
    """The kernels could not be compiled or loaded here."""


def adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    anchors: list[Tensor],
    scalars: Tensor,
    grad_scale: Tensor | None = None,
) -> None:
    """One step of Adam or AdamW and the pull, in place.

    Args:
        params: Dense tensors of one dtype, float32 or float64.
        grads: Their gradients; like all others of the same dtype, and in memory in the same order.
        exp_avgs: m.
        exp_avg_sqs: v.
        anchors: theta_0.
        scalars: ``updates.adam_scalars``, of their dtype.
        grad_scale: What the gradients are to be divided by, one element. Defaults to None.
    """
    _unscale(grads, grad_scale)
    load().adam(params, grads, exp_avgs, exp_avg_sqs, anchors, scalars)


def sgd(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    anchors: list[Tensor],
    scalars: Tensor,
    nesterov: bool,
    grad_scale: Tensor | None = None,
) -> None:
    """One step of SGD with momentum and the pull, in place; arguments as for :func:`adam`."""
    _unscale(grads, grad_scale)
    load().sgd(params, grads, buffers, anchors, scalars, nesterov)


def _unscale(grads: list[Tensor], grad_scale: Tensor | None) -> None:
    if grad_scale is not None:
        torch._foreach_div_(grads, grad_scale.to(grads[0].dtype))


@functools.cache
def load() -> Any:
    """The kernels, compiled by now.

    Raises:
        BuildError: If they cannot be compiled or loaded here.
    """
    library = _built()
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BuildError(f'{library} cannot be loaded: {error}') from error
    return torch.ops.olor_mm


def _built() -> Path:
    """The compiled kernels.

    Raises:
        BuildError: If there is no compiler, or it fails, or the folder cannot be written.
    """
    torch_folder = Path(torch.__file__).parent
    compiler = shutil.which(os.environ.get('CXX', 'c++')) or shutil.which('g++')
    command = [
        *_OPTIONS,
        *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), []),
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        f'-isystem{torch_folder / "include"}',
    ]
    # Linked without -fopenmp: torch's own OpenMP is found at run time, and its threads are the ones that work.
    link = ['-shared', f'-L{torch_folder / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10']
    key = hashlib.sha256(
        repr((torch.__version__, sys.platform, command, link)).encode() + SOURCE.read_bytes()
    ).hexdigest()
    library = Path(os.environ.get('TORCH_EXTENSIONS_DIR') or _cache()) / f'olor_mm_{key[:16]}.so'
    if library.is_file():
        return library
    if compiler is None:
        raise BuildError('there is no C++ compiler: install g++, or name one in the environment variable CXX')
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            # Compiled aside and moved: other processes see all of it or nothing, and none waits for a lock.
            part, made = Path(folder) / 'cpu.o', Path(folder) / library.name
            _run([compiler, *command, '-c', str(SOURCE), '-o', str(part)])
            _run([compiler, str(part), *link, '-o', str(made)])
            os.replace(made, library)
    except OSError as error:
        raise BuildError(f'{library} cannot be made: {error}') from error
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors='replace', check=False)
    if done.returncode:
        raise BuildError(f'{command[0]} ended with {done.returncode}: {_first_error(done.stderr)}')


def _cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'olor_mm'


def _first_error(text: str) -> str:
    lines = text.strip().splitlines() or ['no message']
    return next((line for line in lines if 'error' in line.lower()), lines[-1])
