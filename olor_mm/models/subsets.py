"""Methods that train a part of the parameters and change nothing else."""

from collections.abc import Sequence

from torch import nn

from olor_mm.layers import assign_layers, canonical_name
from olor_mm.registry import METHODS

from .method import Method, check_patterns, child, matches, plain

__all__ = ['BitFit', 'Full', 'Linear', 'Subset', 'TopK']


@METHODS.register_module()
class Full(Method):
    """Full fine-tuning: all is trained that the model itself does not freeze."""

    def __init__(self) -> None:
        super().__init__(part='')

    def trains(self, name: str) -> bool:
        return True


@METHODS.register_module()
class Linear(Method):
    """The pre-trained part is frozen, all else is trained: of a classifier its linear head.

    Args:
        part: Path of the pre-trained part. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in which one is found are trained too. Defaults to ().
    """

    def apply(self, model: nn.Module) -> None:
        child(model, self.part, f'model.method: {self}: part')


@METHODS.register_module()
class Subset(Method):
    """Parameters of the pre-trained part by their names, and all outside of it.

    Args:
        train: Regular expressions, searched in the full names, such as 'backbone.layers.11.attn.qkv.weight'. Each must
            be found in one at least.
        part: Path of the pre-trained part. Defaults to 'backbone'.
    """

    def __init__(self, train: str | Sequence[str], part: str = 'backbone') -> None:
        super().__init__(part, train)
        if not self.train:
            raise ValueError("Subset: train=() would be Linear: say dict(type='Linear'), or give a regular expression")

    def apply(self, model: nn.Module) -> None:
        child(model, self.part, f'model.method: {self}: part')


@METHODS.register_module()
class BitFit(Method):
    """The biases of the pre-trained part, those of its norms among them, and all outside of it (Ben Zaken 2022).

    Args:
        part: Path of the pre-trained part. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in which one is found are trained too. Defaults to ().
    """

    def __init__(self, part: str = 'backbone', train: str | Sequence[str] = ()) -> None:
        super().__init__(part, train)
        self._biases = check_patterns([r'(^|[._])bias$'], 'BitFit')

    def apply(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        if not any(matches(self._biases, name) for name, _ in part.named_parameters()):
            raise ValueError(f'model.method: BitFit: {self.part!r} ({type(part).__name__}) has no biases')

    def trains(self, name: str) -> bool:
        return super().trains(name) or matches(self._biases, name)


@METHODS.register_module()
class TopK(Method):
    """The last k blocks of the pre-trained part, what comes after them, and all outside of it.

    Which block a parameter is in is what the rollback's layer index says too (docs/layers.md).

    Args:
        k: Number of blocks, above 0.
        part: Path of the pre-trained part. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in which one is found are trained too. Defaults to ().
    """

    def __init__(self, k: int, part: str = 'backbone', train: str | Sequence[str] = ()) -> None:
        super().__init__(part, train)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"TopK: k={k!r} must be a number of blocks, 1 at least; for none say dict(type='Linear')")
        self.k = k
        self._last: set[str] = set()

    def apply(self, model: nn.Module) -> None:
        part = child(model, self.part, f'model.method: {self}: part')
        layers = assign_layers(model, roots=(self.part,))
        blocks = sorted(i for i in set(layers.index.values()) if layers.labels.get(i) != 'stem')
        if self.k > len(blocks):
            raise ValueError(
                f'model.method: TopK: k={self.k}, but {self.part!r} ({type(part).__name__}) has {len(blocks)} blocks; '
                "to train all of it say dict(type='Full')"
            )
        self._last = {plain(name) for name, i in layers.index.items() if i >= blocks[-self.k]}

    def trains(self, name: str) -> bool:
        return super().trains(name) or canonical_name(name) in self._last
