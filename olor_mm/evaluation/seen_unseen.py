"""Accuracies on the classes that were fine-tuned on (S), on those that were not (U), and on both (Y)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ._checks import check_classes, check_labels, check_logits

__all__ = ['Margins', 'margin_accuracies', 'seen_unseen_accuracies']


@dataclass
class Margins:
    """What of logits the accuracies depend on: five numbers of each sample, whatever the number of classes.

    Attributes:
        seen: Whether the sample's class is in S; (N,), bool.
        right: Whether it has the greatest logit of its own part, S or U; (N,), bool. A logit of -inf is never right.
        margin: max_S z - max_U z; (N,), float64.
        seen_wins_ties: Whether the greatest logit of S stands before that of U, as argmax takes the first; (N,), bool.
    """

    seen: Tensor
    right: Tensor
    margin: Tensor
    seen_wins_ties: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, seen: Sequence[int] | Tensor) -> Margins:
        """From logits.

        Args:
            logits: (N, C); log-softmax gives the same. -inf is a class that cannot win.
            labels: (N,).
            seen: Labels of S; the other classes are U.

        Raises:
            ValueError: If they do not fit, are NaN or +inf, or ``seen`` is none or all of the classes.
        """
        check_logits(logits)
        labels = check_labels('labels', labels, len(logits), logits.size(1)).to(logits.device)
        mask = check_classes('seen', seen, logits.size(1)).to(logits.device)
        # Of equal logits the first wins; labels of S and of U are in ascending order.
        (top_seen, in_seen), (top_unseen, in_unseen) = (_best(logits, part) for part in (mask, ~mask))
        own = mask[labels]
        right = torch.where(own, in_seen, in_unseen) == labels
        right &= torch.where(own, top_seen, top_unseen) > -math.inf
        # Neither can win where both are -inf; nothing is right there, and the margin is of no account.
        margin = (top_seen.double() - top_unseen.double()).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
        return cls(own.cpu(), right.cpu(), margin.cpu(), (in_seen < in_unseen).cpu())

    @classmethod
    def join(cls, parts: Sequence[Margins]) -> Margins:
        """Those of several batches as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def right_over_all(self, gamma: float) -> Tensor:
        """Whether the argmax over all classes of z_c + gamma 1[c in U] is right; (N,), bool.

        An infinite gamma takes the classes of one part out of the running.
        """
        won_by_seen = (self.margin > gamma) | ((self.margin == gamma) & self.seen_wins_ties)
        if math.isinf(gamma):
            won_by_seen = torch.full_like(self.seen, gamma < 0)
        return self.right & (won_by_seen == self.seen)


def seen_unseen_accuracies(
    logits: Tensor, labels: Tensor, seen: Sequence[int] | Tensor, gamma: float = 0.0
) -> dict[str, float]:
    """Accuracies in % of the prediction argmax_c [z_c + gamma 1(c in U)] (Mai 2024).

    'A/B' counts the samples of the classes A, and predicts over the classes B.

    Args:
        logits: (N, C); log-softmax gives the same. -inf is a class that cannot win.
        labels: (N,).
        seen: Labels of S, those that were fine-tuned on; the others are U.
        gamma: What is added to the logits of U, in their unit. Defaults to 0.

    Returns:
        'Y/Y', 'S/Y', 'U/Y', 'S/S' and 'U/U'; NaN where there is no sample of the kind.

    Raises:
        ValueError: If they do not fit, are NaN or +inf, or ``seen`` is none or all of the classes.
    """
    return margin_accuracies(Margins.of(logits, labels, seen), gamma)


def margin_accuracies(margins: Margins, gamma: float = 0.0) -> dict[str, float]:
    """The same from :class:`Margins`.

    Raises:
        ValueError: If gamma is no number.
    """
    if not isinstance(gamma, (int, float)) or isinstance(gamma, bool) or math.isnan(gamma):
        raise ValueError(f'gamma={gamma!r} must be a number, what is added to the logits of unseen classes')
    over_all, seen = margins.right_over_all(gamma), margins.seen
    return {
        'Y/Y': _percent(over_all),
        'S/Y': _percent(over_all[seen]),
        'U/Y': _percent(over_all[~seen]),
        'S/S': _percent(margins.right[seen]),
        'U/U': _percent(margins.right[~seen]),
    }


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean()) if len(right) else math.nan


def _best(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest logit among some classes, and its label, the first of equals."""
    values, columns = logits[:, mask].max(dim=1)
    return values, mask.nonzero()[:, 0][columns]
