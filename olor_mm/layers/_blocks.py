"""Finds the repeated blocks of a backbone and their order, from its module tree alone.

Three kinds of things are told apart. A *block* is an entry of a list of modules and holds at least two linear or
convolutional layers: a residual block, a transformer layer. A *stage* is an entry that holds such a list itself.
Everything else (patch embeddings, down-sampling, norms, tokens) is *loose* and goes with a block, or with the stem.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from ._tree import Node

# Lists whose entries run beside each other, or inside one block.
_PARALLEL = re.compile(r'branch(es)?|experts?|fuse(_layers)?|attentions?|attns?|ffns?|heads?|(cls|reg)_branches')
# Runs before the blocks wherever it was registered: tokens, embeddings, CLIP's norm, BEiT's shared bias.
_STEM = re.compile(
    r'(\w+_)?stem|patch_embed(ding)?s?|pos(ition)?_embed\w*|\w*tokens?|tokens_to_token|rel_pos\w*'
    r'|pre_?(norm|ln|layer_?norm|layrnorm)|(norm|ln)_pre'
)
# May stand beside the blocks of a stage without being a block.
_BESIDE = re.compile(r'.*(down|merg|reduc|norm|embed|pool|transition|pos|proj).*|(bn|ln|gn)')
_NUMBERED = re.compile(r'(.*?)[_.-]?(\d+)')


@dataclass(eq=False)
class Block:
    """One layer of the paper's count; ``series`` names the list that it is an entry of."""

    path: str
    params: list[str]
    series: str


@dataclass(eq=False)
class Loose:
    """Parameters outside the blocks; ``host`` is the block they go with, where their place in a stage tells it."""

    params: list[str]
    is_norm: bool = False
    host: Block | None = None


Item: TypeAlias = Block | Loose


@dataclass
class Layout:
    """Blocks in forward order; ``hosts`` maps every other parameter to its block, or to None for the stem."""

    blocks: list[Block]
    hosts: dict[str, Block | None]


@dataclass
class Series:
    """Numbered modules: the children of a ModuleList or Sequential, or siblings such as layer1, layer2.

    ``rank`` is the place of the first one among its siblings' registrations.
    """

    path: str
    rank: int
    is_container: bool
    entries: dict[int, Node] = field(default_factory=dict)


@dataclass
class Pairing:
    """What goes with each entry of a series: ConvNeXt's down-sampling before, Swin's norms after it.

    ``within`` runs behind the entry's first block: the position encodings of Twins.
    """

    before: dict[int, list[Node]] = field(default_factory=dict)
    within: dict[int, list[Node]] = field(default_factory=dict)
    after: dict[int, list[Node]] = field(default_factory=dict)


def find_layout(root: Node, need: int = 2) -> Layout:
    """Blocks below ``root`` in forward order, and where everything else goes.

    Args:
        root: Node of the backbone.
        need: Number of linear or convolutional layers that make an entry a block; 1 also takes plain chains of
            convolutions such as VGG's. Defaults to 2.

    Returns:
        The layout; it has no blocks if there is no list of them.
    """
    return _settle(_Finder(need).network(root))


def _settle(items: list[Item]) -> Layout:
    layout = Layout([item for item in items if isinstance(item, Block)], {})
    passed = 0
    for item in items:
        if isinstance(item, Block):
            passed += 1
            continue
        # What runs before the first block is the stem, even where it stands inside the first stage.
        host = None
        if passed:
            follows = item.is_norm or passed == len(layout.blocks)
            host = item.host or layout.blocks[passed - 1 if follows else passed]
        layout.hosts.update(dict.fromkeys(item.params, host))
    return layout


def _loose(nodes: Iterable[Node]) -> list[Item]:
    return [Loose(node.all_params(), node.is_norm) for node in nodes]


def _bind(items: list[Item]) -> list[Item]:
    """Ties the loose items of one stage to its blocks: those in front to the first, the others to the one before."""
    host = next((item for item in items if isinstance(item, Block)), None)
    for item in items:
        if isinstance(item, Block):
            host = item
        else:
            item.host = item.host or host
    return items


