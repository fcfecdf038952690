"""What the machine offers: interpreters, compilers, and a lock against a second set-up."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from .process import SetupError

SUPPORTED = ((3, 10), (3, 11), (3, 12))
SUPPORTED_TEXT = '3.10, 3.11 and 3.12'
PROBE = """
import json, os, sys, sysconfig
try:
    import ensurepip, venv
    can_venv = True
except ImportError:
    can_venv = False
header = os.path.join(sysconfig.get_paths()['include'], 'Python.h')
print(json.dumps([sys.executable, sys.version_info[:3], sys.base_prefix, can_venv, os.path.exists(header)]))
"""


class Interpreter(NamedTuple):
    """A Python that runs, and what it brings."""

    path: str
    version: tuple[int, ...]
    base: str
    can_venv: bool
    has_header: bool

    @property
    def supported(self) -> bool:
        return self.version[:2] in SUPPORTED

    @property
    def text(self) -> str:
        return f'{self.path} (Python {".".join(map(str, self.version))})'


def probe(name: str) -> Interpreter | None:
    """The interpreter called ``name``, a path or a command; None where there is none or it does not run."""
    path = shutil.which(name)
    if path is None:
        return None
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    try:
        done = subprocess.run([path, '-c', PROBE], capture_output=True, text=True, timeout=60, env=env, check=True)
        executable, version, base, can_venv, has_header = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return Interpreter(executable or path, tuple(version), base, can_venv, has_header)


def named_python() -> Interpreter | None:
    """The interpreter that ``PYTHON`` names; None where it is not set.

    Raises:
        SetupError: If it names something that is no Python, or one that is not supported.
    """
    name = os.environ.get('PYTHON', '')
    if not name:
        return None
    found = probe(os.path.expanduser(name))
    if found is None:
        raise SetupError(f'PYTHON={name!r} is no Python that runs. Give the path of one of {SUPPORTED_TEXT}.')
    if not found.supported:
        raise SetupError(f'PYTHON is {found.text}; supported are {SUPPORTED_TEXT}.')
    return found


def choose_python() -> Interpreter:
    """The interpreter that ``.venv`` is to be made from: ``PYTHON``'s, else the first supported one on the path.

    Raises:
        SetupError: If there is none; the message lists those that were found.
    """
    named = named_python()
    if named is not None:
        return named
    found = []
    for name in ('python3', *(f'python{major}.{minor}' for major, minor in reversed(SUPPORTED))):
        candidate = probe(name)
        if candidate is not None and candidate.supported:
            return candidate
        if candidate is not None:
            found.append(candidate.text)
    raise SetupError(
        f'no supported Python on the path: found {", ".join(found) or "none"}; supported are {SUPPORTED_TEXT}.\n'
        'Install one of them and name it: PYTHON=/path/to/python3.12 make ...'
    )


def external_python(checker: Path, need: str, own: Path) -> str | None:
    """An interpreter that the user chose and that has what ``need`` asks for; None where ``.venv`` is to be used.

    Args:
        checker: The script that says what an interpreter lacks, ``tools/check_env.py``.
        need: Its ``--need``.
        own: Our ``.venv``, which is not external even when it is active.
    """
    named = named_python()
    candidates = {'PYTHON': named.path} if named else {}
    if not candidates:
        folders = {name: os.environ.get(name) for name in ('VIRTUAL_ENV', 'CONDA_PREFIX')}
        candidates = {name: f'{folder}/bin/python' for name, folder in folders.items() if folder}
    for source, path in candidates.items():
        if Path(path).parent.parent.resolve() == own.resolve() or not os.access(path, os.X_OK):
            continue
        done = subprocess.run([path, str(checker), '--need', need], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return path
        lacks = done.stdout.strip().splitlines() or [f'{checker.name} fails there: {done.stderr.strip()[-200:]}']
        more = f' and {len(lacks) - 3} more' if len(lacks) > 3 else ''
        print(
            f'{source} is {path}, which lacks what this needs ({"; ".join(lacks[:3])}{more}): using .venv', flush=True
        )
    return None


def needed_of_the_host(python: Interpreter, make_venv: bool, compile_mmcv: bool) -> None:
    """Looks for what only the system's package manager can give, all of it at once.

    Raises:
        SetupError: If something is missing, with Debian's names for it.
    """
    version = '.'.join(map(str, python.version[:2]))
    compiler = os.environ.get('CXX', 'c++')
    missing = {}
    if make_venv and not python.can_venv:
        missing[f'python{version}-venv'] = 'the modules venv and ensurepip'
    if compile_mmcv and not python.has_header:
        missing[f'python{version}-dev'] = 'Python.h, which compiling mmcv needs'
    if compile_mmcv and shutil.which(compiler) is None:
        missing['build-essential'] = f'the C++ compiler ({compiler})'
    if missing:
        raise SetupError(
            f'{python.text} lacks {"; ".join(missing.values())}.\n'
            f'On Debian and Ubuntu: sudo apt-get install {" ".join(missing)}'
        )


class Lock:
    """One set-up at a time: an flock, which the kernel drops when its last holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open('a+', encoding='utf-8')
        except OSError as error:
            raise SetupError(f'{path.parent} cannot be written to ({error.strerror}): .venv goes there') from error

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> Lock:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            print(f'another set-up is running (process {holder}, or what it left): waiting for it', flush=True)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def build_jobs() -> int:
    """How many compilers may run at once: one per core that we may use, each with 1.5 GB of free memory."""
    cores = len(os.sched_getaffinity(0))
    try:
        memory = Path('/proc/meminfo').read_text(encoding='ascii')
        free = int(memory.split('MemAvailable:')[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return cores
    return max(1, min(cores, free // 1_500_000_000))


def warn_when_disk_is_short(folder: Path, need: int = 9_000_000_000) -> None:
    """Says so, early, when ``folder`` has less than ``need`` bytes left; pip may manage with less."""
    free = shutil.disk_usage(folder).free
    if free < need:
        print(
            f'warning: {folder} has {free / 1e9:.1f} GB left; the stack takes about {need / 1e9:.0f}', file=sys.stderr
        )
