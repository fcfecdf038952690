"""LoRA: low-rank changes of frozen weights (Hu 2022), of q and v apart where they are one layer."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils import parametrize

from olor_mm.registry import METHODS

from .low_rank import CHILD, LowRank, LowRankOutput, LowRankWeight, adapt_output, adapt_weight, is_compiling
from .method import Method, check_patterns, child

__all__ = ['LoRA']

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: Where a forward is from that is torch's.
_AS_TORCH = ('torch.', 'mmcv.cnn.bricks.wrappers.')
_LETTERS = 'qkv'
#: Names of A and B in a state dict.
_ADDED = re.compile(rf'\.({CHILD}|parametrizations\.\w+\.0)\.[ab]$')


@METHODS.register_module()
class LoRA(Method):
    """Low-rank adaptation: W' = W + s B A, W frozen, A (r x d) and B trained, and all outside of the part.

    With the defaults these are the q and v rows of every attention, each with an A and a B of its own, also where q, k
    and v are one layer (Hu 2022, section 4.2).

    Args:
        rank: r, above 0. Defaults to 8.
        alpha: s = alpha / r. Defaults to 8.
        targets: Regular expressions, searched in the full names of modules, such as 'backbone.layers.11.attn.proj':
            linear layers, convolutions and ``nn.MultiheadAttention``, which stands for its q, k and v. None takes the
            attention's q, k and v wherever they are one layer. Defaults to None.
        rows: Of a layer that makes q, k and v: which of them are adapted, as letters, each with a pair of its own;
            'all' treats it as one layer. Defaults to 'qv'.
        dropout: Of what A is given, in training. Defaults to 0.
        init: 'kaiming' draws A from a uniform distribution; 'svd' makes it the first r right singular vectors of W,
            when the pre-trained weights are in. B starts at 0 in both. Defaults to 'kaiming'.
        scale: s itself, instead of alpha / r; SLCA++ has 0.8. Defaults to None.
        rollback: Whether a rollback (OLOR) takes B back to 0, which takes W' back to W by the same share. Without it A
            and B are left alone: they have no pre-trained values. Defaults to False.
        part: Path of the pre-trained part; only layers in it are adapted. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in which one is found are trained too. Defaults to ().

    Raises:
        ValueError: If an option cannot be right.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 8,
        targets: str | Sequence[str] | None = None,
        rows: str = 'qv',
        dropout: float = 0.0,
        init: str = 'kaiming',
        scale: float | None = None,
        rollback: bool = False,
        part: str = 'backbone',
        train: str | Sequence[str] = (),
    ) -> None:
        super().__init__(part, train)
        _check(isinstance(rank, int) and not isinstance(rank, bool) and rank > 0, f'{rank=}', 'a whole number above 0')
        _check(_is_number(alpha) and alpha > 0, f'{alpha=}', 'a number above 0')
        _check(_is_number(dropout) and 0 <= dropout < 1, f'{dropout=}', 'in [0, 1)')
        _check(init in ('kaiming', 'svd'), f'{init=}', "'kaiming' or 'svd'")
        _check(scale is None or _is_number(scale), f'{scale=}', 'a number, or None for alpha / rank')
        _check(isinstance(rollback, bool), f'{rollback=}', 'True or False')
        right = isinstance(rows, str) and rows != '' and set(rows) <= set(_LETTERS) and len(set(rows)) == len(rows)
        _check(right or rows == 'all', f'{rows=}', "letters of 'qkv', such as 'qv', or 'all'")
        self.rank, self.dropout, self.init, self.rollback = rank, float(dropout), init, rollback
        self.scale = float(alpha / rank if scale is None else scale)
        self.rows = rows
        self.targets = None if targets is None else check_patterns(targets, f'{self}: targets')
        _check(self.targets != [], f'{targets=}', 'regular expressions, or None for q and v')
        self._checked = False
        #: Path of an adapted module, name of its weight.
        self.adapted: list[tuple[str, str]] = []

    def apply(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        modules = dict(model.named_modules())
        inside = {
            name: module
            for name, module in part.named_modules(prefix=self.part)
            if not isinstance(module, (LowRank, parametrize.ParametrizationList))
        }
        for name in self._find(inside, modules):
            self._adapt(name, modules)
        model.register_forward_hook(self._check_use)
        model._register_load_state_dict_pre_hook(_check_targets, with_module=True)

    def weights_are_in(self, model: nn.Module) -> None:
        for low_rank, weight in pairs(model, self.adapted):
            low_rank.start(weight if self.init == 'svd' else None)

    def pulled_back(self, name: str) -> bool:
        return self.rollback and name in self.added and name.endswith('.b')

    def report(self, model: nn.Module) -> str:
        params = dict(model.named_parameters())
        count = sum(params[name].numel() for name in self.added)
        first = self.adapted[0][0]
        return (
            f'LoRA of rank {self.rank}, scale {self.scale:g}: {len(self.adapted)} weights, {count:,} parameters; the '
            f'first is in {first}: {next(low_rank for low_rank, _ in pairs(model, self.adapted[:1])).extra_repr()}'
        )

    def _check_use(self, model: nn.Module, *_: Any) -> None:
        """After the first forward pass in training, say which layers were not used: what is added to them is lost."""
        low_ranks = [low_rank for low_rank, _ in pairs(model, self.adapted)]
        # Merged there are none.
        if is_compiling() or self._checked or not model.training or len(low_ranks) < len(self.adapted):
            return
        self._checked = True
        idle = [
            path
            for (path, _), low_rank in zip(self.adapted, low_ranks, strict=True)
            if isinstance(low_rank, LowRankOutput) and not low_rank.ran
        ]
        if idle:
            print_log(
                f'LoRA: {len(idle)} of {len(self.adapted)} adapted layers were not called in the first forward pass, '
                f'so LoRA does nothing there: {", ".join(idle[:3])}{", ..." if len(idle) > 3 else ""}. Either they '
                'have no part in training, or others take their weights out of them; targets should leave them out',
                logger='current',
                level=logging.WARNING,
            )

    # ---------------------------------------------------------------- what is adapted

    def _find(self, inside: dict[str, nn.Module], modules: dict[str, nn.Module]) -> list[str]:
        if self.targets is None:
            found = [name for name, module in inside.items() if _thirds(name, module, modules)]
            if not found:
                some = [name for name, module in inside.items() if isinstance(module, nn.Linear)]
                raise ValueError(
                    f'model.method: {self}: {self.part or "the model"!r} has no attention that makes q, k and v in one '
                    f'layer: name the layers with targets; it has {len(some)} linear ones'
                    f'{": " if some else ""}{", ".join(some[:4])}'
                )
            return found
        found = []
        for pattern in self.targets:
            matched = [name for name in inside if name and pattern.search(name)]
            right = [name for name in matched if _weights(inside[name])]
            if not right:
                raise ValueError(f'model.method: {self}: targets={pattern.pattern!r} {_not_found(matched, inside)}')
            found += [name for name in right if name not in found]
        return found

    def _adapt(self, name: str, modules: dict[str, nn.Module]) -> None:
        module = modules[name]
        told = f'model.method: {self}: {name} ({type(module).__name__})'
        weights = _weights(module)
        of = 3 if self.rows != 'all' and len(weights) == 1 and _thirds(name, module, modules) else 1
        parts = tuple(sorted(_LETTERS.index(letter) for letter in self.rows)) if of == 3 else (0,)
        if len(weights) > 1 and self.rows != 'all':
            weights = [weight for weight in weights if weight[0] in self.rows]
        for weight in weights:
            if weight in getattr(module, 'parametrizations', ()) or CHILD in module._modules:
                raise ValueError(f'{told} is adapted already: let the targets of one method alone find it')
            self._check_weight(getattr(module, weight), of, told, modules)
            options: dict[str, Any] = {'rank': self.rank, 'scale': self.scale, 'parts': parts, 'of': of}
            if not by_weight(name, module, modules, self.rank):
                adapt_output(module, LowRankOutput(module, dropout=self.dropout, **options))
                self.added += [f'{name}.{CHILD}.a', f'{name}.{CHILD}.b']
            elif self.dropout:
                raise ValueError(
                    f'{told}: dropout={self.dropout} has no place in a layer whose weight is read by others, or that '
                    'is more than a plain product: give dropout=0, or targets that leave it out'
                )
            else:
                adapt_weight(module, weight, LowRankWeight(getattr(module, weight), **options))
                self.added += [f'{name}.parametrizations.{weight}.0.{letter}' for letter in 'ab']
            self.adapted.append((name, weight))

    def _check_weight(self, weight: Tensor, of: int, told: str, modules: dict[str, nn.Module]) -> None:
        rows, rest = weight.shape[0] // of, weight.shape[1:].numel()
        if self.rank > min(rows, rest):
            raise ValueError(f'{told}: rank={self.rank} is more than its {rows} x {rest} weight has: give less')
        if not weight.is_floating_point():
            raise ValueError(f'{told} has a weight of {weight.dtype}: targets must leave it out')
        holders = [
            f'{name}.{own}'
            for name, other in modules.items()
            for own, param in other.named_parameters(recurse=False)
            if param is weight
        ]
        if len(holders) > 1:
            raise ValueError(f'{told}: {" and ".join(holders)} are one weight: targets must leave them out')


def _check_targets(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse a checkpoint with changes of more weights: a loader that is not strict would only warn, and drop them."""
    # By what was noted when it was built: parameters that are sharded have other names.
    own = {prefix + name for name in model.get_submodule('tuning').added}  # type: ignore[union-attr]
    more = [name for name in state_dict if name.startswith(prefix) and _ADDED.search(name) and name not in own]
    if more:
        raise ValueError(
            f'the checkpoint has LoRA in {len({name.rpartition(".")[0] for name in more})} layers that are not adapted '
            f'in the model, such as {more[0].rpartition(".")[0]}: set targets of model.method as they were when the '
            'checkpoint was saved'
        )


def _check(right: bool, given: str, must: str) -> None:
    if not right:
        raise ValueError(f'model.method: LoRA: {given} must be {must}')


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float('inf')


def pairs(model: nn.Module, adapted: Sequence[tuple[str, str]]) -> Iterator[tuple[LowRank, Tensor]]:
    """A and B of each adapted weight, and W.

    Args:
        model: The model.
        adapted: Path of the module and name of the weight.
    """
    for path, weight in adapted:
        module = model.get_submodule(path)
        if parametrize.is_parametrized(module, weight):
            held: Any = module.parametrizations[weight]  # type: ignore[index]
            yield held[0], held.original
        elif CHILD in module._modules:
            yield module.get_submodule(CHILD), getattr(module, weight)  # type: ignore[misc]


def _weights(module: nn.Module) -> list[str]:
    """Names of the weights of a module that can be adapted."""
    if isinstance(module, nn.MultiheadAttention):
        apart = [f'{letter}_proj_weight' for letter in _LETTERS]
        return ['in_proj_weight'] if module.in_proj_weight is not None else apart
    return ['weight'] if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) else []


def _thirds(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> bool:
    """Whether a module makes q, k and v, one after the other."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    path, _, last = name.rpartition('.')
    if not isinstance(module, nn.Linear) or last != 'qkv' or module.out_features % 3:
        return False
    # Where heads have keys and values of other widths, as in EfficientFormer, q, k and v are dealt out head by head.
    after = getattr(modules[path], 'proj', None)
    return module.out_features == 3 * getattr(after, 'in_features', module.in_features)


def by_weight(name: str, module: nn.Module, modules: dict[str, nn.Module], rank: int) -> bool:
    """Whether the weight itself must be changed, for a hook would do nothing, or another thing, or too much."""
    parent = modules[name.rpartition('.')[0]] if name else module
    if isinstance(module, (nn.MultiheadAttention, *_TRANSPOSED)) or isinstance(parent, nn.MultiheadAttention):
        return True
    # BEiT, Swin v2 and others put the bias together themselves, and take the weight out of the layer for it.
    own_bias = any(isinstance(getattr(parent, f'{letter}_bias', None), nn.Parameter) for letter in _LETTERS)
    if own_bias and re.fullmatch('[qkv]+', name.rpartition('.')[2]):
        return True
    forwards = [cls.__module__ for cls in type(module).__mro__ if 'forward' in vars(cls)]
    if not f'{forwards[0]}.'.startswith(_AS_TORCH):
        return True
    if isinstance(module, nn.Linear):
        return False
    conv: Any = module
    return conv.padding_mode != 'zeros' or (conv.groups > 1 and conv.groups * rank >= conv.out_channels)


def _not_found(matched: list[str], inside: dict[str, nn.Module]) -> str:
    if matched:
        kinds = sorted({type(inside[name]).__name__ for name in matched})
        return (
            f'finds {matched[0]} and no linear layer, convolution or nn.MultiheadAttention, but {", ".join(kinds)}: '
            'name such a layer'
        )
    some = [name for name, module in inside.items() if _weights(module)]
    return f'is found in no module; those that can be adapted have names such as {", ".join(some[:4]) or "none"}'
