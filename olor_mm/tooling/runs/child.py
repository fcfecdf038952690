"""The process of a run: started in a group of its own, ended gently, then by force, and never left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import olor_mm

from ..errors import InputError

__all__ = ['GRACE', 'Child', 'command', 'stop', 'tool_script']

#: How long a run may take to end after SIGTERM, s: tools/train.py ends itself after 5.
GRACE = 7.0
#: Held by a run's process, and by those that it starts.
LOCK = '.running'
# The run hears of its parent's end, also of one that the parent does not hear of itself. A process of its own says so
# to the system before it becomes the run: what Python offers for that is not safe beside threads.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tool_script(name: str) -> Path:
    """A tool of this checkout, or of the wheel.

    Args:
        name: Such as 'train.py'.

    Raises:
        InputError: If it is in neither place.
    """
    package = Path(olor_mm.__file__).resolve().parent
    places = [package.parent / 'tools' / name, package / '.mim' / 'tools' / name]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f'tools/{name} is missing', f'looked for: {places[0]}, {places[1]}', 'install olor_mm anew')


def command(argv: Sequence[str], processes: int = 1, script: Path | None = None) -> list[str]:
    """The command line of a run, with this interpreter.

    Args:
        argv: The arguments of the tool.
        processes: Of one run, each with a device of its own. Defaults to 1.
        script: The tool. Defaults to None: tools/train.py.
    """
    tool = str(script or tool_script('train.py'))
    if processes == 1:
        return [sys.executable, tool, *argv]
    launched = [sys.executable, '-m', 'olor_mm.tooling.torchrun', str(processes)]
    return [*launched, tool, *argv, '--launcher', 'pytorch']


class Child:
    """A process that was started.

    Args:
        command: What to run.
        log: Where its output is added.
        env: Its environment.

    Raises:
        InputError: If a process runs in the same folder already.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        self.began = time.time()
        self.code: int | None = None
        lock = _lock(log.parent)
        guarded = list(command)
        if sys.platform == 'linux':
            guarded = [sys.executable, '-I', '-S', '-c', _GUARD, str(os.getpid()), *command]
        try:
            with log.open('ab') as output:
                #: Where the output of this process begins.
                self.start = output.tell()
                self._process = subprocess.Popen(
                    guarded,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    start_new_session=True,
                    pass_fds=[lock.fileno()],
                )
        finally:
            lock.close()

    def poll(self) -> int | None:
        """The exit status, None while it runs; below 0 it is the number of the signal that ended it."""
        if self.code is None and self._has_ended():
            # Before its number is free for another process: data workers that it left behind.
            self._signal_group(signal.SIGKILL)
            self.code = self._process.wait()
        return self.code

    def terminate(self) -> None:
        """Ask it to end; it ends its data workers itself."""
        # What Python offers for that takes note of an end by itself, before those that it left behind are ended.
        if self.code is None and not self._has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it started."""
        deadline = time.monotonic() + 5
        while self.poll() is None and time.monotonic() < deadline:
            self._signal_group(signal.SIGKILL)
            time.sleep(0.02)

    def tail(self, size: int = 4096) -> str:
        """The end of its output, in lines.

        Args:
            size: At most so many bytes. Defaults to 4096.
        """
        with self.log.open('rb') as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self.start, end - size))
            return file.read().decode('utf-8', errors='replace')

    def _has_ended(self) -> bool:
        if not hasattr(os, 'waitid'):
            return self._process.poll() is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def stop(children: Sequence[Child], grace: float = GRACE) -> None:
    """End processes: all are asked to, and after a while those that still run are killed.

    Args:
        children: The processes.
        grace: How long they may take, s. Defaults to 7.
    """
    try:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            time.sleep(0.05)
    finally:
        # At once after a second Ctrl-C.
        for child in children:
            child.kill()


def _lock(folder: Path) -> IO[str]:
    """Held as long as a process of the run lives, whatever becomes of this one."""
    file = (folder / LOCK).open('w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f'a run is going on in {folder} already', 'wait for it, end it, or take another --work-dir'
        ) from None
    except OSError:
        # A file system without locks.
        return file
    return file
