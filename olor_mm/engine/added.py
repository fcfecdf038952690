"""Parameters that a method of ``olor_mm.models`` put into a pre-trained model."""

from collections.abc import Iterable

from torch import nn

from olor_mm.layers import LayerTable, canonical_name

__all__ = ['added_by_methods', 'pulled_back_by_methods', 'with_layers_of']

#: Where a tuned model says what was done to it: ``olor_mm.models.tuned``, which is not imported for those without.
_TUNING = 'tuning'


def added_by_methods(model: nn.Module) -> frozenset[str]:
    """Canonical names of what was put into a model: it is new wherever it stands, so it is not pulled back.

    Args:
        model: The model, wrapped or not, tuned or not.
    """
    return _names(model, 'added')


def pulled_back_by_methods(model: nn.Module) -> frozenset[str]:
    """Those of them that are pulled back all the same, to where they start: their method says so."""
    return _names(model, 'pulled_back')


def with_layers_of(layers: LayerTable, names: Iterable[str]) -> LayerTable:
    """A table with further names, each in the layer of what stands nearest to it.

    Args:
        layers: The table.
        names: Canonical names that are not in it.
    """
    index = dict(layers.index)
    for name in names:
        path = name.rpartition('.')[0]
        while path:
            beside = [i for other, i in layers.index.items() if other.startswith(f'{path}.')]
            if beside:
                index[name] = min(beside)
                break
            path = path.rpartition('.')[0]
    return LayerTable(index, layers.num_layers, layers.labels, layers.how)


def _names(model: nn.Module, kind: str) -> frozenset[str]:
    found: set[str] = set()
    for path, module in model.named_modules():
        names = getattr(module, kind, None) if path.rpartition('.')[2] == _TUNING else None
        if isinstance(names, set):
            prefix = path.removesuffix(_TUNING)
            found |= {canonical_name(prefix + name) for name in names}
    return frozenset(found)
