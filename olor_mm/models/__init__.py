"""Methods that change a model, or choose what of it is trained: what OLOR is compared with."""

from .block_expansion import BlockExpansion
from .dtl import DTL
from .dtl_group import DTLGroup
from .freezing import freeze, summary
from .incremental import IncrementalClsHead
from .lora import LoRA
from .losses import SymmetricCrossEntropyLoss
from .merging import merge, unmerge
from .method import Method, build_method
from .padding_prompt import PaddingPrompt
from .subsets import BitFit, Full, Linear, Subset, TopK
from .tuned import Tuned, Tuning
from .vpt import VPT

__all__ = [
    'DTL',
    'VPT',
    'BitFit',
    'BlockExpansion',
    'DTLGroup',
    'Full',
    'IncrementalClsHead',
    'Linear',
    'LoRA',
    'Method',
    'PaddingPrompt',
    'Subset',
    'SymmetricCrossEntropyLoss',
    'TopK',
    'Tuned',
    'Tuning',
    'build_method',
    'freeze',
    'merge',
    'summary',
    'unmerge',
]
