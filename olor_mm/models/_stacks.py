"""Lists of residual blocks of a backbone, and the numbers that their blocks get when copies are put between them."""

import copy
import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Stack', 'block_lists', 'branch_ends', 'silence', 'why_not_identity']

# Where attention ends: mmpretrain's, mmseg's (around torch's own), and that of all Swins.
_ATTENTION = ('attn.proj', 'attn.attn.out_proj', 'attn.w_msa.proj')
_MLP = re.compile(r'ffn\.(layers\.\d+|w3)')
# ConvNeXt's block has one branch for both.
_CONV = 'pointwise_conv2'


@dataclass
class Stack:
    """A list of blocks, some of which are followed by a copy.

    Attributes:
        path: Of the list, in the part.
        length: Number of its blocks without the copies.
        copied: Block that has a copy, by its number without the copies -> paths in it of the layers that are to be
            zero in the copy.
    """

    path: str
    length: int
    copied: dict[int, tuple[str, ...]]

    @property
    def total(self) -> int:
        """Number of blocks with the copies."""
        return self.length + len(self.copied)

    def place(self, old: int) -> int:
        """The number of a block with the copies; its own copy, if it has one, is the next."""
        return old + sum(each < old for each in self.copied)

    def last_place(self, old: int) -> int:
        """The same, of its copy if it has one."""
        return self.place(old) + (old in self.copied)

    @property
    def new(self) -> set[int]:
        """The numbers of the copies."""
        return set(map(self.last_place, self.copied))

    def numbers(self, names: Collection[str], prefix: str) -> set[int]:
        """The numbers of the blocks that have entries in a state dict."""
        start = f'{prefix}{self.path}.'
        found = (name[len(start) :].partition('.')[0] for name in names if name.startswith(start))
        return {int(number) for number in found if number.isdigit()}

    def expand(self, state: dict[str, Any], prefix: str) -> None:
        """Give the blocks of a state dict their new numbers, and put the copies in."""
        start = f'{prefix}{self.path}.'
        own = {name: state.pop(name) for name in list(state) if name.startswith(start)}
        for name, value in own.items():
            number, _, rest = name[len(start) :].partition('.')
            if not number.isdigit():
                state[name] = value
                continue
            old = int(number)
            state[f'{start}{self.place(old)}.{rest}'] = value
            if old in self.copied and isinstance(value, Tensor):
                zero = rest.rpartition('.')[0] in self.copied[old]
                state[f'{start}{self.last_place(old)}.{rest}'] = torch.zeros_like(value) if zero else value.clone()


def block_lists(part: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Path -> list of blocks, in forward order: a ViT's ``layers``, or the blocks in a Swin's or ConvNeXt's ``stages``.

    Empty if the part is laid out otherwise.
    """
    layers, stages = getattr(part, 'layers', None), getattr(part, 'stages', None)
    if isinstance(layers, nn.ModuleList) and hasattr(part, 'out_indices'):
        return {'layers': layers}
    found: dict[str, nn.ModuleList | nn.Sequential] = {}
    for number, stage in enumerate(stages if isinstance(stages, nn.ModuleList) else ()):
        blocks = getattr(stage, 'blocks', None)
        if isinstance(stage, nn.Sequential):
            found[f'stages.{number}'] = stage
        elif isinstance(blocks, (nn.ModuleList, nn.Sequential)):
            found[f'stages.{number}.blocks'] = blocks
        else:
            return {}
    return found


def branch_ends(block: nn.Module) -> tuple[str, ...]:
    """Paths of the layers at the ends of a block's residual branches; empty for a kind of block that is not known."""
    modules = dict(block.named_modules())
    if _CONV in modules:
        return (_CONV,)
    attention = [path for path in _ATTENTION if path in modules]
    mlp = [path for path, module in modules.items() if _MLP.fullmatch(path) and isinstance(module, nn.Linear)]
    return (attention[0], mlp[-1]) if attention and mlp else ()


@torch.no_grad()
def silence(block: nn.Module, ends: Collection[str], names: Collection[str] | None = None) -> None:
    """Set the weights and biases of these layers to zero; with names, those in the state of the block alone."""
    for name, value in block.state_dict().items():
        if (names is None or name in names) and any(name.startswith(f'{path}.') for path in ends):
            value.zero_()


@torch.no_grad()
def why_not_identity(block: nn.Module, ends: Collection[str]) -> str:
    """Why a block whose branches end in zeros would not be an identity, whatever its other weights; '' if it is one.

    It is tried: a norm behind the branch, as Swin V2 has it, brings its own bias in again.
    """
    if any(param.is_meta for param in block.parameters()):
        return ''
    trial = copy.deepcopy(block).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    for param in trial.parameters():
        param.copy_(torch.randn(param.shape, generator=generator))
    silence(trial, ends)
    inputs = _inputs(trial, ends, generator)
    needed = [p for p in inspect.signature(trial.forward).parameters.values() if p.default is p.empty]
    if len(needed) > len(inputs):
        return f'it needs {needed[-1].name!r} beside its input'
    try:
        out = trial(*inputs)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        return f'it does not run by itself: {error}'
    same = isinstance(out, Tensor) and torch.equal(out, inputs[0])
    return '' if same else f'with zeros in {" and ".join(ends)} it still changes what goes through it'


def _inputs(block: nn.Module, ends: Collection[str], generator: torch.Generator) -> list[Any]:
    first = next(iter(ends))
    width = next(block.get_submodule(first).parameters()).shape[0]
    if first == _CONV:
        return [torch.randn(1, width, 8, 8, generator=generator)]
    if first != 'attn.w_msa.proj':
        return [torch.randn(1, 5, width, generator=generator)]
    window: Any = block.get_submodule('attn.w_msa').window_size
    sides = tuple(2 * side for side in (window if isinstance(window, (tuple, list)) else (window, window)))
    return [torch.randn(1, sides[0] * sides[1], width, generator=generator), sides]
