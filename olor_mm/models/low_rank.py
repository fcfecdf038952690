"""W' = W + s B A for one weight: where it is added to what a layer makes, and where to the weight itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ._about import check_about, check_shapes, tell_about

__all__ = ['LowRank', 'LowRankOutput', 'LowRankWeight', 'adapt_output', 'adapt_weight']

#: Name of the part that holds A and B on a layer whose output is added to.
CHILD = 'lora'

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class LowRank(nn.Module):
    """A and B of one weight, of all of its rows or of parts of them, each part with its own pair.

    Args:
        weight: The weight W, of shape (rows, ...); what is behind the rows counts as one dimension d.
        rank: r, in [1, min(rows of a part, d)].
        scale: s in W' = W + s B A.
        parts: Which of the ``of`` equal parts of the rows have a pair; (0, 2) of 3 is q and v of a fused qkv.
            Defaults to (0,).
        of: Number of parts. Defaults to 1.

    Attributes:
        a: A of shape (parts, r, ...), drawn from U(-1/sqrt(d), 1/sqrt(d)), which is kaiming-uniform with a = sqrt(5).
        b: B of shape (parts, rows of a part, r), zeros.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, parts: Sequence[int] = (0,), of: int = 1) -> None:
        super().__init__()
        self.rank, self.scale, self.parts, self.of = rank, scale, tuple(parts), of
        rows, rest = weight.shape[0] // of, weight.shape[1:]
        self.a = nn.Parameter(weight.new_empty(len(self.parts), rank, *rest))
        self.b = nn.Parameter(weight.new_zeros(len(self.parts), rows, rank))
        bound = 1 / math.sqrt(math.prod(rest))
        nn.init.uniform_(self.a, -bound, bound)
        tell_about(self, {'scale': scale, 'parts': list(self.parts), 'of': of})

    def extra_repr(self) -> str:
        return f'rank={self.rank}, scale={self.scale:g}, parts={list(self.parts)} of {self.of}'

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        check_shapes(self, state_dict, prefix, 'LoRA', 'rank, rows and targets')
        check_about(self, args[0], prefix, 'LoRA', 'scale, alpha, rank and rows')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def up(self) -> Tensor:
        """B for all rows of W and all pairs in a row, s left out: shape (rows, parts * r), zeros off the blocks."""
        if self.of == 1:
            return self.b[0]
        width, r = len(self.parts) * self.rank, self.rank
        blocks = {part: functional.pad(self.b[i], (i * r, width - (i + 1) * r)) for i, part in enumerate(self.parts)}
        none = self.b.new_zeros(self.b.shape[1], width)
        return torch.cat([blocks.get(part, none) for part in range(self.of)])

    def delta(self) -> Tensor:
        """S B A in the shape of W."""
        return ((self.up() * self.scale) @ self.a.flatten(0, 1).flatten(1)).unflatten(1, self.a.shape[2:])

    @torch.no_grad()
    def start(self, weight: Tensor | None = None) -> None:
        """Begin anew: B = 0, and where a weight is given A = its first r right singular vectors, part by part.

        A weight that is not finite leaves A as it is. The vectors are computed in float64, and their signs made
        such that the largest element is positive, so that they are the same on every machine but for rounding.
        """
        self.b.zero_()
        if weight is None:
            return
        rows = weight.detach().flatten(1).double().cpu().chunk(self.of)
        for i, part in enumerate(self.parts):
            if rows[part].isfinite().all():
                found = _right_singular_vectors(rows[part], self.rank)
                largest = found.gather(1, found.abs().argmax(1, keepdim=True))
                self.a[i].copy_((found * largest.sign()).unflatten(1, self.a.shape[2:]))


