"""The single pass on the CPU: ``cpu.cpp``, compiled when it is first asked for and kept for the next time."""

import functools
import hashlib
import logging
import os
import platform
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


_DIGEST = hashlib.sha256().digest_size
_TIMEOUT = 600  # seconds
_log = logging.getLogger(__name__)


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


def load(device: torch.device | None = None) -> Any:
    """The kernels, compiled by now; ``device`` is not asked for.

    Raises:
        BuildError: If they cannot be compiled or loaded here.
    """
    return _loaded()


@functools.cache
def _loaded() -> Any:
    try:
        library = _folder() / f'olor_mm_{_key()}.so'
        for kept in (_is_whole(library), False):
            if not kept:
                _build(library)
            try:
                torch.ops.load_library(str(library))
            except OSError as error:
                # One that was kept may come from another machine that shares the folder: once more, then.
                if not kept:
                    raise BuildError(f'{library} cannot be loaded: {error}') from error
            else:
                return torch.ops.olor_mm
    except OSError as error:
        raise BuildError(f'{error}; name a folder to keep them in: TORCH_EXTENSIONS_DIR') from error
    raise BuildError(f'{library} cannot be loaded')


def _options() -> tuple[list[str], list[str]]:
    """The compiler's options, and the linker's."""
    torch_folder = Path(torch.__file__).parent
    instructions = _INSTRUCTIONS if platform.machine().lower() in ('x86_64', 'amd64') else {}
    compiling = [
        *_OPTIONS,
        *instructions.get(torch.backends.cpu.get_cpu_capability(), []),
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        f'-isystem{torch_folder / "include"}',
    ]
    # Linked without -fopenmp: torch's own OpenMP is found at run time, and its threads are the ones that work.
    return compiling, ['-shared', f'-L{torch_folder / "lib"}', '-ltorch', '-ltorch_cpu', '-lc10']


def _key() -> str:
    """What a library is good for."""
    about = (torch.__version__, sys.platform, platform.machine(), platform.libc_ver(), _options())
    return hashlib.sha256(repr(about).encode() + SOURCE.read_bytes()).hexdigest()[:16]


def _folder() -> Path:
    """Where libraries are kept.

    Raises:
        OSError: If there is no home folder.
    """
    given = os.environ.get('TORCH_EXTENSIONS_DIR')
    if given:
        return Path(given)
    try:
        return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'olor_mm'
    except RuntimeError as error:
        raise FileNotFoundError(f'there is no home folder ({error})') from error


def _is_whole(library: Path) -> bool:
    """Whether a library is there as it was written: loading a broken one would end the process."""
    if not library.is_file():
        return False
    data = library.read_bytes()
    return hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]


def _build(library: Path) -> None:
    """Compile the kernels and put them there.

    Raises:
        BuildError: If there is no compiler, or it fails.
        OSError: If the folder cannot be written.
    """
    compiler = shutil.which(os.environ.get('CXX', 'c++')) or shutil.which('g++')
    if compiler is None:
        raise BuildError('there is no C++ compiler: install g++, or name one in the environment variable CXX')
    _log.info("compiling the kernels of form='single_pass', once on this machine: about 10 seconds")
    compiling, linking = _options()
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        # Compiled aside and moved: other processes see all of it or nothing, and none waits for a lock.
        part, made = Path(folder) / 'cpu.o', Path(folder) / library.name
        _run([compiler, *compiling, '-c', str(SOURCE), '-o', str(part)])
        _run([compiler, str(part), *linking, '-o', str(made)])
        digest = hashlib.sha256(made.read_bytes()).digest()
        with made.open('ab') as stream:
            # Behind the end of the library, where a loader does not look.
            stream.write(digest)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(made, library)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors='replace', check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f'{command[0]} did not end within {_TIMEOUT} seconds') from error
    if done.returncode:
        raise BuildError(f'{command[0]} ended with {done.returncode}: {_first_error(done.stderr)}')


def _first_error(text: str) -> str:
    lines = text.strip().splitlines() or ['no message']
    return next((line for line in lines if 'error' in line.lower()), lines[-1])
