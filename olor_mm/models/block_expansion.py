"""Block Expansion: new blocks between the frozen ones of a pre-trained model, which do nothing at the start."""

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from olor_mm.registry import METHODS

from ._stacks import Stack, block_lists, branch_ends, silence, why_not_identity
from .method import Method, child

__all__ = ['BlockExpansion']

#: Buffer of an expanded part, so that its checkpoints say what they are: the numbers of the new blocks, counted from 0
#: over all blocks in forward order.
MARK = 'new_blocks'


@METHODS.register_module()
class BlockExpansion(Method):
    """Copies of blocks that are an identity at the start, each behind the block it was copied from; they are trained.

    The layers that end the residual branches of a copy, of attention and of the MLP, are zero, weights and biases; all
    else of it is the pre-trained block's. ("Parameter Efficient Fine-tuning of Self-supervised ViTs without
    Catastrophic Forgetting", arXiv 2404.17245.) Blocks are numbered anew; checkpoints of the model without new blocks
    are renumbered when they are loaded, and the copies are made of them.

    It takes the ViTs of mmpretrain and mmseg, the Swins of mmpretrain, mmdet and mmseg, and mmpretrain's ConvNeXt.

    Args:
        blocks: Number of new blocks: with L blocks there is one behind every ``L // blocks``-th, a single one behind
            the last but one, as in the paper's tables. Defaults to 3 where ``every`` is not given.
        every: Instead of ``blocks``: there is a new block behind every ``every``-th, counted over all stages.
            Defaults to None.
        part: Path of the pre-trained part. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in which one is found are trained too. Defaults to ().

    Raises:
        ValueError: If the number cannot be had, or it is a model whose blocks would be no identity; later, if a
            checkpoint that was expanded otherwise is loaded.
    """

    renames = True
    pretrained = True

    def __init__(
        self,
        blocks: int | None = None,
        every: int | None = None,
        part: str = 'backbone',
        train: str | Sequence[str] = (),
    ) -> None:
        super().__init__(part, train)
        if blocks is not None and every is not None:
            raise ValueError(f'BlockExpansion: blocks={blocks!r} and every={every!r} say the same: give one of them')
        for option, value in (('blocks', blocks), ('every', every)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f'BlockExpansion: {option}={value!r} must be a whole number, 1 at least')
        self.blocks = 3 if blocks is None and every is None else blocks
        self.every = every
        self._stacks: list[Stack] = []
        #: State of the new blocks' values when an expanded checkpoint was loaded; None if none was.
        self._as_loaded: list[int] | None = None
        self._delivered = False

    def apply(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        if hasattr(part, MARK):
            raise ValueError(f'model.method: {self}: {self.part!r} is expanded already; name the method once')
        lists = block_lists(part)
        self._stacks = self._plan(part, lists)
        for stack, blocks in zip(self._stacks, lists.values(), strict=True):
            for old in sorted(stack.copied, reverse=True):
                blocks.insert(old + 1, copy.deepcopy(blocks[old]).requires_grad_(True))
        _tell_the_part(part, self._stacks)
        part.register_buffer(MARK, torch.tensor(self._places()))
        self._name_added(part)
        self._check_frozen_stages(part)
        _before_loading(part, self._renumber)
        part.register_load_state_dict_post_hook(self._was_loaded)

    def weights_are_in(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        if self._as_loaded is not None and self._as_loaded == self._versions(part):
            # init_cfg has loaded them, trained as they are.
            return
        for stack in self._stacks:
            blocks: Any = part.get_submodule(stack.path)
            for old, ends in stack.copied.items():
                new = blocks[stack.last_place(old)]
                # Not what another method has put into the block since.
                own = {name.removeprefix(f'{self._name(stack, stack.last_place(old))}.') for name in self.added}
                _copy_values(blocks[stack.place(old)], new, own)
                silence(new, ends, own)

    def report(self, model: nn.Module) -> str:
        names = ', '.join(self._name(stack, stack.last_place(old)) for stack in self._stacks for old in stack.copied)
        total = sum(stack.total for stack in self._stacks)
        return f'{len(self._places())} of {total} blocks are new, each a copy of the one before it: {names}'

    # ---------------------------------------------------------------- places

    def _plan(self, part: nn.Module, lists: dict[str, Any]) -> list[Stack]:
        chosen = self._chosen([(path, i) for path, blocks in lists.items() for i in range(len(blocks))], part)
        ends = {(path, i): branch_ends(lists[path][i]) for path, i in chosen}
        tried: set[type] = set()
        for path, i in chosen:
            block = lists[path][i]
            kind, tried_before = type(block), type(block) in tried
            why = 'it is of a kind that is not known' if not ends[path, i] else ''
            why = why or ('' if tried_before else why_not_identity(block, ends[path, i]))
            if why:
                raise ValueError(
                    f'model.method: {self}: {self.part}.{path}.{i} of {self.part!r} ({type(part).__name__}) is a '
                    f'{kind.__name__}, and {why}. {_TAKES}'
                )
            tried.add(kind)
        return [
            Stack(path, len(blocks), {i: ends[path, i] for i in range(len(blocks)) if (path, i) in ends})
            for path, blocks in lists.items()
        ]

    def _chosen(self, blocks: list[tuple[str, int]], part: nn.Module) -> list[tuple[str, int]]:
        """Those that a new block is put behind."""
        of = len(blocks)
        if not of:
            raise ValueError(
                f'model.method: {self}: {self.part!r} ({type(part).__name__}) has no blocks in layers or stages. '
                f'{_TAKES}'
            )
        every = self.every
        if self.blocks is not None:
            every = of - 1 if self.blocks == 1 and of > 2 else max(of // self.blocks, 1)
            if of // every != self.blocks:
                possible = sorted({of // step for step in range(1, of + 1)})
                raise ValueError(
                    f'model.method: {self}: blocks={self.blocks} cannot be evenly put between the {of} blocks of '
                    f'{self.part!r}; possible are {", ".join(map(str, possible))}'
                )
        if every is None or every > of:
            raise ValueError(
                f'model.method: {self}: every={every} leaves no place for a new block between the {of} blocks of '
                f'{self.part!r}; give {of} at most'
            )
        return blocks[every - 1 :: every]

    def _places(self) -> list[int]:
        """The numbers of the new blocks, over all lists."""
        places, before = [], 0
        for stack in self._stacks:
            places += [before + stack.last_place(old) for old in sorted(stack.copied)]
            before += stack.total
        return places

    def _name(self, stack: Stack, number: int) -> str:
        return '.'.join(filter(None, (self.part, stack.path, str(number))))

    def _new_blocks(self, part: nn.Module) -> list[tuple[str, nn.Module]]:
        """Name in the model and module."""
        return [
            (self._name(stack, number), part.get_submodule(f'{stack.path}.{number}'))
            for stack in self._stacks
            for number in sorted(stack.new)
        ]

    def _name_added(self, part: nn.Module) -> None:
        self.added = [f'{name}.{key}' for name, block in self._new_blocks(part) for key in block.state_dict()]
        self.added.append(f'{self.part}.{MARK}' if self.part else MARK)

    def _check_frozen_stages(self, part: nn.Module) -> None:
        # Some freeze their first stages whenever they are set to train.
        part.train(part.training)
        frozen = [
            name for name, block in self._new_blocks(part) if not all(p.requires_grad for p in block.parameters())
        ]
        if frozen:
            raise ValueError(
                f'model.method: {self}: {self.part}.frozen_stages={getattr(part, "frozen_stages", None)!r} freezes the '
                f'new block {frozen[0]}; leave frozen_stages away: all that is not new is frozen anyway'
            )

    # ---------------------------------------------------------------- loading

    def _renumber(self, part: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Before a state dict is loaded: make one of before the expansion one of after it."""
        self._delivered = False
        mark = state_dict.get(prefix + MARK)
        if mark is not None:
            saved = torch.as_tensor(mark).tolist()
            if saved != self._places():
                raise ValueError(
                    f'the checkpoint was expanded with the blocks {saved} new, the model with {self._places()}: give '
                    f'model.method.blocks or model.method.every of the run that it is from'
                )
            self._delivered = True
            return
        present = [(stack, stack.numbers(state_dict, prefix)) for stack in self._stacks if stack.copied]
        found = [(stack, numbers) for stack, numbers in present if numbers]
        if not found:
            return
        if all(0 in numbers and max(numbers) < stack.length for stack, numbers in found):
            for stack, _numbers in found:
                stack.expand(state_dict, prefix)
        elif all(stack.new <= numbers <= set(range(stack.total)) for stack, numbers in found):
            # Expanded, but by other code than this, or the mark was left out with all that was not trained.
            self._delivered = True
        else:
            stack, numbers = next(one for one in found if max(one[1]) >= one[0].length or 0 not in one[1])
            raise ValueError(
                f'the checkpoint has {len(numbers)} blocks in {prefix}{stack.path}, up to number {max(numbers)}: it is '
                f'neither of the model without new blocks, which has {stack.length} there, nor of the one with '
                f'{stack.total}; give the checkpoint that the run started from, or model.method.blocks or '
                'model.method.every of the run that it is from'
            )
        state_dict[prefix + MARK] = torch.tensor(self._places())

    def _was_loaded(self, part: nn.Module, incompatible_keys: Any) -> None:
        if self._delivered:
            self._as_loaded = self._versions(part)
            self._delivered = False

    def _versions(self, part: nn.Module) -> list[int]:
        """Changes with every change of the new blocks' values."""
        return [param._version for _, block in self._new_blocks(part) for param in block.parameters()]


_TAKES = (
    'BlockExpansion takes blocks that add to what goes through them, behind a norm: the ViTs of mmpretrain and mmseg, '
    "the Swins of mmpretrain, mmdet and mmseg, mmpretrain's ConvNeXt; for another model take LoRA, or a subset"
)


def _tell_the_part(part: Any, stacks: Sequence[Stack]) -> None:
    """Where the part itself counts its blocks: what it puts out, and its layers for learning rates by depth."""
    if stacks[0].path == 'layers':
        (stack,) = stacks
        # Behind the copy, so that the last norm comes before the last output, and no copy is left without a gradient.
        shifted = [
            i if i < 0 else stack.last_place(i) if i < stack.length else i + len(stack.copied) for i in part.out_indices
        ]
        part.out_indices = tuple(shifted) if isinstance(part.out_indices, tuple) else shifted
        if getattr(part, 'num_layers', None) == stack.length:
            part.num_layers = stack.total
    elif stacks[0].path.endswith('.blocks') and hasattr(part, 'depths'):
        # Not ConvNeXt's: it tells its sizes apart by them, and its depths go by three blocks each.
        part.depths = [stack.total for stack in stacks]


@torch.no_grad()
def _copy_values(source: nn.Module, target: nn.Module, names: Collection[str]) -> None:
    # Not by load_state_dict, which those who watch what is loaded take for a checkpoint.
    values = source.state_dict()
    for name, value in target.state_dict().items():
        if isinstance(value, Tensor) and name in values and name in names:
            value.copy_(values[name])


def _before_loading(module: nn.Module, hook: Any) -> None:
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        module.register_load_state_dict_pre_hook(hook)
    else:
        module._register_load_state_dict_pre_hook(hook, with_module=True)
