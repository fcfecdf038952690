"""What the tool says: lines, and progress as a bar on a terminal or as lines elsewhere."""

from __future__ import annotations

import importlib
import sys
import time
from types import TracebackType
from typing import Any

__all__ = ['Progress', 'say']

# A log gets a line every tenth of the work, and one every half minute (s) where a tenth takes longer.
_STEPS = 10
_PATIENCE = 30.0


def say(text: str = '') -> None:
    """Write a line to stdout; what its encoding cannot express, such as a strange file name, is escaped."""
    encoding = sys.stdout.encoding or 'utf-8'
    sys.stdout.write(text.encode(encoding, 'backslashreplace').decode(encoding) + '\n')
    sys.stdout.flush()


class Progress:
    """How far something is, to be used in a ``with``.

    Args:
        title: What is being done.
        total: How much there is to do.
    """

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._said, self._time = 0, time.monotonic()
        self._bar: Any = _bar(title, total)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int) -> None:
        """Count ``steps`` more as done."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps)
            return
        due = (self._done - self._said) * _STEPS >= self._total or time.monotonic() - self._time > _PATIENCE
        if self._done == self._total or due:
            say(f'{self._title}: {self._done} of {self._total}')
            self._said, self._time = self._done, time.monotonic()


def _bar(title: str, total: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        return importlib.import_module('tqdm').tqdm(desc=title, total=total, unit='')
    except ImportError:
        return None
