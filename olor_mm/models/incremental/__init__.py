"""Class-incremental learning: SLCA and SLCA++ (Zhang 2023, 2024)."""

from .alignment import Alignment, align, normalised_logits
from .head import IncrementalClsHead
from .split import TaskSplit
from .statistics import ClassMoments, ClassStatistics

__all__ = [
    'Alignment',
    'ClassMoments',
    'ClassStatistics',
    'IncrementalClsHead',
    'TaskSplit',
    'align',
    'normalised_logits',
]
