"""The levels of the paper's Tables 6 and 7, to be put on any recipe, for new-style configs.

Example:
    >>> from mmengine.config import read_base
    >>> with read_base():
    >>>     from olor_mm.configs.rollback import rollback_pacs_vit
    >>> optim_wrapper.update(rollback_pacs_vit)
"""

# The values live in configs/ alone. Written as calls because MMEngine turns every import statement of a new-style
# config into a lazy object, which could not be called here.
globals().update(
    __import__('mmengine.config', fromlist=['Config'])
    .Config.fromfile(__import__('olor_mm').cfg('_base_/rollback.py'))
    .to_dict()
)
