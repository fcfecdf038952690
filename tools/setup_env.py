"""Makes ``.venv`` with the pinned stack of ``requirements/``, then runs a command in it.

``python3 tools/setup_env.py [--need demo|test|lint|all] [-- ARGUMENTS FOR PYTHON]`` is what ``make`` calls. It may be
interrupted anywhere, killed too, and repeated: each step leaves its stamp only after it succeeded, and what an
interrupted pip left half-done is swept up before the next. When nothing changed it takes a fraction of a second.

An interpreter that has the packages already is used as it is: the one that ``PYTHON`` names or, failing that, the
active environment's (``VIRTUAL_ENV``, ``CONDA_PREFIX``). Then nothing is installed and no ``.venv`` is made.
``PYTHON`` without the packages is what ``.venv`` is made from. ``TORCH_INDEX`` is passed to pip as the index of torch
and torchvision, for a build without CUDA for instance; pip's own variables hold as ever.

It needs the standard library only, and runs from Python 3.8 on so that it can tell which Python it takes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from _setup.environment import Environment, sweep
from _setup.host import (
    Interpreter,
    Lock,
    choose_python,
    external_python,
    named_python,
    needed_of_the_host,
    probe,
    warn_when_disk_is_short,
)
from _setup.process import SetupError, clock
from _setup.steps import CHECKER, ROOT, Step, steps

VENV = ROOT / '.venv'
LOCK = ROOT / '.venv.lock'


def base_of(environment: Environment) -> tuple[Interpreter, bool]:
    """The interpreter to make ``.venv`` from, and whether the one that exists can stay."""
    present = probe(str(environment.python)) if environment.version() else None
    named = named_python()
    if present is None or not present.supported:
        return choose_python(), False
    if named is None or (named.version[:2], named.base) == (present.version[:2], present.base):
        return present, True
    return choose_python(), False


def make_venv(environment: Environment, base: Interpreter, keep: bool) -> None:
    """Creates ``.venv``, or mends the one that is there where it can stay.

    Raises:
        SetupError: If what is there cannot stay and was not made here: that is not ours to remove.
    """
    if keep:
        sweep(environment.site())
        if environment.ask('-m', 'pip', '--version').returncode == 0:
            return
    else:
        _clear(environment, base)
    environment.run('venv', [base.path, '-m', 'venv', str(environment.folder)], 'making the virtual environment')
    if environment.ask('-m', 'pip', '--version').returncode:
        raise SetupError(f'pip does not run in {environment.folder}: remove that folder and run this again')


def _clear(environment: Environment, base: Interpreter) -> None:
    folder = environment.folder
    found = list(folder.iterdir()) if folder.exists() else []
    if found and not environment.state.exists():
        raise SetupError(
            f'{folder} exists, was not made by this set-up, and cannot be used with {base.text}: move it away, '
            'or name its Python with PYTHON if that is one of the supported.'
        )
    if found:
        print(f'      {folder} is incomplete or of another Python: making it anew with {base.text}', flush=True)
    # The stamps go first: they must not outlive what they vouch for. Their folder stays: it says that the rest is ours,
    # should this be interrupted.
    environment.state.mkdir(parents=True, exist_ok=True)
    for stamp in environment.state.glob('*.json'):
        stamp.unlink()
    for path in found:
        if path != environment.state:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def up_to_date(environment: Environment) -> bool:
    """Whether ``.venv`` is complete and of the Python that is asked for; a few file reads, no lock."""
    if not environment.version() or not all(step.fresh(environment) for step in steps()):
        return False
    return named_python() is None or base_of(environment)[1]


def set_up(environment: Environment) -> None:
    """Brings ``.venv`` to what ``requirements/`` says; only what is not so already is done.

    Raises:
        SetupError: If a step fails; the message says which and what to do.
    """
    base, keep = base_of(environment)
    compile_mmcv = not keep or 'mmcv' not in environment.installed()
    needed_of_the_host(base, make_venv=not keep, compile_mmcv=compile_mmcv)
    warn_when_disk_is_short(ROOT)
    total = len(steps()) + 1
    with _announced(1, total, f'virtual environment, {base.text}'):
        make_venv(environment, base, keep)
    for number, step in enumerate(steps(), start=2):
        if step.fresh(environment):
            print(f'[{number}/{total}] {step.title}: as it was', flush=True)
            continue
        with _announced(number, total, step.title):
            _run_step(environment, step)


def _run_step(environment: Environment, step: Step) -> None:
    key = step.key(environment)
    environment.log(step.name).unlink(missing_ok=True)
    step.run(environment)
    environment.write_stamp(step.name, key, step.names())


@contextmanager
def _announced(number: int, total: int, title: str) -> Iterator[None]:
    start = time.monotonic()
    print(f'[{number}/{total}] {title} ...', flush=True)
    try:
        yield
    except SetupError as error:
        raise SetupError(f'step {number} of {total} ({title}): {error}') from error
    print(f'[{number}/{total}] {title}: done in {clock(time.monotonic() - start)}', flush=True)


def python_for(need: str) -> tuple[str, bool]:
    """The interpreter to run in, set up where it has to be; and whether it is the user's own."""
    external = external_python(CHECKER, need, VENV)
    if external is not None:
        return external, True
    environment = Environment(VENV)
    if not up_to_date(environment):
        with Lock(LOCK) as lock:
            environment.lock_descriptor = lock.descriptor
            if not up_to_date(environment):
                set_up(environment)
    return str(environment.python), False


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Sets up and, where a command was given, becomes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--need', choices=('demo', 'test', 'lint', 'all'), default='all')
    parser.add_argument('command', nargs='*', help='what to run with the Python of the environment, after --')
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    start = time.monotonic()
    try:
        python, external = python_for(arguments.need)
    except SetupError as error:
        print(f'set-up failed: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('set-up interrupted: run it again, it goes on where it was', file=sys.stderr)
        return 130
    print(f'environment: {python} ({clock(time.monotonic() - start)})', flush=True)
    if not arguments.command:
        return 0
    env = Environment(VENV).child_env() if not external else dict(os.environ)
    if external:
        # olor_mm is not installed there; its own tools and their children shall find this checkout.
        env['PYTHONPATH'] = os.pathsep.join(filter(None, (str(ROOT), env.get('PYTHONPATH'))))
    return os.execve(python, [python, *arguments.command], env)


if __name__ == '__main__':
    sys.exit(main())