def _numbered(node: Node) -> dict[int, Node]:
    """Children by number if all of them have one and the same name but for it; empty otherwise."""
    matches = [_NUMBERED.fullmatch(name) for name in node.children]
    stems = {match[1] if match else None for match in matches}
    if len(stems) != 1 or _PARALLEL.fullmatch(stems.pop() or ''):
        return {}
    return {int(match[2]): child for match, child in zip(matches, node.children.values(), strict=True) if match}


def _feeds(child: Node, blocks: Node) -> bool:
    """Whether a module that changes the width gives the width that the blocks take: then it runs before them."""
    first = next(iter(_numbered(blocks).values()))
    ends, width = child.widths(), first.widths()
    return ends is not None and width is not None and ends[0] != ends[1] and ends[1] == width[0]


class _Finder:
    """The rules; ``need`` as for `find_layout`."""

    def __init__(self, need: int) -> None:
        self.need = need

    def network(self, node: Node) -> list[Item]:
        """Items of a module that is no entry of a list: the backbone itself, or a part or wrapper of it."""
        front: list[Item] = [Loose(node.params)] if node.params else []
        body: list[Item] = []
        if self.is_list(node):
            return front + self.entries(_numbered(node), node.path)
        mains, pairings, paired = self.pair(node)
        todo = {path: sorted(main.entries) for path, main in mains.items()}
        member = {entry.path: path for path, main in mains.items() for entry in main.entries.values()}
        for name, child in node.children.items():
            if child.path in mains and mains[child.path].is_container:
                for number in todo[child.path]:
                    body += self.row(mains[child.path], number, pairings[child.path])
            elif child.path in member:
                path = member[child.path]
                body += self.row(mains[path], todo[path].pop(0), pairings[path])
            elif _STEM.fullmatch(name) and child.path not in paired:
                front.append(Loose(child.all_params()))
            elif child.path not in paired:
                body += self.network(child) if self.reaches_blocks(child) else _loose([child])
        return front + body

    def row(self, main: Series, number: int, pairing: Pairing) -> list[Item]:
        """Items of one entry of a series together with what is paired with it."""
        before, within, after = (
            _loose(side.get(number, [])) for side in (pairing.before, pairing.within, pairing.after)
        )
        items = self.entry(main.entries[number], main.path, self.any_stage(main.entries))
        if not before + within + after:
            return items
        first = next((place for place, item in enumerate(items, 1) if isinstance(item, Block)), len(items))
        inside = _bind(items[:first] + within)
        return _bind(before + inside + items[first:] + after)

    def entries(self, entries: dict[int, Node], series: str) -> list[Item]:
        among_stages = self.any_stage(entries)
        return [item for entry in entries.values() for item in self.entry(entry, series, among_stages)]

    def entry(self, entry: Node, series: str, among_stages: bool) -> list[Item]:
        """Items of one entry of a list: a stage, a block, or neither."""
        if self.is_list(entry):
            items = self.entries(_numbered(entry), entry.path)
        elif inner := self.inner_list(entry):
            items = self.stage(entry, inner)
        elif among_stages and self.is_plain_stage(entry):
            items = [Block(child.path, child.all_params(), entry.path) for child in _numbered(entry).values()]
        elif entry.weights >= self.need:
            return [Block(entry.path, entry.all_params(), series)]
        else:
            return _loose([entry])
        return _bind([Loose(entry.params), *items] if entry.params else items)

    def stage(self, stage: Node, inner: Node) -> list[Item]:
        """Items of a stage whose blocks are in ``inner``; a late-registered down-sampling may run first."""
        items: list[Item] = []
        early: list[Item] = []
        for child in stage.children.values():
            if child is inner:
                items += self.entries(_numbered(inner), inner.path)
            elif items and _feeds(child, inner):
                early += _loose([child])
            else:
                items += _loose([child])
        return early + items

    def is_list(self, node: Node) -> bool:
        """Whether it has nothing but numbered children, at least one of them a block or stage."""
        blocks = any(entry.weights >= self.need for entry in _numbered(node).values())
        return blocks and not _PARALLEL.fullmatch(node.name)

    def any_stage(self, entries: dict[int, Node]) -> bool:
        return any(self.is_list(entry) or self.inner_list(entry) for entry in entries.values())

    @staticmethod
    def is_plain_stage(entry: Node) -> bool:
        """Whether it holds blocks of one convolution each, as the first stage of EfficientNetV2 does."""
        children = _numbered(entry).values()
        alike = len({type(child.module) for child in children}) == 1
        return len(children) > 1 and alike and all(child.weights == 1 and child.children for child in children)

    def inner_list(self, entry: Node) -> Node | None:
        """The list of blocks of a stage such as Swin's; None where more than down-sampling and norms is beside it."""
        lists = [child for child in entry.children.values() if self.is_list(child)]
        beside = all(child in lists or _BESIDE.fullmatch(name.lower()) for name, child in entry.children.items())
        return lists[0] if len(lists) == 1 and beside else None

    def series(self, node: Node) -> list[Series]:
        """The lists among the children of ``node`` and the rows of numbered siblings, in registration order."""
        found: dict[str, Series] = {}
        for rank, (name, child) in enumerate(node.children.items()):
            if _PARALLEL.fullmatch(name) or (_STEM.fullmatch(name) and not _numbered(child)):
                continue
            if entries := _numbered(child):
                found[child.path] = Series(child.path, rank, True, entries)
            if (match := _NUMBERED.fullmatch(name)) and match[1]:
                path = f'{node.path}.{match[1]}#'
                found.setdefault(path, Series(path, rank, False)).entries[int(match[2])] = child
        return list(found.values())

    def is_main(self, series: Series) -> bool:
        """Whether it is a series of blocks or stages rather than of down-samplings, norms or single convolutions."""
        blocks = [entry for entry in series.entries.values() if entry.weights >= self.need]
        name = self.name_of(series)
        # Two numbered siblings may be anything; three are a pattern.
        enough = len(blocks) >= (1 if series.is_container else 3)
        return enough and not _BESIDE.fullmatch(name) and not _STEM.fullmatch(name)

    @staticmethod
    def name_of(series: Series) -> str:
        return series.path.rpartition('.')[2].rstrip('#').lower()

    def pair(self, node: Node) -> tuple[dict[str, Series], dict[str, Pairing], set[str]]:
        """The series of blocks below ``node`` by path, what goes with their entries, and the paths so placed."""
        series = self.series(node)
        mains = {each.path: each for each in series if self.is_main(each)}
        rows = {entry.path for each in mains.values() if not each.is_container for entry in each.entries.values()}
        mains = {path: each for path, each in mains.items() if path not in rows}
        pairings = {path: Pairing() for path in mains}
        paired: set[str] = set()
        for each in series:
            if each.path in mains or each.path in rows:
                continue
            main = next((main for main in mains.values() if self.belongs(each, main)), None)
            if main is None:
                continue
            pairing = pairings[main.path]
            fewer = len(each.entries) < len(main.entries)
            side = pairing.before if each.rank < main.rank and not fewer else pairing.after
            if side is pairing.after and 'pos' in self.name_of(each):
                side = pairing.within
            for number, entry in each.entries.items():
                side.setdefault(number, []).append(entry)
            paired |= {each.path, *(entry.path for entry in each.entries.values())}
        return mains, pairings, paired

    def belongs(self, each: Series, main: Series) -> bool:
        """Whether the entries of ``each`` run with the entries of the same number of ``main``."""
        same = each.entries.keys() == main.entries.keys() and len(each.entries) > 1
        if self.name_of(each).endswith('stem'):
            return False
        if all(entry.is_norm for entry in each.entries.values()):
            some = each.entries.keys() <= main.entries.keys() and self.any_stage(main.entries)
            return each.rank > main.rank and (same or some)
        beside = bool(_BESIDE.fullmatch(self.name_of(each)))
        # One less than there are stages: each runs between two of them.
        between = each.entries.keys() == main.entries.keys() - {max(main.entries)} and self.any_stage(main.entries)
        return (same and (each.is_container or beside)) or (between and beside)

    def reaches_blocks(self, node: Node) -> bool:
        """Whether there are blocks anywhere below a module that is no entry of a list."""
        if _PARALLEL.fullmatch(node.name) or _STEM.fullmatch(node.name):
            return False
        if self.is_list(node) or any(self.is_main(each) for each in self.series(node)):
            return True
        return any(self.reaches_blocks(child) for child in node.children.values())
