"""DTL and DTL+: a small network beside a frozen transformer, whose late blocks alone need a backward pass."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from olor_mm.registry import METHODS

from .dtl_side import SideNetwork, Stage
from .method import Method, child

__all__ = ['DTL']

#: The child of a backbone that holds its side network.
CHILD = 'dtl'


@METHODS.register_module()
class DTL(Method):
    """Disentangled Transfer Learning (Fu 2024, "DTL: Disentangled Transfer Learning for Visual Recognition").

    A state h, 0 at the start of the backbone and of every stage, goes beside the frozen blocks. For each block i:
    h <- h + x A_i^T B_i^T; x <- block_i(x); from block M on x <- x + g(theta(h)) with theta(h) = h sigmoid(beta h). g
    is the identity; for DTL+ one depthwise convolution over the patch tokens, shared by the blocks of a stage. B is 0
    at the start, so that the model computes what it did before.

    The blocks in front of M + 1 need no backward pass and keep no activations; at inference they are the same for all
    tasks of one backbone (:class:`DTLGroup`).

    Args:
        rank: Of A_i and B_i, the paper's r: 2 for ViT-B, 4 for Swin-B. Defaults to 2.
        start_block: The paper's M: number of the first block after which is injected, from 1 on through all stages: 7
            of 12 for ViT-B, 15 of 24 for Swin-B. The later, the less memory. Defaults to 7.
        plus: Whether it is DTL+. Defaults to False.
        kernel_size: Of DTL+'s convolution, the paper's are 3 to 5. Defaults to 3.
        beta: How sharp theta is. Defaults to 100.
        part: Path of the pre-trained part, a ViT or Swin. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in which one is found are trained too, at the memory that
            their backward pass takes. Defaults to ().

    Raises:
        ValueError: If an option cannot be right; the message names it, its value and the remedy.

    Example:
        >>> model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='DTL', rank=2, start_block=7))
    """

    def __init__(
        self,
        rank: int = 2,
        start_block: int = 7,
        plus: bool = False,
        kernel_size: int = 3,
        beta: float = 100.0,
        part: str = 'backbone',
        train: str | Sequence[str] = (),
    ) -> None:
        self.plus = plus
        super().__init__(part, train)
        self.rank = _number('rank', rank, "the rank of the blocks' side layers, 1 at least")
        self.start_block = _number('start_block', start_block, 'the number of a block, from 1')
        if not isinstance(plus, bool):
            raise ValueError(f'model.method: DTL: plus={plus!r} must be True, for DTL+, or False')
        _number('kernel_size', kernel_size, "the size of DTL+'s convolution, 1 at least; the paper's are 3 to 5")
        if kernel_size != 3 and not plus:
            raise ValueError(
                f'model.method: DTL: kernel_size={kernel_size!r} does nothing without the convolution: say plus=True'
            )
        if not isinstance(beta, (int, float)) or isinstance(beta, bool) or not 0 < beta < float('inf'):
            raise ValueError(f"model.method: DTL: beta={beta!r} must be a number above 0; the paper's is 100")
        self.kernel_size = kernel_size
        self.beta = float(beta)

    def __str__(self) -> str:
        return 'DTL+' if self.plus else 'DTL'

    def apply(self, model: nn.Module) -> None:
        backbone = child(model, self.part, f'model.method: {self}: part')
        if hasattr(backbone, CHILD):
            raise ValueError(f'model.method: {self}: {self.part!r} has a part named {CHILD!r} already: say DTL once')
        stages = stages_of(backbone, f'model.method: {self}: part={self.part!r}')
        if any(hasattr(block, 'prompt') for stage in stages for block in stage.blocks):
            raise ValueError(
                f'model.method: {self}: the blocks of {self.part!r} have prompts (VPT); where those are taken off, '
                'what DTL carries on is lost: name one of the two methods'
            )
        last, count = _last(backbone, stages), sum(len(stage.blocks) for stage in stages)
        self._check(backbone, last, count)
        kernel_size = self.kernel_size if self.plus else 0
        network = SideNetwork(stages, self.rank, self.start_block, last, self.beta, kernel_size)
        network.follow([block for stage in stages for block in stage.blocks], getattr(backbone, 'patch_embed', None))
        backbone.add_module(CHILD, network)
        prefix = f'{self.part}.{CHILD}' if self.part else CHILD
        self.added = [f'{prefix}.{name}' for name, _ in network.named_parameters()]
        _read_final_norm(backbone)

    def _check(self, backbone: nn.Module, last: int, count: int) -> None:
        what = f'model.method: {self}: start_block={self.start_block}'
        if self.start_block > count:
            raise ValueError(f'{what}, but there are {count} blocks')
        if self.start_block - 1 > last:
            raise ValueError(
                f'{what} is behind block {last + 1}, the last that reaches an output of {self.part!r} '
                f'(out_indices={backbone.out_indices}): say {last + 1} at most'
            )
        if self.plus and self.start_block - 1 == last and getattr(backbone, 'out_type', None) == 'cls_token':
            raise ValueError(
                f'{what} is the last block, and the head reads the class token, which the convolution leaves as it is: '
                "say out_type='avg_featmap' or start before"
            )

    def report(self, model: nn.Module) -> str:
        network = side_network(child(model, self.part, 'part'))
        blocks = sorted(network.places)
        said = f'{self}: rank {self.rank}, extracts at blocks {blocks[0] + 1} to {blocks[-1] + 1}'
        said += f', injects after blocks {self.start_block} to {blocks[-1] + 1}'
        return said + (f', {len(network.convs)} convolutions of size {self.kernel_size}' if self.plus else '')


def side_network(backbone: nn.Module) -> SideNetwork:
    """That of a backbone with DTL.

    Raises:
        ValueError: If it has none.
    """
    found = getattr(backbone, CHILD, None)
    if not isinstance(found, SideNetwork):
        raise ValueError(f"{type(backbone).__name__} has no side network: tune its model with method=dict(type='DTL')")
    return found


def _number(option: str, value: object, meaning: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'model.method: DTL: {option}={value!r} must be {meaning}')
    return value


def stages_of(backbone: nn.Module, what: str) -> list[Stage]:
    """The blocks of a ViT, as one stage, or of a Swin."""
    kinds = {kind.__name__ for kind in type(backbone).__mro__}
    found: list[Any] = []
    if 'VisionTransformer' in kinds:
        found = [getattr(backbone, 'layers', None)]
    elif 'SwinTransformer' in kinds:
        found = [getattr(stage, 'blocks', None) for stage in getattr(backbone, 'stages', ())]
    if not found or not all(isinstance(blocks, nn.ModuleList) and len(blocks) for blocks in found):
        raise ValueError(
            f"{what}: {type(backbone).__name__} is neither a VisionTransformer with 'layers' nor a SwinTransformer "
            "with 'stages' of 'blocks', which are all that DTL takes; for others use LoRA, BitFit or TopK"
        )
    stages: list[Stage] = []
    for blocks in found:
        first = stages[-1].first + len(stages[-1].blocks) if stages else 0
        stages.append(Stage(first, [*blocks], _width(blocks[0], what)))
    return stages


def _width(block: nn.Module, what: str) -> int:
    """That of the first norm, which is the stream's."""
    for module in block.modules():
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[-1])
    raise ValueError(f'{what}: a block ({type(block).__name__}) has no LayerNorm, by which DTL knows its width')


def _last(backbone: nn.Module, stages: Sequence[Stage]) -> int:
    """Index of the last block that reaches an output."""
    count = sum(len(stage.blocks) for stage in stages)
    ends = [stage.first + len(stage.blocks) - 1 for stage in stages]
    units = ends if hasattr(backbone, 'stages') else list(range(count))
    given: Any = getattr(backbone, 'out_indices', None)
    if given is None:
        return count - 1
    return max(units[min(i, len(units) - 1)] for i in ([given] if isinstance(given, int) else given))


def _read_final_norm(backbone: nn.Module) -> None:
    """Where the mean of the patch tokens is normed by 'ln2' alone, let it read what pre-training calls 'ln1'."""
    alone = hasattr(backbone, 'ln2') and not hasattr(backbone, 'ln1')
    if alone and getattr(backbone, 'out_type', None) == 'avg_featmap':
        backbone._register_load_state_dict_pre_hook(_final_norm_of_others)


def _final_norm_of_others(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if f'{prefix}ln2.weight' in state_dict:
        return
    for name in ('weight', 'bias'):
        if f'{prefix}ln1.{name}' in state_dict:
            state_dict[f'{prefix}ln2.{name}'] = state_dict.pop(f'{prefix}ln1.{name}')
