"""How far the weights of a model are from theta_0: as a whole, and layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.added import added_by_methods
from ...engine.loaded import roots_of_loaded
from ...layers import LayerTable, assign_layers
from ...models import merge
from ...models.low_rank import LowRank
from ...rollback.discrepancy import relative_discrepancy
from .origin import Origin, plain_name

__all__ = ['discrepancies', 'layers_of']


def layers_of(model: nn.Module, origin: Origin, index: str = 'layer', roots: Sequence[str] | None = None) -> LayerTable:
    """The layers of what came from a file.

    Args:
        model: The model, not wrapped.
        origin: theta_0.
        index: 'layer' or 'tensor', as of :func:`~olor_mm.layers.assign_layers`. Defaults to 'layer'.
        roots: Paths of the parts that count. Defaults to None: those that came from a file.

    Raises:
        ValueError: If a root does not exist, or the layers are not known.
    """
    chosen = tuple(roots) if roots else roots_of_loaded(model, set(origin.params), resumed=False)
    return assign_layers(model, chosen, index, skip=added_by_methods(model))


@torch.no_grad()
def discrepancies(model: nn.Module, origin: Origin) -> dict[str, Any]:
    """Relative discrepancy ||theta - theta_0|| / ||theta_0|| of all that came from a file, and of each layer.

    What LoRA adds to a weight counts as a change of the weight. What a method put beside the pre-trained weights, such
    as prompts, has no theta_0 and does not count.

    Args:
        model: The model, not wrapped, with the weights to be looked at.
        origin: theta_0.

    Returns:
        ``overall``; ``layers``: label to discrepancy, in forward order; ``added``: how many numbers methods put there.
    """
    layers = layers_of(model, origin)
    added = added_by_methods(model)
    count = sum(p.numel() for name, p in model.named_parameters() if name in added)
    index = {plain_name(name): i for name, i in layers.index.items()}
    theta_0 = {plain_name(name): origin.state[name] for name in origin.params}
    if any(isinstance(module, LowRank) for module in model.modules()):
        model = copy.deepcopy(model)
        merge(model)
    params = {name: p for name, p in model.named_parameters() if name in theta_0}
    anchors: dict[Tensor, Tensor] = {p: theta_0[name].to(p.device) for name, p in params.items()}
    parts: dict[int, list[Tensor]] = {i: [] for i in sorted(set(index.values()))}
    for name, p in params.items():
        if name in index:
            parts[index[name]].append(p)
    found = relative_discrepancy(anchors, {-1: list(params.values()), **parts}, None)
    overall = found.pop(-1)
    return {'overall': overall, 'layers': {_label(layers, i): value for i, value in found.items()}, 'added': count}


def _label(layers: LayerTable, i: int) -> str:
    return f'{i} {layers.labels.get(i, "")}'.strip()
