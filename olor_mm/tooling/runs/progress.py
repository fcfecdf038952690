"""How far the runs are: bars on a terminal, plain lines in a log file."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

__all__ = ['Plain', 'Progress', 'display', 'position']

#: How often a log file is told what is going on, s.
INTERVAL = 60.0
_EPOCH = re.compile(r'Epoch\(train\)\s+\[\s*(\d+)\]\[\s*(\d+)/(\d+)\]')
_ITER = re.compile(r'Iter\(train\)\s+\[\s*(\d+)/(\d+)\]')


def position(text: str, max_epochs: int | None) -> tuple[float, str] | None:
    """How far a run is, from the end of its output.

    Args:
        text: As MMEngine logs it.
        max_epochs: How many epochs the run has, None where iterations are counted.

    Returns:
        The share that is done and words for it; None where the output says nothing of it yet.
    """
    found = _ITER.findall(text)
    if found:
        done, total = map(int, found[-1])
        return done / max(total, 1), f'iteration {done} of {total}'
    found = _EPOCH.findall(text)
    if not found or not max_epochs:
        return None
    epoch, done, total = map(int, found[-1])
    return min((epoch - 1 + done / max(total, 1)) / max_epochs, 1.0), f'epoch {epoch} of {max_epochs}'


class Plain:
    """Lines on stderr, for log files.

    Args:
        total: How many runs there are; None where that is not known.
    """

    def __init__(self, total: int | None) -> None:
        self._total, self._done = total, 0
        self._where: dict[str, str] = {}
        self._said = time.monotonic()

    def say(self, text: str) -> None:
        """Say something that stays."""
        print(text, file=sys.stderr, flush=True)

    def start(self, name: str) -> None:
        """A run begins."""
        self._where[name] = 'starting'

    def step(self, name: str, share: float, words: str) -> None:
        """A run went on."""
        self._where[name] = words
        if time.monotonic() - self._said >= INTERVAL:
            self._said = time.monotonic()
            self.say(f'{self.count()} done; ' + '; '.join(f'{run}: {at}' for run, at in self._where.items()))

    def done(self, name: str) -> None:
        """A run has ended."""
        self._where.pop(name, None)
        self._done += 1

    def count(self) -> str:
        """How many are done, of how many."""
        return f'{self._done} of {self._total}' if self._total is not None else f'{self._done}'

    def close(self) -> None:
        """Nothing more will be said."""


class Progress(Plain):
    """Bars on a terminal.

    Args:
        total: How many runs there are; None where that is not known.
    """

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        super().__init__(total)
        self._bars = Bars(
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            TextColumn('{task.fields[words]}', markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._all: Any = self._bars.add_task('runs', total=total, words=self.count())
        self._tasks: dict[str, Any] = {}
        self._bars.start()

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, name: str) -> None:
        self._tasks[name] = self._bars.add_task(name, total=1.0, words='starting')

    def step(self, name: str, share: float, words: str) -> None:
        self._bars.update(self._tasks[name], completed=share, words=words)

    def done(self, name: str) -> None:
        super().done(name)
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        self._bars.update(self._all, completed=self._done, words=self.count())

    def close(self) -> None:
        self._bars.stop()


def display(total: int | None) -> Plain:
    """Bars where stderr is a terminal that rich can draw on, else plain lines."""
    if sys.stderr.isatty():
        try:
            return Progress(total)
        except ImportError:
            pass
    return Plain(total)
