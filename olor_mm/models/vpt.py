"""Visual prompt tuning: learnable tokens among those of a frozen ViT (Jia et al., ECCV 2022, arXiv 2203.12119)."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from olor_mm.registry import METHODS

from .method import Method, child

__all__ = ['VPT']

#: Attention to which the tokens are a set: one more needs no place among the others. The classes themselves only, for
#: what derives from them may add relative positions.
_PLAIN = (
    'mmpretrain.models.utils.attention.MultiheadAttention',
    'mmcv.cnn.bricks.transformer.MultiheadAttention',
)
#: Name of the child of a block that holds its prompts.
_CHILD = 'prompt'
#: Where the output of a block keeps what has become of the prompts. There and not in a module, for so they live as long
#: as that output: nothing is left of a pass that failed, passes do not mix, and copies of the model hold no graph.
_CARRIED = '_olor_mm_prompts'


@METHODS.register_module()
class VPT(Method):
    """Visual prompt tuning. The pre-trained ViT is frozen; prompt tokens and all outside of the ViT are trained.

    The prompts stand behind the class token (and the distillation token) and in front of the patch tokens. Nothing but
    the blocks sees them: outputs of blocks, and with them ``out_indices`` and every ``out_type``, keep their shapes.

    They start from U(-v, v) with v = sqrt(6 / (3 h w + d)), (h, w) being the size of a patch and d the width, as in the
    authors' code; the paper calls that Xavier's.

    Args:
        tokens: Number p of prompts. Defaults to 10.
        deep: VPT-Deep: each block has p prompts of its own, and what became of those of the block before is dropped;
            L p d parameters. Otherwise VPT-Shallow: the first block has prompts, which go on through the others; p d
            parameters. Blocks behind the last one of ``out_indices`` get none, for nobody would train them.
            Defaults to True.
        dropout: Probability with which an element of a prompt is zeroed in training. Defaults to 0.0.
        part: Path of the ViT. Defaults to 'backbone'.
        train: Regular expressions; parameters of the ViT in which one is found are trained too. Defaults to ().

    Raises:
        ValueError: If an option cannot be right, or the part is no ViT whose attention treats all tokens alike.

    Example:
        >>> model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='VPT', tokens=10, deep=True))
    """

    def __init__(
        self,
        tokens: int = 10,
        deep: bool = True,
        dropout: float = 0.0,
        part: str = 'backbone',
        train: str | Sequence[str] = (),
    ) -> None:
        super().__init__(part, train)
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise ValueError(
                f'VPT: tokens={tokens!r} must be a number of prompt tokens, 1 at least; for none say '
                "dict(type='Linear')"
            )
        if not isinstance(deep, bool):
            raise ValueError(f'VPT: deep={deep!r} must be True (prompts for every block) or False (for the first)')
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f'VPT: dropout={dropout!r} must be a probability of at least 0 and below 1')
        self.tokens = tokens
        self.deep = deep
        self.dropout = float(dropout)
        self._width = 0

    def apply(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        reason = _why_not(part)
        if reason:
            raise ValueError(
                f'model.method: VPT: {self.part!r} ({type(part).__name__}) {reason}. VPT takes ViTs whose attention '
                'treats all tokens alike: VisionTransformer of mmpretrain or mmseg, DistilledVisionTransformer, DeiT3, '
                "MAEViT, MoCoV3ViT; for this one say dict(type='PaddingPrompt', ...) or dict(type='LoRA', ...)"
            )
        blocks = _blocks_that_are_read(part)
        for i, block in enumerate(blocks):
            carries = not self.deep and i + 1 < len(blocks)
            prompts = Prompts(self.tokens, _num_extra(part), self.dropout, carries)
            if self.deep or i == 0:
                prompts.tokens = self._drawn(part)
                self.added.append(f'{self.part}.layers.{i}.{_CHILD}.tokens'.lstrip('.'))
            prompts.join(block)
        part._register_load_state_dict_pre_hook(_check_loaded, with_module=True)

    def _drawn(self, part: nn.Module) -> nn.Parameter:
        conv: Any = part.get_submodule('patch_embed.projection')
        self._width = conv.out_channels
        bound = math.sqrt(6 / (3 * math.prod(conv.kernel_size) + self._width))
        return nn.Parameter(conv.weight.new_empty(self.tokens, self._width).uniform_(-bound, bound))

    def report(self, model: nn.Module) -> str:
        count = len(self.added) * self.tokens * self._width
        kind, where = ('Deep', f'each of {len(self.added)} blocks') if self.deep else ('Shallow', 'the first block')
        return f'VPT-{kind}: {self.tokens} prompt tokens of width {self._width} in {where}, {count:,} parameters'


class Prompts(nn.Module):
    """Puts prompt tokens among the tokens that a block gets, and takes them off what it gives.

    Args:
        number: Of prompts.
        extra: Number of tokens in front of them: class token, distillation token.
        dropout: Probability that an element is zeroed in training.
        carries: Whether what has become of the prompts goes on to the next block.

    Attributes:
        tokens: The prompts, (number, width); None where they come from the block before.
    """

    tokens: nn.Parameter | None

    def __init__(self, number: int, extra: int, dropout: float, carries: bool) -> None:
        super().__init__()
        self.register_parameter('tokens', None)
        self.dropout = nn.Dropout(dropout)
        self.number = number
        self.extra = extra
        self.carries = carries

    def join(self, block: nn.Module) -> None:
        """Become a part of the block. The hooks are bound methods, which follow a copy of the model."""
        block.add_module(_CHILD, self)
        block.register_forward_pre_hook(self._put_in)
        block.register_forward_hook(self._take_off)

    def _put_in(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        if self.tokens is not None:
            prompts = self.dropout(self.tokens.to(x.dtype).expand(len(x), -1, -1))
        else:
            prompts = getattr(x, _CARRIED, None)
            if prompts is None:
                raise RuntimeError(
                    'VPT: the tokens that a block gets are not the tensor that the block before gave, so the prompts '
                    'are lost; something between the blocks copies it (another hook, checkpointing with '
                    'use_reentrant=True): take that away, or set model.method.deep=True, which carries nothing on'
                )
        return (torch.cat([x[:, : self.extra], prompts, x[:, self.extra :]], dim=1), *others)

    def _take_off(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        end = self.extra + self.number
        kept = torch.cat([out[:, : self.extra], out[:, end:]], dim=1)
        if self.carries:
            setattr(kept, _CARRIED, out[:, self.extra : end])
        return kept

    def extra_repr(self) -> str:
        return f'number={self.number}, extra={self.extra}, own={self.tokens is not None}, carries={self.carries}'


def _why_not(part: nn.Module) -> str:
    """Why a module cannot have prompts; empty if it can."""
    blocks = getattr(part, 'layers', None)
    conv = getattr(getattr(part, 'patch_embed', None), 'projection', None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or not isinstance(conv, nn.Conv2d):
        return "has no list of blocks called 'layers' behind a 'patch_embed'"
    for i, block in enumerate(blocks):
        attention = type(getattr(block, 'attn', None))
        if f'{attention.__module__}.{attention.__qualname__}' not in _PLAIN:
            return (
                f'has {attention.__name__} for attention in layers.{i}, which may give each token a place (relative '
                'positions, rotations, windows) that a prompt does not have'
            )
        takes = [p.name for p in inspect.signature(block.forward).parameters.values() if p.default is p.empty]
        if len(takes) != 1:
            return f'has blocks that take {", ".join(takes)} (layers.{i}), where VPT knows of one tensor of tokens'
        if hasattr(part, 'dtl'):
            return 'has a side network (DTL), whose state would be taken off behind each block: name one of the methods'
        if hasattr(block, _CHILD):
            return f'has a part called {_CHILD!r} in layers.{i} already, as after VPT: it can be there once'
    return ''


def _blocks_that_are_read(part: nn.Module) -> list[nn.Module]:
    """The blocks up to the last one whose output is used."""
    blocks = [*part.get_submodule('layers').children()]
    indices = getattr(part, 'out_indices', None)
    last = max((i % len(blocks) if i < 0 else i for i in indices), default=-1) if indices else -1
    return blocks[: last + 1] if last >= 0 else blocks


def _num_extra(part: nn.Module) -> int:
    """Number of tokens that stand in front of the patch tokens."""
    # mmpretrain counts them; mmseg says whether there is a class token.
    return int(getattr(part, 'num_extra_tokens', getattr(part, 'with_cls_token', 0)))


def _check_loaded(part: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse prompts of other options: a loader that is not strict would only warn, and leave the prompts random."""
    pattern = re.compile(re.escape(prefix) + rf'layers\.(\d+)\.{_CHILD}\.tokens')
    found = {int(match[1]): len(state_dict[key]) for key in state_dict if (match := pattern.fullmatch(key))}
    if not found:
        return
    params = ((pattern.fullmatch(prefix + name), param) for name, param in part.named_parameters())
    own = {int(match[1]): len(param) for match, param in params if match}
    if found.keys() != own.keys():
        kinds = ['VPT-Shallow' if len(keys) == 1 else f'VPT-Deep in {len(keys)} blocks' for keys in (found, own)]
        raise ValueError(
            f'the prompts of the checkpoint are of {kinds[0]}, those of the model of {kinds[1]}: set model.method.deep '
            'and the out_indices of the ViT as they were when the checkpoint was saved'
        )
    wrong = [i for i in own if found[i] != own[i]]
    if wrong:
        raise ValueError(
            f'the checkpoint has {found[wrong[0]]} prompt tokens in a block, the model has {own[wrong[0]]}: set '
            f'model.method.tokens={found[wrong[0]]}, or load weights from before the fine-tuning'
        )
