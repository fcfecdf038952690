"""OLOR on UperNet with a ViT-B/16, ADE20K, for new-style configs.

Example:
    >>> from mmengine.config import read_base
    >>> with read_base():
    >>>     from olor_mm.configs.upernet_vit import *
    >>> optim_wrapper['optimizer']['lr'] = 1e-4
"""

# The values live in configs/ alone. Written as calls because MMEngine turns every import statement of a new-style
# config into a lazy object, which could not be called here.
globals().update(
    __import__('mmengine.config', fromlist=['Config'])
    .Config.fromfile(__import__('olor_mm').cfg('olor_upernet_vit.py'))
    .to_dict()
)
