"""SIGTERM ends a run as Ctrl-C does, also where the main thread does not come to hear of it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from olor_mm.tooling.errors import run_command
from olor_mm.tooling.signals import EXIT_TERMINATED, Terminated, terminable
from tests.test_tools._small import REPO


def end(failure=None):
    with terminable(lambda: None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Terminated:
            if failure is not None:
                raise failure from None
            raise


def test_it_is_raised_and_undone():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        end()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_failures_of_the_end_are_not_the_news():
    with pytest.raises(Terminated):
        end(RuntimeError('DataLoader worker is killed by signal: Terminated'))
    with pytest.raises(RuntimeError, match='of its own'), terminable(lambda: None):
        raise RuntimeError('a failure of its own')


def test_the_exit_code(capsys):
    def command(argv):
        raise Terminated('the last checkpoint is x')

    assert run_command(command, []) == EXIT_TERMINATED == 143
    assert 'the last checkpoint is x' in capsys.readouterr().err


def run(code):
    # The module alone: a process that imports mmengine takes seconds to start.
    command = [sys.executable, '-c', textwrap.dedent(code)]
    environ = {**os.environ, 'PYTHONPATH': str(REPO / 'olor_mm' / 'tooling')}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout.readline() == 'ready\n'
    return process


def test_a_main_thread_that_waits_in_a_library():
    process = run(
        """
        import ctypes
        from signals import terminable
        with terminable(lambda: print('last words', flush=True), grace=0.2):
            print('ready', flush=True)
            mutex = ctypes.create_string_buffer(64)
            lock = ctypes.CDLL(None).pthread_mutex_lock
            lock(mutex), lock(mutex)
        """
    )
    # Until it waits.
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == 'last words\n'
    assert process.returncode == 143


def test_a_forked_process_ends_alone():
    process = run(
        """
        import os, signal, time
        from signals import terminable
        with terminable(lambda: print('last words', flush=True), grace=0.2):
            child = os.fork()
            if not child:
                time.sleep(60)
            time.sleep(0.2)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
            time.sleep(1)
            print('ready', flush=True)
        """
    )
    assert process.communicate(timeout=20)[0] == ''
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != 'linux', reason='the system does not tell a process that its parent has ended')
def test_a_forked_process_ends_with_its_parent():
    process = run(
        """
        import os, time
        from signals import terminable
        with terminable(lambda: None):
            child = os.fork()
            if not child:
                time.sleep(60)
            print('ready', flush=True)
            print(child, flush=True)
            time.sleep(60)
        """
    )
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid):
    try:
        return Path('/proc', str(pid), 'stat').read_text().rpartition(') ')[2].split()[0] not in 'ZX'
    except OSError:
        return False
