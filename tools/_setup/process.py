"""Children that are logged, watched and never left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

LINE_EVERY = 30.0  # seconds between signs of life where the output is no terminal


class SetupError(Exception):
    """What stops the set-up: a few lines that say what, why and what to do."""


def clock(seconds: float) -> str:
    """``75.2`` as ``'1 min 15 s'``."""
    minutes, rest = divmod(int(seconds), 60)
    return f'{minutes} min {rest} s' if minutes else f'{seconds:.1f} s'


def run_logged(command: list[str], log: Path, env: dict[str, str], keep_open: tuple[int, ...] = ()) -> int:
    """Runs ``command`` with its output appended to ``log``, shows that it lives, and returns its exit status.

    The child leads a process group of its own. Whatever ends this process early, other than SIGKILL, ends the group.

    Args:
        command: Program and arguments.
        log: File that standard output and error go to.
        env: The child's whole environment.
        keep_open: File descriptors that the child inherits. The lock's is one: should we be killed, the orphan holds
            it on, and another set-up waits instead of writing to the same folder.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a', encoding='utf-8') as sink:
        print('$', *command, file=sink, flush=True)
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            pass_fds=keep_open,
        )
        try:
            return _watch(child, log)
        finally:
            _end(child)


def _watch(child: subprocess.Popen[bytes], log: Path) -> int:
    start, shown = time.monotonic(), time.monotonic()
    terminal = sys.stdout.isatty()
    while True:
        try:
            status = child.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - shown >= (1.0 if terminal else LINE_EVERY):
                shown = now
                _sign_of_life(f'      {clock(now - start)}: {last_line(log)}', terminal)
    if terminal:
        sys.stdout.write('\r\033[K')
        sys.stdout.flush()
    return status


def _sign_of_life(text: str, terminal: bool) -> None:
    if terminal:
        sys.stdout.write('\r\033[K' + text[:100])
    else:
        sys.stdout.write(text[:100] + '\n')
    sys.stdout.flush()


def last_line(log: Path) -> str:
    """What a log says last: the compiler's count ``[12/140]`` where there is one, else the last line."""
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - 20000))
        lines = [line.strip() for line in file.read().decode('utf-8', 'replace').splitlines() if line.strip()]
    for line in reversed(lines):
        count = re.match(r'\[(\d+)/(\d+)\]', line)
        if count:
            return f'compiled {count[1]} of {count[2]} files'
    return re.sub(r'\S*/', '', lines[-1]) if lines else ''


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=patience)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def tail(log: Path, lines: int = 15) -> str:
    """The last ``lines`` lines of a log, each cut to a readable length."""
    text = log.read_text(encoding='utf-8', errors='replace').splitlines()
    return '\n'.join(f'  | {line[:200]}' for line in text[-lines:])
