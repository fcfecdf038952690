"""OLOR on ViT-B/16 with Adam, PACS, for new-style configs.

Example:
    >>> from mmengine.config import read_base
    >>> with read_base():
    >>>     from olor_mm.configs.vit_base_p16_8xb16_pacs import *
    >>> model['head'].update(num_classes=3)
"""

# The values live in configs/ alone. Written as calls because MMEngine turns every import statement of a new-style
# config into a lazy object, which could not be called here.
globals().update(
    __import__('mmengine.config', fromlist=['Config'])
    .Config.fromfile(__import__('olor_mm').cfg('olor_vit-base-p16_8xb16_pacs.py'))
    .to_dict()
)
