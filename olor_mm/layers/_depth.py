"""Layer numbers that a backbone or its user declares, and when they can be believed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from ._blocks import Block, Layout
from ._tree import Node

# What third-party functions raise for a parameter or an architecture that they do not know.
_FAILURES = (NotImplementedError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
# timm's mark for "same group as the one before".
_JOIN_PREVIOUS = 99999

Depths = dict[str, float]


def from_layer_map(
    names: list[str], layer_map: Mapping[str, int | None]
) -> tuple[dict[str, int], dict[int, str]] | None:
    """Index and labels by the first pattern that is found in the canonical name (``re.search``).

    Returns:
        None if no pattern is found in any name.

    Raises:
        ValueError: If some names match and others do not.
    """
    index: dict[str, int] = {}
    labels: dict[int, str] = {}
    left = []
    found = False
    for name in names:
        pattern = next((pattern for pattern in layer_map if re.search(pattern, name)), None)
        if pattern is None:
            left.append(name)
            continue
        found = True
        if (layer := layer_map[pattern]) is not None:
            index[name] = layer
            labels.setdefault(layer, pattern)
    if found and left:
        shown = ', '.join(left[:5]) + (', ...' if len(left) > 5 else '')
        raise ValueError(
            f'layer_map={dict(layer_map)!r} has no pattern for {len(left)} of {len(names)} parameters: {shown}; '
            "add patterns, or end the map with '' : None to leave the rest out"
        )
    if index and max(index.values()) > 10 * len(names):
        raise ValueError(
            f'layer_map: the layer {max(index.values())} is far more than the {len(names)} parameters there can make; '
            'count layers from 0'
        )
    return (index, labels) if found else None


def check_layer_map(layer_map: Mapping[str, int | None]) -> None:
    """Raises:
    ValueError: If a pattern is no regular expression or a layer neither None nor an integer of at least 0.
    """
    for pattern, layer in layer_map.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f'layer_map: {pattern!r} is not a regular expression ({error})') from error
        if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool) or layer < 0):
            raise ValueError(
                f'layer_map: the layer of {pattern!r} is {layer!r}; give an integer from 0 on, or None to leave out'
            )


def declared_depths(root: Node) -> Depths | None:
    """Depths by mmpretrain's ``get_layer_depth``; None if the backbone has none or it fails.

    The last depth stands for "what comes after" in that interface, and is where everything unknown to the function
    ends up too, so it is returned as infinite.
    """
    function = getattr(root.module, 'get_layer_depth', None)
    if not callable(function):
        return None
    depths: Depths = {}
    start = len(root.path) + 1 if root.path else 0
    try:
        for name in root.all_params():
            # Some implementations know no other prefix than this, wherever the backbone really is.
            depth, total = function(f'backbone.{name[start:]}', 'backbone.')
            depths[name] = float('inf') if depth >= total - 1 else float(depth)
    except _FAILURES:
        return None
    return depths


def matched_depths(root: Node) -> Depths | None:
    """Depths by timm's ``group_matcher``; None if nothing that holds all parameters of the root has one."""
    node = root
    while not callable(getattr(node.module, 'group_matcher', None)):
        if node.params or len(node.children) != 1:
            return None
        node = next(iter(node.children.values()))
    start = len(node.path) + 1 if node.path else 0
    try:
        matcher = node.module.group_matcher(coarse=False)  # type: ignore[operator]
        key_of = matcher if callable(matcher) else _compile(matcher)
        keys = {name: _as_key(key_of(name[start:])) for name in node.all_params()}
        ordered = sorted(set(keys.values()))
    except _FAILURES:
        return None
    ranks: dict[tuple[float, ...], float] = {}
    rank = -1.0
    for key in ordered:
        rank += not (ranks and key[-1] == _JOIN_PREVIOUS)
        ranks[key] = float('inf') if key == (float('inf'),) else rank
    return {name: ranks[key] for name, key in keys.items()}


def _as_key(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _compile(matcher: Mapping[str, Any]) -> Callable[[str], tuple[float, ...]]:
    """The function of a name that a dict of timm's stands for: the place of the rule, its numbers, its suffix."""
    rules = []
    for place, rule in enumerate(matcher.values()):
        entries = [] if rule is None else [(rule, None)] if isinstance(rule, str) else rule
        rules += [(place, re.compile(pattern), tuple(suffix or ())) for pattern, suffix in entries]

    def key_of(name: str) -> tuple[float, ...]:
        for place, pattern, suffix in rules:
            if match := pattern.match(name):
                return (float(place), *(float(group) for group in match.groups() if group is not None), *suffix)
        return (float('inf'),)

    return key_of


def apply_depths(layout: Layout, depths: Depths) -> tuple[dict[str, int], dict[int, str]] | None:
    """Index and labels by declared depths; None where they are not sane.

    They are sane with more than two depths, one depth for the whole of every block, a higher one for each next block
    of a list, and lists that do not overlap. So a function that gives several blocks one depth, as some do for
    learning rate decay, is not used: the paper counts blocks. What has an infinite depth goes where the layout puts it.
    """
    if len(set(depths.values())) < 3:
        return None
    if not layout.blocks:
        return _dense(depths)
    of_block: dict[Block, float] = {}
    for block in layout.blocks:
        found = {depths[name] for name in block.params}
        if len(found) > 1 or float('inf') in found:
            return None
        of_block[block] = found.pop()
    series: dict[str, list[float]] = {}
    for block, depth in of_block.items():
        series.setdefault(block.series, []).append(depth)
    ordered = [depth for depths in sorted(series.values()) for depth in depths]
    if any(after <= before for before, after in pairwise(ordered)):
        return None
    levels = sorted(set(of_block.values()))
    numbers = {block: levels.index(depth) + 1 for block, depth in of_block.items()}
    index = {name: number for block, number in numbers.items() for name in block.params}
    for name, host in layout.hosts.items():
        if depths[name] <= levels[-1]:
            index[name] = sum(level <= depths[name] for level in levels)
        else:
            index[name] = numbers[host] if host else 0
    labels = {0: 'stem'} if 0 in index.values() else {}
    for block, number in numbers.items():
        labels.setdefault(number, block.path)
    return index, labels


def _dense(depths: Depths) -> tuple[dict[str, int], dict[int, str]]:
    """Depths without a layout to hold them against: numbered without gaps, the infinite with the deepest."""
    levels = sorted(set(depths.values()) - {float('inf')})
    index = {name: levels.index(min(depth, levels[-1])) for name, depth in depths.items()}
    return index, {number: f'depth {number}' if number else 'stem' for number in sorted(set(index.values()))}
