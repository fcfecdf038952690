"""Mistakes of users as data: what is given, when it is found out, and what the error says.

``when`` is 'build', where the wrapper or the Rollback is built; 'start', before the first step, for what only the files
and the weights that are in place then can tell; 'step', in the first step and before it changes anything, for what only
gradients tell. ``by`` names who refuses it: 'us', or the library whose own error it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ['INF', 'MISTAKES', 'NAN', 'Mistake', 'add']

NAN, INF = float('nan'), float('inf')


@dataclass
class Mistake:
    """One mistake: ``make`` is called with a folder of files and has to raise ``error`` that says ``said``."""

    name: str
    make: Callable[[Path], object]
    said: str
    error: type[Exception] = ValueError
    when: str = 'build'
    by: str = 'us'


#: All of them; the modules _mistakes_in_configs and _mistakes_in_loops add theirs.
MISTAKES: list[Mistake] = []


def add(name: str, make: Callable[[Path], object], said: str, **more: Any) -> None:
    MISTAKES.append(Mistake(name, make, said, **more))
