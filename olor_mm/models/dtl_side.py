"""The side network of DTL: what runs beside the frozen blocks of a transformer, and what it adds to their outputs."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._about import check_about, check_shapes, tell_about

__all__ = ['CARRIED', 'Carried', 'Side', 'SideNetwork', 'Stage', 'carried', 'theta']

#: Attribute of the stream's tensors: what the side network carries from block to block. It travels with the data, so
#: that nested and repeated forwards, exceptions and recomputation in the backward pass find what belongs to them.
CARRIED = '_olor_mm_dtl'


class Stage(NamedTuple):
    """Blocks that a stream of one width passes one after the other.

    Attributes:
        first: Index of the first block in the backbone, from 0.
        blocks: The blocks.
        width: Number of channels d.
    """

    first: int
    blocks: Sequence[nn.Module]
    width: int


class Carried(NamedTuple):
    """What goes with the output of a block.

    Attributes:
        after: Index of the block, from 0; one less than that of the first for the input of a stage.
        h: State of the side network, of shape (B, N, d); of several side networks a list. None at a stage's start.
        grid: Height and width of the patch tokens, where they matter.
    """

    after: int
    h: Any
    grid: tuple[int, int] | None


def carried(index: int, x: Tensor, args: Any, first: bool, grid: tuple[int, int] | None) -> Carried:
    """What the block before block ``index`` has sent with its output.

    Args:
        index: From 0.
        x: The block's input.
        args: All that the block is given.
        first: Whether it is the first of its stage.
        grid: That of the patch tokens, where the block is not told.

    Raises:
        RuntimeError: If the input is not the output of the block before.
    """
    found = getattr(x, CARRIED, None)
    if found is not None and found.after == index - 1:
        kept: Carried = found
        return kept
    if not first:
        raise RuntimeError(
            f'DTL: the input of block {index + 1} is not what block {index} returned, so that the side network has '
            'lost its state. torch.utils.checkpoint around whole blocks does so with use_reentrant=True: say '
            "use_reentrant=False, or checkpoint inside of the blocks by the backbone's with_cp=True"
        )
    told = args[1] if len(args) > 1 and isinstance(args[1], (tuple, list)) else grid
    start = Carried(index - 1, None, (int(told[0]), int(told[1])) if told is not None else None)
    if start.grid is not None:
        # For a second run in the backward pass, when images of another size may have come since.
        setattr(x, CARRIED, start)
    return start


class _Theta(torch.autograd.Function):
    """Keeps h alone for the backward pass, where the plain formula keeps its sigmoid too."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.beta = beta
        return h * torch.sigmoid(beta * h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        # beta * h does not fit into half precision; where it is infinite, its product with 0 is no number.
        scaled = ctx.beta * (h.float() if h.dtype in (torch.float16, torch.bfloat16) else h)
        gate = torch.sigmoid(scaled)
        return (grad * (gate + scaled * gate * (1 - gate))).to(h.dtype), None


def theta(h: Tensor, beta: float) -> Tensor:
    """theta(h) = h sigmoid(beta h): with a large beta nearly max(h, 0), and smooth.

    Args:
        h: Any tensor.
        beta: How sharp it is; the paper's is 100.
    """
    if torch.is_grad_enabled() and h.requires_grad:
        kept: Tensor = _Theta.apply(h, beta)
        return kept
    return h * torch.sigmoid(beta * h)


class Side(nn.Module):
    """What one block's input adds to h: x A^T B^T. A is drawn as torch draws a linear layer, B is 0.

    Args:
        width: Number of channels d.
        rank: Of A, of shape (rank, d), and B, of shape (d, rank).
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        # Bare parameters: nobody's loop over linear layers draws them anew.
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        """The new h.

        Args:
            x: Input of the block, of shape (B, N, d).
            h: That of the block before; None for 0.
        """
        # What is kept for A's gradient would keep what x carries too.
        x = x if x.requires_grad else x.detach()
        change = F.linear(F.linear(x, self.down), self.up)
        return change if h is None else h + change


class SharedConv(nn.Module):
    """The depthwise convolution of DTL+: 'same' padding, stride 1, no bias; tokens that are no patches pass unchanged.

    Args:
        width: Number of channels d.
        kernel_size: Of the convolution.
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Of tokens of shape (B, extra + H W, d)."""
        batch, tokens, width = x.shape
        extra = tokens - grid[0] * grid[1]
        patches = x[:, extra:].transpose(1, 2).reshape(batch, width, *grid)
        patches = F.conv2d(patches, self.weight, padding='same', groups=width).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :extra], patches], dim=1) if extra else patches


class SideNetwork(nn.Module):
    """The side network of a backbone: extracts from every block's input, injects after the late ones.

    Args:
        stages: The backbone's blocks.
        rank: Of the extraction.
        start_block: M, number of the first block after which is injected, from 1.
        last: Index of the last block that reaches an output, from 0.
        beta: Of theta.
        kernel_size: Of DTL+'s convolutions, one per stage; 0 for none.
    """

    def __init__(
        self, stages: Sequence[Stage], rank: int, start_block: int, last: int, beta: float, kernel_size: int = 0
    ) -> None:
        super().__init__()
        self.beta = beta
        self.start_block = start_block
        tell_about(self, {'start_block': start_block, 'beta': beta})
        self.sides = nn.ModuleDict()
        self.convs = nn.ModuleDict()
        #: Index of a block to the number of its stage and whether it is the stage's first.
        self.places: dict[int, tuple[int, bool]] = {}
        for number, stage in enumerate(stages):
            reached = min(stage.first + len(stage.blocks) - 1, last)
            # What reaches no injection would be parameters without a gradient.
            if reached < max(start_block - 1, stage.first):
                continue
            for index in range(stage.first, reached + 1):
                self.sides[str(index)] = Side(stage.width, rank)
                self.places[index] = number, index == stage.first
            if kernel_size:
                self.convs[str(number)] = SharedConv(stage.width, kernel_size)
        #: Of the images at work, where the blocks are not told.
        self.grid: tuple[int, int] | None = None
        self.handles: list[Any] = []

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # Before what is inside of it: a loader that is not strict would only warn, and leave B at 0.
        names = {name.removeprefix(prefix) for name in state_dict if name.startswith(f'{prefix}convs.')}
        if state_dict.keys() & {prefix + name for name, _ in self.sides.named_parameters(prefix='sides')}:
            own = {name for name, _ in self.convs.named_parameters(prefix='convs')}
            if names != own:
                raise ValueError(
                    f'the checkpoint is of DTL with {len(names)} convolutions, the model has {len(own)}: set plus and '
                    'start_block of model.method as they were when the checkpoint was saved'
                )
        check_shapes(self, state_dict, prefix, 'DTL', 'rank and kernel_size')
        check_about(self, args[0], prefix, 'DTL', 'start_block and beta')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def follow(self, blocks: Sequence[nn.Module], patch_embed: nn.Module | None = None) -> None:
        """Run beside these blocks from now on.

        Args:
            blocks: All of the backbone's.
            patch_embed: Returns tokens and their grid; for blocks that are not told the grid. Defaults to None.
        """
        self.handles = [blocks[i].register_forward_hook(partial(self.after, i)) for i in self.places]
        if patch_embed is not None and len(self.convs):
            self.handles.append(patch_embed.register_forward_hook(self.see_grid))

    def release(self) -> None:
        """Let the blocks run as if there were no side network."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def see_grid(self, _: nn.Module, args: Any, out: Any) -> None:
        """A hook on the patch embedding."""
        self.grid = (int(out[1][0]), int(out[1][1]))

    def after(self, index: int, block: nn.Module, args: Any, out: Tensor) -> Tensor:
        """A hook on block ``index``: h <- h + x A^T B^T; x <- block(x), and + g(theta(h)) from block M on."""
        x: Tensor = args[0]
        before = carried(index, x, args, self.places[index][1], self.grid)
        h = self.extract(index, x, before.h)
        out = self.inject(index, out, h, before.grid)
        setattr(out, CARRIED, Carried(index, h, before.grid))
        return out

    def extract(self, index: int, x: Tensor, h: Tensor | None) -> Tensor:
        """h after the input of block ``index``."""
        new: Tensor = self.sides[str(index)](x, h)
        return new

    def inject(self, index: int, out: Tensor, h: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """The block's output with what is injected; the output itself before block M."""
        if index < self.start_block - 1:
            return out
        change = theta(h, self.beta)
        if len(self.convs):
            if grid is None or out.shape[1] < grid[0] * grid[1]:
                raise ValueError(
                    f'DTL: plus=True: block {index + 1} has {out.shape[1]} tokens, which are not a grid of patches '
                    f'({grid}): are some masked? Say plus=False'
                )
            change = self.convs[str(self.places[index][0])](change, grid)
        # In the stream's dtype: autocast has made the change in its own.
        return out + change.to(out.dtype)
