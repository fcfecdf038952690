"""Weight rollback in plain PyTorch: nothing of OpenMMLab is imported here."""

from ._files import BrokenCheckpointError, UnsafeCheckpointError
from .anchor import ANCHOR_KEY, INITIAL_LR_KEY, AnchorFile, MissingAnchorError, anchors_from_file
from .keeping import AnchorFileError, Keep
from .l2_sp import L2SP
from .penalty import layerwise_levels, layerwise_penalty, layerwise_radii
from .rollback import Rollback

__all__ = [
    'ANCHOR_KEY',
    'INITIAL_LR_KEY',
    'L2SP',
    'AnchorFile',
    'AnchorFileError',
    'BrokenCheckpointError',
    'Keep',
    'MissingAnchorError',
    'Rollback',
    'UnsafeCheckpointError',
    'anchors_from_file',
    'layerwise_levels',
    'layerwise_penalty',
    'layerwise_radii',
]
