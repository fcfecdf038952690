"""Parameter name -> layer index, for any backbone; plain PyTorch."""

from .names import canonical_name
from .table import LayerTable, assign_layers

__all__ = ['LayerTable', 'assign_layers', 'canonical_name']
