"""tools/compare.py: one config under several methods and seeds."""

from .command import compare

__all__ = ['compare']
