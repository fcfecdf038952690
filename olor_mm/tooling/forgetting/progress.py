"""How far the work is: a bar on a terminal, a line for each part elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import say, speaks

__all__ = ['Progress']


class Progress:
    """Tells how many of the results there are, what is being worked on, and how long the rest may take.

    Args:
        total: How many results there will be.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.computed = total, 0, 0
        self._bar: Any = None
        self._task: Any = None
        self._spent = 0.0

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Within it there is a bar, where the output is a terminal."""
        if not (speaks() and sys.stderr.isatty()):
            yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = [TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Bar(*columns, TextColumn('{task.fields[batch]}'), console=Console(stderr=True), transient=True) as bar:
            self._bar, self._task = bar, bar.add_task('', total=self.total, batch='')
            try:
                yield self
            finally:
                self._bar = None

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Within it one result is computed."""
        if self._bar is not None:
            self._bar.update(self._task, description=what, batch='')
        else:
            left = self._spent / self.computed * (self.total - self.done) if self.computed else 0.0
            about = f', about {_told(left)} left' if left >= 1 else ''
            say(f'[{self.done + 1}/{self.total}] {what}{about}')
        start = time.monotonic()
        yield
        self._spent += time.monotonic() - start
        self.computed += 1
        self._advance()

    def known(self) -> None:
        """One result was computed before."""
        self._advance()

    def batch(self, number: int, total: int) -> None:
        """Within a part: how many batches are done."""
        if self._bar is not None:
            self._bar.update(self._task, batch=f'batch {number} of {total}')

    def _advance(self) -> None:
        self.done += 1
        if self._bar is not None:
            self._bar.advance(self._task)


def _told(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
