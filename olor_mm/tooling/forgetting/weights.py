"""Weights between a fine-tuned model and theta_0: the steps of a review, and mixtures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ...engine.added import added_by_methods
from ...rollback import kernels
from ...rollback.penalty import layerwise_penalty
from ..errors import InputError
from .distance import layers_of
from .origin import Origin

__all__ = ['BUFFERS', 'Way', 'estimate_statistics', 'grid', 'levels_of', 'refuse_added', 'straight', 'with_levels']

#: What becomes of buffers such as batch norms' statistics.
BUFFERS = ('interpolate', 'keep', 'estimate')


def refuse_added(model: nn.Module) -> None:
    """See that a model has nothing that there is no way back from.

    Raises:
        InputError: If a method put parameters into it, which theta_0 has not.
    """
    added = sorted(added_by_methods(model) & {name for name, _ in model.named_parameters()})
    if added:
        raise InputError(
            f'the model has {len(added)} parameters that its method put there, such as {added[0]}: theta_0 has none of '
            'them, so there are no weights between the two',
            'of LoRA, merge them first: python tools/merge_lora.py CONFIG CHECKPOINT OUT; then give the config without '
            'the method',
        )


class Way:
    """From fine-tuned weights towards theta_0.

    Args:
        model: The model, not wrapped, with the fine-tuned weights.
        origin: theta_0.
        names: Of the parameters and buffers that go back; others stay as they are.
    """

    def __init__(self, model: nn.Module, origin: Origin, names: Sequence[str]) -> None:
        self.start = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        self.names = [name for name in names if name in origin.state and _is_real(origin.state[name])]
        self.theta_0 = {name: origin.state[name].to(self.start[name].dtype) for name in self.names}

    @torch.no_grad()
    def back(self, state: Mapping[str, Tensor], amounts: Mapping[str, float]) -> dict[str, Tensor]:
        """theta <- (1 - a) theta + a theta_0, by the rollback's own lerp.

        Args:
            state: The weights; they are not changed.
            amounts: Name to a, in [0, 1].

        Returns:
            All weights.
        """
        moved = {name: state[name].clone() for name in self.names if amounts.get(name, 0.0) > 0}
        anchors = [self.theta_0[name] for name in moved]
        kernels.single_tensor(list(moved.values()), anchors, [amounts[name] for name in moved])
        # An end is theta_0 itself, and not what rounding makes of it.
        moved.update({name: self.theta_0[name].clone() for name in moved if amounts[name] >= 1})
        return {**state, **moved}

    def mixture(self, alpha: float) -> dict[str, Tensor]:
        """(1 - alpha) theta_T + alpha theta_0; what theta_0 lacks, such as a new head, is theta_T's."""
        return self.back(self.start, dict.fromkeys(self.names, alpha))


def straight(way: Way, steps: int) -> Iterator[dict[str, Tensor]]:
    """The weights after each of some equal steps to theta_0, which is where the last one ends.

    Args:
        way: The way.
        steps: N.

    Yields:
        N states. Step s takes 1 / (N - s + 1) of what is left.
    """
    state = way.start
    for step in range(1, steps + 1):
        state = way.back(state, dict.fromkeys(way.names, 1.0 / (steps - step + 1)))
        yield state


def with_levels(way: Way, steps: int, levels: Mapping[str, float]) -> Iterator[dict[str, Tensor]]:
    """The weights after each of some rollbacks, as one follows an optimizer's step at its peak learning rate.

    Args:
        way: The way.
        steps: N.
        levels: Name to lambda_i.

    Yields:
        N states. In layer i there is (1 - lambda_i)^s of the distance left after step s.
    """
    state = way.start
    for _ in range(steps):
        state = way.back(state, levels)
        yield state


def levels_of(
    model: nn.Module, origin: Origin, names: Sequence[str], max_level: float, min_level: float, power: float, index: str
) -> dict[str, float]:
    """lambda_i of everything that goes back; buffers have the level of the parameters beside them.

    Args:
        model: The model, not wrapped.
        origin: theta_0.
        names: Of parameters and buffers.
        max_level: iota_1.
        min_level: iota_2.
        power: gamma.
        index: 'layer' or 'tensor'.
    """
    table = layers_of(model, origin, index)
    found = {}
    for name in names:
        beside = [i for other, i in table.index.items() if other.rpartition('.')[0] == name.rpartition('.')[0]]
        i = table.index.get(name, min(beside) if beside else None)
        if i is not None:
            found[name] = layerwise_penalty(i, table.num_layers, max_level, min_level, power)
    return found


def estimate_statistics(model: Any, loader: Any, batches: int) -> int:
    """Batch norms' statistics anew from images, by torch's ``update_bn``.

    Args:
        model: A model of MMEngine's, not wrapped. It is in evaluation mode afterwards.
        loader: Images, under the transforms of the test.
        batches: How many of them at most.

    Returns:
        How many images were seen; 0 where the model has no batch norm.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return 0
    seen = 0

    def inputs() -> Iterator[Tensor]:
        nonlocal seen
        for number, batch in enumerate(loader):
            if number >= batches:
                return
            data = model.data_preprocessor(batch, False)['inputs']
            seen += len(data)
            yield data

    modes = {module: module.training for module in model.modules()}
    norms = [module for module in modes if isinstance(module, _BatchNorm)]
    try:
        update_bn(inputs(), _Forward(model, norms))
    finally:
        for module in modes:
            module.training = False
    return seen


class _Forward(nn.Module):
    """A model whose batch norms alone are in training mode: dropout and drop path stay off."""

    def __init__(self, model: Any, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self._norms = model, list(norms)

    def train(self, mode: bool = True) -> _Forward:
        self.model.eval()
        for norm in self._norms:
            norm.training = mode
        return self

    def forward(self, inputs: Tensor) -> Any:
        with torch.no_grad():
            return self.model(inputs, mode='tensor')


def _is_real(value: Tensor) -> bool:
    """Counters, such as that of a batch norm, have no values in between."""
    return value.is_floating_point() or value.is_complex()


def grid(alphas: Sequence[float] | None, points: int) -> list[float]:
    """The alphas to try: those given, or so many from 0 to 1.

    Raises:
        InputError: If one is not in [0, 1].
    """
    if alphas is None:
        if points < 2:
            raise InputError(f'--grid {points} must be 2 at least: 0 and 1')
        return [number / (points - 1) for number in range(points)]
    for alpha in alphas:
        if not math.isfinite(alpha) or not 0 <= alpha <= 1:
            raise InputError(f'--alphas {alpha:g} must be from 0, the fine-tuned model, to 1, the pre-trained one')
    return sorted({0.0, *alphas})
