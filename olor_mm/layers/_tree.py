"""The model as a tree of canonical names: what the rules for finding layers look at."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.parameter import is_lazy

from .names import canonical_name, strip_wrappers

_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
)
_NORM_NAME = re.compile(r'.*norm.*|(bn|ln|gn)_?\d*')


@dataclass
class Node:
    """A module that holds parameters, under its canonical path."""

    path: str
    module: nn.Module
    params: list[str] = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)
    weights: int = 0
    """Linear and convolutional layers in the subtree."""

    @property
    def name(self) -> str:
        return self.path.rpartition('.')[2]

    @property
    def is_norm(self) -> bool:
        named = 'norm' in type(self.module).__name__.lower() or _NORM_NAME.fullmatch(self.name.lower())
        return self.weights == 0 and bool(named)

    def walk(self) -> Iterator[Node]:
        """The node and everything below it, in registration order."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def all_params(self) -> list[str]:
        return [name for node in self.walk() for name in node.params]

    def widths(self) -> tuple[int, int] | None:
        """Channels into the first and out of the last linear or convolutional layer, where they can be told."""
        ends = []
        for node in self.walk():
            module = node.module
            width_in = getattr(module, 'in_features', getattr(module, 'in_channels', None))
            width_out = getattr(module, 'out_features', getattr(module, 'out_channels', None))
            if not node.children and isinstance(width_in, int) and isinstance(width_out, int):
                ends.append((width_in, width_out))
        return (ends[0][0], ends[-1][1]) if ends else None


def build_tree(model: nn.Module, skip: Collection[str] = ()) -> Node:
    """Tree of the sub-modules that hold parameters; a shared parameter is where ``named_parameters()`` has it.

    Args:
        model: The model.
        skip: Canonical names of parameters that are left out. Defaults to ().

    Raises:
        ValueError: If two parameters get the same canonical name, or one is of a lazy module and has no shape yet.
    """
    # A wrapper and what it wraps have one canonical path; the wrapped module comes later and is the one to keep.
    modules = {strip_wrappers(path): module for path, module in model.named_modules()}
    # FSDP flattens its shards, so the kind of a module says more than the shape of its tensors.
    nodes = {path: Node(path, module, weights=int(isinstance(module, _WEIGHTED))) for path, module in modules.items()}
    seen: set[str] = set()
    for name, parameter in model.named_parameters():
        name = canonical_name(name)
        if name in skip:
            continue
        if name in seen:
            raise ValueError(f'two parameters have the canonical name {name!r}: rename the sub-module called "module"')
        if is_lazy(parameter):
            raise ValueError(f'{name} has no shape yet (a lazy module): run one batch through the model first')
        seen.add(name)
        path, _, leaf = name.rpartition('.')
        nodes[path].params.append(name)
        if leaf in ('weight', 'in_proj_weight') and parameter.dim() > 1:
            nodes[path].weights = 1
    # Parents are registered before their children, so reversed order meets every child before its parent.
    for path, node in reversed(list(nodes.items())):
        if path and (node.params or node.children):
            parent, _, leaf = path.rpartition('.')
            nodes[parent].weights += node.weights
            nodes[parent].children[leaf] = node
    for node in nodes.values():
        node.children = dict(reversed(list(node.children.items())))
    return nodes['']
