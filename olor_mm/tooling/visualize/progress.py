"""How far the work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ..errors import say, speaks

__all__ = ['Counted', 'Progress']

_PAUSE = 10.0  # seconds between lines


class Progress:
    """Counts the steps of a piece of work; use it with ``with``.

    Args:
        what: What is being worked on.
        total: How many steps there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._bar: Any = None
        self._task: Any = None
        self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if speaks() and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """A step is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif time.monotonic() - self._told > _PAUSE:
            self._told = time.monotonic()
            say(f'{self.what}: {self.done} of {self.total}')


class Counted:
    """A loader whose batches are counted.

    Args:
        loader: The loader; all else that is asked of this is asked of it.
        progress: What counts.
    """

    def __init__(self, loader: Any, progress: Progress) -> None:
        self._loader, self._progress = loader, progress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            self._progress.advance()
