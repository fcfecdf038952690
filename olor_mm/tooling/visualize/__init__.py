"""tools/visualize.py: pictures of features, weights, levels and runs."""

from .command import visualize

__all__ = ['visualize']
