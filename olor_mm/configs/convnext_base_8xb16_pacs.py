"""OLOR on ConvNeXt-B with SGD, PACS, for new-style configs.

Example:
    >>> from mmengine.config import read_base
    >>> with read_base():
    >>>     from olor_mm.configs.convnext_base_8xb16_pacs import *
    >>> model['head'].update(num_classes=3)
"""

# The values live in configs/ alone. Written as calls because MMEngine turns every import statement of a new-style
# config into a lazy object, which could not be called here.
globals().update(
    __import__('mmengine.config', fromlist=['Config'])
    .Config.fromfile(__import__('olor_mm').cfg('olor_convnext-base_8xb16_pacs.py'))
    .to_dict()
)
