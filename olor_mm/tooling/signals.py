"""SIGTERM, as Slurm and ``docker stop`` send it: an orderly end, like that of Ctrl-C, and soon in any case."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ['EXIT_TERMINATED', 'Terminated', 'terminable']

EXIT_TERMINATED = 128 + signal.SIGTERM
#: How long an orderly end may take, s; 'docker stop' and torchrun kill after 10 s and 30 s.
GRACE = 5.0


class Terminated(BaseException):
    """SIGTERM has been received. Like KeyboardInterrupt no ``Exception``, so that nothing takes it for a failure."""


class _Watch:
    """Raises :class:`Terminated` in the main thread, and ends the process if that does not get to it.

    Python runs a signal's handler between two of its own instructions. A process that waits in a library, as for
    another rank that is gone already, does not come to that, and would stay until it is killed. The interpreter's
    wake-up descriptor is written to at once, wherever the main thread is.
    """

    def __init__(self, last_words: Callable[[], None], grace: float) -> None:
        self.received = False
        self._last_words = last_words
        self._grace = grace
        self._done = threading.Event()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_handler = signal.signal(signal.SIGTERM, self._raise)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._wait, name='SIGTERM', daemon=True).start()

    def close(self) -> None:
        self._done.set()
        self.restore()
        os.close(self._write)

    def restore(self) -> None:
        signal.signal(signal.SIGTERM, self._old_handler)
        signal.set_wakeup_fd(self._old_wakeup)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = True
            raise Terminated

    def _wait(self) -> None:
        # Ends with the write end of the pipe.
        while data := os.read(self._read, 64):
            if signal.SIGTERM in data:
                if not self._done.wait(self._grace):
                    self._last_words()
                    os._exit(EXIT_TERMINATED)
                break
        os.close(self._read)


_active: list[_Watch] = []


@contextmanager
def terminable(last_words: Callable[[], None], grace: float = GRACE) -> Iterator[None]:
    """Within it SIGTERM raises :class:`Terminated`; outside of the main thread nothing is changed.

    Args:
        last_words: Called before the process is ended by force, from another thread.
        grace: How long the orderly end may take, s. Defaults to 5.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    watch = _Watch(last_words, grace)
    _active.append(watch)
    try:
        yield
    except Exception as error:
        if watch.received:
            # Whatever failed while everything was being torn down, such as a data worker that got the signal too.
            raise Terminated from error
        raise
    finally:
        _active.remove(watch)
        watch.close()


def _before_fork() -> None:
    _forker[:] = [os.getpid(), threading.current_thread() is threading.main_thread()]


def _leave_to_parent() -> None:
    """In a process that was forked: the signal does what it does by default, and the parent hears nothing of it.

    It ends with its parent. A data worker sees by itself that its parent has been killed, but then waits for ever to
    hand over a batch that is larger than a pipe.
    """
    if _active:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        parent, by_main_thread = _forker
        # The system means the thread that forked, and others may end before the process does.
        if _prctl is not None and by_main_thread:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(EXIT_TERMINATED)
    _active.clear()


_forker: list[int] = [0, False]
_PR_SET_PDEATHSIG = 1
# Loaded beforehand: little is safe between a fork and its end. None where the system is not Linux.
_prctl = getattr(ctypes.CDLL(None), 'prctl', None) if sys.platform == 'linux' else None
os.register_at_fork(before=_before_fork, after_in_child=_leave_to_parent)
