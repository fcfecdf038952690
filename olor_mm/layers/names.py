"""One name for a parameter, however its model is wrapped."""

__all__ = ['canonical_name']

_WRAPPERS = frozenset(('_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_orig_mod'))


def strip_wrappers(path: str) -> str:
    """Module path without the components that wrappers add; ``''`` where nothing but wrappers is left.

    ``module`` (DataParallel, DistributedDataParallel, AveragedModel, DeepSpeed) is a wrapper's only in front of
    everything else: deeper in the tree it is a sub-module of the model's own, such as that of mmpretrain's LoRAModel.
    """
    parts = [part for part in path.split('.') if part and part not in _WRAPPERS]
    while parts and parts[0] == 'module':
        parts.pop(0)
    return '.'.join(parts)


def canonical_name(name: str) -> str:
    """Name of a parameter as it is in the bare model.

    Strips the components that FSDP, activation checkpointing and ``torch.compile`` add, anywhere, and the ``module``
    that data parallel wrappers put in front. The last component is the parameter's own name and is never touched, so
    the result is not empty, and applying the function twice changes nothing more.

    Args:
        name: Name from ``named_parameters()`` of a wrapped or bare model.

    Returns:
        The same name without wrappers.

    Example:
        >>> canonical_name('module.backbone._orig_mod.blocks.0._fsdp_wrapped_module.w')
        'backbone.blocks.0.w'
    """
    path, _, leaf = name.rpartition('.')
    path = strip_wrappers(path)
    return f'{path}.{leaf}' if path else leaf
