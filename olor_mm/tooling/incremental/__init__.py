"""tools/slca.py: a class-incremental run, task after task."""

from .command import incremental

__all__ = ['incremental']
