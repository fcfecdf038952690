"""tools/search.py: which max_level and power suit a task."""

from .command import search

__all__ = ['search']