class LowRankOutput(LowRank):
    """Adds s B A x to what a layer makes of x: nothing of the size of W is made, and no gradient of that size.

    Args:
        layer: A Linear or a convolution.
        dropout: Probability that an element of the x that A sees is zero, in training.
        kwargs: As for :class:`LowRank`.
    """

    def __init__(self, layer: nn.Module, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(layer.get_parameter('weight'), **kwargs)
        #: Whether the layer has been used since it was built, but for what is compiled.
        self.ran = False
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.convolution: dict[str, Any] | None = None
        if not isinstance(layer, nn.Linear):
            self.convolution = {key: getattr(layer, key) for key in ('stride', 'padding', 'dilation', 'groups')}

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The output with what is added to it.

        Args:
            x: What the layer was given, (..., d).
            output: What it made, (..., rows).
        """
        if self.dropout is not None:
            x = self.dropout(x)
        if self.convolution is not None:
            return self._convolved(x, output)
        up = self.up()
        down = functional.linear(x, self.a.flatten(0, 1))
        # One kernel, and no sum of the output's size beside it.
        added = torch.addmm(output.reshape(-1, up.shape[0]), down.reshape(-1, up.shape[1]), up.t(), alpha=self.scale)
        return added.view(output.shape)

    def _convolved(self, x: Tensor, output: Tensor) -> Tensor:
        options, up = dict(self.convolution or {}), self.up() * self.scale
        groups = options['groups']
        a = self.a.flatten(0, 1)
        convolve = _CONVOLUTIONS[a.dim() - 2]
        # The rows of W are dealt out to the groups, and so are those of B; A is that of every group.
        down = convolve(x, a.repeat(groups, *[1] * (a.dim() - 1)), **options)
        return output + convolve(down, up.reshape(*up.shape, *[1] * (a.dim() - 2)), groups=groups)


class LowRankWeight(LowRank):
    """W + s B A in place of W, whatever it is used for: a parametrization of torch's.

    The sum is made anew wherever the weight is read, in the dtype of W, and its gradient is of the size of W while B's
    and A's are made of it.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """W + s B A."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.delta().to(weight.dtype)


def _right_singular_vectors(matrix: Tensor, number: int) -> Tensor:
    if matrix.shape[0] < matrix.shape[1]:
        return torch.linalg.svd(matrix, full_matrices=False).Vh[:number]
    # Many times faster than the whole decomposition; what squaring costs of float64 does not reach the first ones.
    return torch.linalg.eigh(matrix.T @ matrix).eigenvectors.T.flip(0)[:number]


def adapt_output(layer: nn.Module, low_rank: LowRankOutput) -> None:
    """Let a layer add to its output: by a part of it, whose absence is allowed, and a hook."""
    layer.add_module(CHILD, low_rank)
    layer.register_forward_hook(_add, with_kwargs=True)


def _add(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
    # A function of the module: a deep copy of it has its own A and B.
    low_rank: Any = layer._modules.get(CHILD)
    if low_rank is None:
        return output
    if not is_compiling():
        low_rank.ran = True
    added: Tensor = low_rank(args[0] if args else next(iter(kwargs.values())), output)
    return added


def is_compiling() -> bool:
    """Whether torch.compile is looking at the call; torch 2.1 and 2.2 do not tell."""
    known = getattr(torch.compiler, 'is_compiling', None)
    return bool(known()) if known is not None else False


def adapt_weight(module: nn.Module, name: str, low_rank: LowRankWeight) -> None:
    """Let a weight be W + s B A wherever it is read; checkpoints have W under its own name as before."""
    if not parametrize.is_parametrized(module):
        module._register_state_dict_hook(_to_plain)
        module._register_load_state_dict_pre_hook(_from_plain, with_module=True)
    parametrize.register_parametrization(module, name, low_rank, unsafe=True)


def _names(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """Name without and with parametrization, of each weight."""
    lists: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return [(f'{prefix}{name}', f'{prefix}parametrizations.{name}.original') for name in lists]


def _to_plain(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for plain, inner in _names(module, prefix):
        if inner in state:
            state[plain] = state.pop(inner)


def _from_plain(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for plain, inner in _names(module, prefix):
        if plain in state:
            state[inner] = state.pop(plain)
