"""Parameters that a method of ``olor_mm.models`` put into a pre-trained model."""

from torch import nn

from olor_mm.layers import canonical_name

__all__ = ['added_by_methods']

#: Where a tuned model says what was done to it: ``olor_mm.models.tuned``, which is not imported for those without.
_TUNING = 'tuning'


def added_by_methods(model: nn.Module) -> frozenset[str]:
    """Canonical names of what was put into a model: it is new wherever it stands, so it is never pulled back.

    Args:
        model: The model, wrapped or not, tuned or not.
    """
    found: set[str] = set()
    for path, module in model.named_modules():
        names = getattr(module, 'added', None) if path.rpartition('.')[2] == _TUNING else None
        if isinstance(names, set):
            prefix = path.removesuffix(_TUNING)
            found |= {canonical_name(prefix + name) for name in names}
    return frozenset(found)
