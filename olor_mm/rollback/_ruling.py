"""A rule that looks at weights, over the two hooks of a step."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from ._batches import Batch
from ._measures import Measured, measured
from .rules import projection, spd

__all__ = ['Ruling']


class Ruling:
    """The a of each tensor in a step, by a rule that looks at weights.

    Between the two hooks of a step it keeps two numbers for each tensor and no copy of any.

    Args:
        name: 'spd' or 'projection'.
        balls: Parameter to a key: those of one key share a ball, so that their common distance is what is measured.
            Parameters that it does not name have one each.
    """

    def __init__(self, name: str, balls: Mapping[Tensor, Hashable]) -> None:
        self.name = name
        self.balls = balls
        self._before: Measured = {}
        self._signs: Sequence[float] = ()

    @torch.no_grad()
    def before(self, batches: Sequence[Batch], signs: Sequence[float]) -> None:
        """Look at gradients and weights before a step.

        Args:
            batches: What is to be pulled.
            signs: Of each of the optimizer's groups -1 where its steps go along the gradients, else 1.
        """
        self._signs = signs
        self._before = measured(batches, gradients=True) if self.name == 'spd' else {}

    def after(
        self, batches: Sequence[Batch], ratios: Sequence[float | Tensor], found_inf: Tensor | None
    ) -> list[Tensor]:
        """a of each tensor of each batch, after a step.

        Args:
            batches: Those of :meth:`before`.
            ratios: What the level is multiplied by, of each of the optimizer's groups.
            found_inf: One element on a device: 1. where the step was none, else 0. None where it was one.
        """
        found = measured(batches)
        totals = self._totals(found)
        strengths = []
        for batch in batches:
            after = torch.stack([totals[p] for p in batch.params]).sqrt()
            if self.name == 'projection':
                a = projection(_on_device(batch.levels, after), after)
            else:
                inner, square = torch.stack([self._before[p] for p in batch.params]).unbind(1)
                if min(self._signs) < 0:
                    inner = inner * _on_device([self._signs[g] for g in batch.groups], inner)
                a = spd(_weights(batch, ratios, after), inner, square.sqrt(), after)
            if found_inf is not None:
                a = a * (1.0 - found_inf.reshape(()).to(a))
            strengths.append(a)
        self._before = {}
        return strengths

    def _totals(self, found: Measured) -> dict[Tensor, Tensor]:
        """Squared distance of each parameter, or of all that share its ball."""
        members: dict[Hashable, list[Tensor]] = {}
        for param in found:
            members.setdefault(self.balls.get(param, param), []).append(param)
        totals = {}
        for params in members.values():
            parts = [found[p][-1] for p in params]
            # Not by adding into rows: on a GPU the order would be another one on each rank.
            total = parts[0] if len(parts) == 1 else torch.stack([part.to(parts[0]) for part in parts]).sum()
            totals.update({p: total.to(part) for p, part in zip(params, parts, strict=True)})
        return totals


def _weights(batch: Batch, ratios: Sequence[float | Tensor], like: Tensor) -> Tensor:
    products = [ratios[g] * level for g, level in zip(batch.groups, batch.levels, strict=True)]
    if any(isinstance(product, Tensor) for product in products):
        return torch.stack([torch.as_tensor(product, dtype=like.dtype, device=like.device) for product in products])
    return _on_device([float(product) for product in products], like)


def _on_device(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector, without a wait of the host for the device."""
    host = torch.tensor(values, dtype=like.dtype, device='cpu', pin_memory=like.device.type == 'cuda')
    return host.to(like.device, non_blocking=True)
