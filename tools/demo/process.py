"""Runs tools/train.py and tools/test.py and shows their progress, one line at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

_TRAIN = re.compile(
    r'Iter\(train\) \[ *(?P<now>\d+)/(?P<all>\d+)\].*?eta: (?P<eta>[\d:]+)'
    r'.*? time: (?P<time>[\d.]+).*? loss: (?P<loss>\S+)'
)
_NAMES = {'bbox': 'box', 'segm': 'mask'}
_METRIC = re.compile(r'([AB])/coco/(bbox|segm)_mAP: (-?[\d.]+)')
_LOG_LINE = re.compile(r'^\d\d(\d\d)?[/-]\d\d')


class ToolError(RuntimeError):
    """A tool did not end well; the message holds the end of what it printed."""


def run_tool(arguments: Sequence[str], log: Path) -> None:
    """Runs a Python tool to its end with its progress on the terminal and all of its output in ``log``.

    Args:
        arguments: The tool and its arguments, without the interpreter.
        log: File that the output is appended to.

    Raises:
        ToolError: If the tool fails.
        KeyboardInterrupt: On Ctrl-C, after the tool has ended.
    """
    # One thread: with two, torch's threads wait for each other whenever anything else runs on a two-core machine, and
    # an iteration takes up to ten times as long. It also makes the figures independent of the number of cores.
    environment = dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', PYTHONUNBUFFERED='1', MPLBACKEND='Agg')
    command = [sys.executable, *arguments]
    last: deque[str] = deque(maxlen=25)
    display = _Display()
    with log.open('a', buffering=1) as file:
        file.write(f'$ {" ".join(command)}\n')
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
        try:
            for line in process.stdout or ():
                file.write(line)
                last.append(line)
                display.show(line.rstrip('\n'))
            code = process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the tool, too: it says how far it came and ends its workers.
            _end(process, patience=10)
            raise
        except BaseException:
            process.terminate()
            _end(process, patience=5)
            raise
        finally:
            display.close()
    if code:
        raise ToolError(f'{"".join(last)}\n{Path(arguments[0]).name} ended with exit status {code}; all of it: {log}')


def _end(process: subprocess.Popen[str], patience: float) -> None:
    """Waits for the process to end by itself, ``patience`` seconds at most."""
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Display:
    """Reduces a tool's log to what one wants to watch: progress, AP, and the report on the rollback."""

    def __init__(self) -> None:
        self._in_report = False
        self._overwrite = sys.stdout.isatty()
        self._open = False

    def show(self, line: str) -> None:
        self._in_report = 'Weight rollback (OLOR)' in line or (self._in_report and not _LOG_LINE.match(line))
        if self._in_report:
            self._print(f'    {line.rsplit(" - INFO - ", 1)[-1]}')
        elif match := _TRAIN.search(line):
            now, end = int(match['now']), int(match['all'])
            loss, seconds = float(match['loss']), float(match['time'])
            text = f'  {now:4d}/{end}  loss {loss:.2f}  {seconds:.2f} s/iter  {match["eta"]} left'
            if self._overwrite:
                print(f'\r{text:<78}', end='', flush=True)
                self._open = True
            elif now % 20 == 0 or now == end:
                self._print(text)
        elif metrics := _METRIC.findall(line):
            parts = [f'{_NAMES[kind]} AP on {domain} {float(value):.3f}' for domain, kind, value in metrics]
            self._print('  ' + '   '.join(parts))

    def close(self) -> None:
        if self._open:
            print(flush=True)
            self._open = False

    def _print(self, text: str) -> None:
        self.close()
        print(text, flush=True)
