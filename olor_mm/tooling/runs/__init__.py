"""Many ordinary runs of tools/train.py: each in its own process and work dir, one after the other or side by side.

What finished is not repeated, what was interrupted goes on, and what a run gave is read from what MMEngine wrote.
"""

from .execute import Outcome, execute
from .read import RunResult, read_run
from .record import Run

__all__ = ['Outcome', 'Run', 'RunResult', 'execute', 'read_run']
