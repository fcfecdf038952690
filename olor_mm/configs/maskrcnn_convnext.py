"""OLOR on Mask R-CNN with a ConvNeXt-B, COCO 2017, for new-style configs.

Example:
    >>> from mmengine.config import read_base
    >>> with read_base():
    >>>     from olor_mm.configs.maskrcnn_convnext import *
    >>> model['backbone'].update(arch='tiny')
"""

# The values live in configs/ alone. Written as calls because MMEngine turns every import statement of a new-style
# config into a lazy object, which could not be called here.
globals().update(
    __import__('mmengine.config', fromlist=['Config'])
    .Config.fromfile(__import__('olor_mm').cfg('olor_maskrcnn_convnext.py'))
    .to_dict()
)
