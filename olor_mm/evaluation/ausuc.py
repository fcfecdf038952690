"""AUSUC: the area under the curve of seen against unseen accuracy (Chao 2016), in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .seen_unseen import Margins

__all__ = ['AUSUCCurve', 'ausuc', 'ausuc_curve', 'margin_curve']


@dataclass
class AUSUCCurve:
    """The accuracies over all classes at every gamma that makes a difference.

    Attributes:
        gammas: (M,), ascending, in the unit of the logits; each lies between two margins. The ends are infinite where
            no number reaches them, for some logits are -inf.
        seen: Acc S/Y in %, (M,), falling from Acc S/S to 0.
        unseen: Acc U/Y in %, (M,), rising from 0 to Acc U/U.
        overall: Acc Y/Y in %, (M,).
    """

    gammas: Tensor
    seen: Tensor
    unseen: Tensor
    overall: Tensor

    @property
    def area(self) -> float:
        """By the trapezoid rule, from 0 to 1: 1 where both accuracies can be 100 %."""
        widths = self.seen[:-1] - self.seen[1:]
        return float((widths * (self.unseen[:-1] + self.unseen[1:])).sum()) / 2e4

    @property
    def best(self) -> tuple[float, float]:
        """The gamma of the greatest Acc Y/Y, the one nearest to 0 among equals, and that accuracy in %.

        It is chosen on the samples that it is then judged on: an oracle, not a way to choose gamma.
        """
        top = self.overall.max()
        among = self.gammas[self.overall >= top - 1e-9]
        return float(among[among.abs().argmin()]), float(top)


def ausuc(logits: Tensor, labels: Tensor, seen: Sequence[int] | Tensor) -> float:
    """The area under (Acc S/Y, Acc U/Y) as gamma goes from -inf to inf, from 0 to 1.

    Args:
        logits: (N, C); log-softmax gives the same. -inf is a class that cannot win.
        labels: (N,).
        seen: Labels of the classes that were fine-tuned on.

    Raises:
        ValueError: If they do not fit, are NaN or +inf, ``seen`` is none or all of the classes, or there is no sample
            of seen or of unseen classes.
    """
    return ausuc_curve(logits, labels, seen).area


def ausuc_curve(logits: Tensor, labels: Tensor, seen: Sequence[int] | Tensor) -> AUSUCCurve:
    """The curve that :func:`ausuc` is the area of; the arguments are the same."""
    return margin_curve(Margins.of(logits, labels, seen))


def margin_curve(margins: Margins) -> AUSUCCurve:
    """The curve from :class:`~olor_mm.evaluation.Margins`, in O(N log N).

    A sample of S that is right within S is right over all classes while its margin is above gamma, one of U while it
    is below: the curve follows from cumulative sums over the sorted margins. Equal margins are one step.

    Raises:
        ValueError: If there is no sample of seen or of unseen classes.
    """
    count_seen, count = int(margins.seen.sum()), len(margins.seen)
    if not 0 < count_seen < count:
        raise ValueError(
            f'{count_seen} of {count} samples are of seen classes: the curve needs samples of seen and of unseen ones'
        )
    values, steps = margins.margin[margins.right].unique(return_inverse=True)
    of_seen = margins.seen[margins.right]
    lost = torch.bincount(steps[of_seen], minlength=len(values))
    won = torch.bincount(steps[~of_seen], minlength=len(values))
    start = torch.zeros(1, dtype=torch.int64)
    seen = lost.sum() - torch.cat([start, lost.cumsum(0)])
    unseen = torch.cat([start, won.cumsum(0)])
    return AUSUCCurve(
        _between(values),
        100 * seen.double() / count_seen,
        100 * unseen.double() / (count - count_seen),
        100 * (seen + unseen).double() / count,
    )


def _between(values: Tensor) -> Tensor:
    """A number between each two of ascending ones, and one on either side."""
    infinite = values.new_full((1,), math.inf)
    low, high = torch.cat([-infinite, values]), torch.cat([values, infinite])
    middle = torch.where(low == high, low, (low + high) / 2)
    middle = torch.where(low.isinf() & high.isfinite(), high - 1, middle)
    middle = torch.where(low.isfinite() & high.isinf(), low + 1, middle)
    return middle.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
