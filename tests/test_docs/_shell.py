"""Commands of the pages, run by bash as they stand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.test_tools._small import environment

__all__ = ['Done', 'Rules', 'Shell', 'WarmPython']

#: Pattern of a command's arguments, and the arguments that it gets besides so that it ends soon.
Rules = Sequence[tuple[str, Sequence[str]]]

_HERE = Path(__file__).parent
_PATIENCE = 120  # seconds


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, and all that it printed."""

    code: int
    text: str


class WarmPython:
    """The process of ``_server.py`` and a command ``python`` that uses it; use it with ``with``."""

    def __init__(self) -> None:
        # The path of a socket must be short, which a test's own folder need not be.
        self._folder = tempfile.TemporaryDirectory(prefix='py')
        self.folder = Path(self._folder.name)
        self.bin = self.folder / 'bin'
        self.bin.mkdir()
        command = self.bin / 'python'
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{_HERE / "_client.py"}" "$@"\n')
        command.chmod(0o755)
        env = environment({'OPENBLAS_NUM_THREADS': '1', 'MPLBACKEND': 'agg'})
        self._process = subprocess.Popen([sys.executable, '-W', 'ignore', _HERE / '_server.py', self.folder], env=env)
        _wait(lambda: (self.folder / 'ready').exists() or self._process.poll() is not None)

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def interrupt(self) -> None:
        """Ctrl-C for the command that runs."""
        os.kill(int((self.folder / 'pid').read_text()), signal.SIGINT)


class Shell:
    """A folder in which commands run, with everything that a page's reader has.

    Args:
        python: What ``python`` is.
        cwd: The folder.
        rules: What makes the commands short.
        env: Further variables. Defaults to none.
    """

    def __init__(self, python: WarmPython, cwd: Path, rules: Rules, env: Mapping[str, str] | None = None) -> None:
        self.python, self.cwd = python, cwd
        self._env = environment(
            {
                'PATH': os.pathsep.join([str(python.bin), os.environ['PATH']]),
                'OLOR_MM_PYTHON': str(python.folder),
                'OLOR_MM_SHORTEN': json.dumps(rules),
                # For the processes that torchrun starts.
                'PYTHON_EXEC': str(python.bin / 'python'),
                'COLUMNS': '120',
                **(env or {}),
            }
        )
        # Our scripts' way to another interpreter; without it they take the `python` of the path, as a user's do.
        del self._env['PYTHON']

    def __call__(self, commands: str, interrupt_at: Path | None = None) -> Done:
        """Run commands, and stop at the first that fails.

        Args:
            commands: Lines for bash.
            interrupt_at: Press Ctrl-C as soon as this file is there. Defaults to None.
        """
        process = subprocess.Popen(
            ['bash', '-euo', 'pipefail', '-c', commands],
            cwd=self.cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if interrupt_at is not None:
            _wait(lambda: interrupt_at.exists() or process.poll() is not None)
            if process.poll() is None:
                self.python.interrupt()
        text, _ = process.communicate(timeout=_PATIENCE)
        return Done(process.returncode, text)


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f'nothing happened for {_PATIENCE} s')
        time.sleep(0.01)
