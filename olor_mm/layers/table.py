"""Which layer is a parameter in: the table that the layer-wise penalty is computed from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ._blocks import Layout, find_layout
from ._depth import apply_depths, check_layer_map, declared_depths, from_layer_map, matched_depths
from ._tree import Node, build_tree
from .names import canonical_name, strip_wrappers

__all__ = ['LayerTable', 'assign_layers']


@dataclass(frozen=True)
class LayerTable:
    """Layer index of every parameter below the roots.

    Attributes:
        index: Canonical parameter name -> layer index i, 0 for the stem and n for the deepest block.
        num_layers: n, the deepest index.
        labels: i -> what the layer is, such as ``'stem'`` or ``'backbone.layers.3'``.
        how: Root -> how it was resolved: ``'layer_map'``, ``'get_layer_depth'``, ``'timm'``, ``'blocks'``,
            ``'order'`` or ``'tensor'``.
    """

    index: dict[str, int]
    num_layers: int
    labels: dict[int, str]
    how: dict[str, str]


@dataclass
class _Part:
    """One root resolved by itself, counted from 0."""

    index: dict[str, int]
    labels: dict[int, str]
    how: str


def assign_layers(
    model: nn.Module,
    roots: Sequence[str] = ('backbone',),
    index: str = 'layer',
    layer_map: Mapping[str, int | None] | None = None,
    skip: Collection[str] = (),
) -> LayerTable:
    """Gives every parameter below the roots the index of its layer, without running the model.

    Args:
        model: The model, bare or wrapped (DDP, FSDP with original parameters, activation checkpointing, compiled).
        roots: Paths of the sub-modules that count, ``''`` for the whole model. Each root's indices go on after those
            of the root before it. Defaults to ``('backbone',)``.
        index: ``'layer'`` counts blocks in forward order, stem 0, as the paper's text has it. ``'tensor'`` counts the
            trainable parameter tensors in the order of ``named_parameters()``, as the authors' code does and their
            Table 6 was tuned with. Defaults to ``'layer'``.
        layer_map: Regular expressions, searched in the canonical name in the order given, with the layer counted
            within the root, or None for parameters that have no layer. A root in which none is found is resolved as
            without a map. Not for ``index='tensor'``. Defaults to None.
        skip: Canonical names of parameters that are not counted and get no layer, such as those that were put into a
            pre-trained model. Defaults to ().

    Returns:
        The table.

    Raises:
        ValueError: If an option has no such value, a root does not exist, holds no (trainable, for ``'tensor'``)
            parameter or lies in another root, or ``layer_map`` fits only a part of a root or nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> assign_layers(model, roots=('',), index='tensor').num_layers
        5
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'model={type(model).__name__} must be a torch.nn.Module: give the model itself')
    if index not in ('layer', 'tensor'):
        raise ValueError(f"index={index!r}: use 'layer' (blocks, the paper's text) or 'tensor' (the authors' code)")
    if layer_map is not None:
        if index == 'tensor':
            raise ValueError(f"index='tensor' and layer_map={dict(layer_map)!r} exclude each other: drop one of them")
        check_layer_map(layer_map)
    tree = build_tree(model, skip)
    nodes = _find_roots(tree, (roots,) if isinstance(roots, str) else tuple(roots))
    if index == 'tensor':
        trainable = {canonical_name(name) for name, param in model.named_parameters() if param.requires_grad}
        order = [canonical_name(name) for name, _ in model.named_parameters()]
        parts = {root: _by_tensor(root, node, order, trainable) for root, node in nodes.items()}
    else:
        parts = {root: _by_layer(node, layer_map or {}) for root, node in nodes.items()}
    if layer_map is not None and all(part.how != 'layer_map' for part in parts.values()):
        raise ValueError(f'layer_map={dict(layer_map)!r}: no pattern is found in any parameter of roots={list(nodes)}')
    return _join(parts)


def _find_roots(tree: Node, roots: tuple[str, ...]) -> dict[str, Node]:
    if not roots:
        raise ValueError("roots=() names nothing: give at least one path, such as 'backbone', or '' for the model")
    nodes: dict[str, Node] = {}
    for root in roots:
        node: Node | None = tree
        known = tree
        for part in strip_wrappers(root).split('.') if root else ():
            known, node = node or known, (node.children.get(part) if node else None)
            if node is None:
                break
        if node is None:
            where = f'{known.path!r}' if known.path else 'the model'
            raise ValueError(
                f'roots: there is no {root!r} with parameters in {type(tree.module).__name__}; {where} has '
                f'{", ".join(known.children) or "no sub-modules with parameters"}'
            )
        if not node.all_params():
            raise ValueError(f'roots: {root!r} ({type(node.module).__name__}) has no parameters; leave it out')
        for other, theirs in nodes.items():
            if set(node.all_params()) & set(theirs.all_params()):
                raise ValueError(f'roots: {other!r} and {root!r} overlap; keep one of them')
        nodes[root] = node
    return nodes


def _by_tensor(root: str, node: Node, order: list[str], trainable: set[str]) -> _Part:
    inside = set(node.all_params()) & trainable
    names = [name for name in order if name in inside]
    if not names:
        raise ValueError(f"index='tensor': {root!r} has no trainable parameter; unfreeze it or drop it from roots")
    return _Part({name: i for i, name in enumerate(names)}, dict(enumerate(names)), 'tensor')


def _by_layer(node: Node, layer_map: Mapping[str, int | None]) -> _Part:
    names = node.all_params()
    mapped = from_layer_map(names, layer_map)
    if mapped is not None:
        return _Part(*mapped, 'layer_map')
    layout = find_layout(node)
    for how, read in (('get_layer_depth', declared_depths), ('timm', matched_depths)):
        depths = read(node)
        found = apply_depths(layout, depths) if depths else None
        if found:
            return _Part(*found, how)
    if layout.blocks:
        return _Part(*_number(layout, first=1), 'blocks')
    chain = find_layout(node, need=1)
    if len(chain.blocks) > 1:
        # A plain chain of convolutions with nothing in front of it has its first layer for a stem.
        has_stem = any(host is None for host in chain.hosts.values())
        return _Part(*_number(chain, first=int(has_stem)), 'blocks')
    return _Part({name: i for i, name in enumerate(names)}, dict(enumerate(names)), 'order')


def _number(layout: Layout, first: int) -> tuple[dict[str, int], dict[int, str]]:
    numbers = {block: number for number, block in enumerate(layout.blocks, first)}
    index = {name: number for block, number in numbers.items() for name in block.params}
    index |= {name: numbers[host] if host else 0 for name, host in layout.hosts.items()}
    labels = {number: block.path for block, number in numbers.items()}
    if first and 0 in index.values():
        labels = {0: 'stem', **labels}
    return index, labels


def _join(parts: dict[str, _Part]) -> LayerTable:
    index: dict[str, int] = {}
    labels: dict[int, str] = {}
    n = -1
    for root, part in parts.items():
        if not part.index:
            continue
        # A later root without a stem starts right after the one before it.
        offset = n + 1 - min(part.index.values()) if index else 0
        index |= {name: i + offset for name, i in part.index.items()}
        for i, label in part.labels.items():
            labels[i + offset] = f'{root}.stem'.lstrip('.') if label == 'stem' and len(parts) > 1 else label
        n = max(index.values())
    if not index:
        raise ValueError('layer_map leaves every parameter out; give at least one pattern a layer')
    return LayerTable(index, n, labels, {root: part.how for root, part in parts.items()})
