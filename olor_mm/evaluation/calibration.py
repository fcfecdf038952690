"""gamma: what is added to the logits of absent classes, so that a fine-tuned classifier does not forget them.

After fine-tuning on classes S alone, a head over all classes Y says S too often, though the features of the absent
classes U = Y - S are kept: the scale of the logits is not. y = argmax_c [z_c + gamma 1(c in U)] mends it (Mai 2024).
gamma comes from training data alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import check_classes, check_labels, check_logits
from .ausuc import ausuc_curve
from .seen_unseen import seen_unseen_accuracies

__all__ = ['BestGamma', 'alg_gamma', 'best_gamma', 'pcv_fold', 'pcv_gamma']

#: Accuracies (%) that differ by less are the same count of the same samples.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BestGamma:
    """A gamma, and what it was chosen for.

    Attributes:
        gamma: In the unit of the logits; nothing changes until the next margin on either side.
        overall: Acc Y/Y there, %.
        unseen: Acc U/Y there, %.
        least_unseen: What Acc U/Y had to be at least, %.
    """

    gamma: float
    overall: float
    unseen: float
    least_unseen: float


def alg_gamma(logits: Tensor, labels: Tensor, seen: Sequence[int] | Tensor) -> float:
    """gamma by the average logit gap (ALG).

    gamma = mean_x mean_{c in S, c != y} z_c - mean_x mean_{c in U} z_c, over training samples: how much higher the
    logits of wrong classes of S are than those of absent classes.

    Args:
        logits: (N, C), of the fine-tuned model on samples of S; log-softmax gives the same.
        labels: (N,), all in S.
        seen: Labels of S, those that were fine-tuned on; the others are U.

    Returns:
        gamma, in the unit of the logits, summed in float64.

    Raises:
        ValueError: If they do not fit, there is no sample, one is of an absent class, S is of one class, or logits are
            not finite.
    """
    check_logits(logits)
    labels = check_labels('labels', labels, len(logits), logits.size(1)).to(logits.device)
    mask = check_classes('seen', seen, logits.size(1)).to(logits.device)
    count = int(mask.sum())
    if not len(logits) or not bool(mask[labels].all()) or count < 2:
        absent = int((~mask[labels]).sum())
        raise ValueError(
            f'{len(logits)} samples, {absent} of them of absent classes, and {count} seen classes: ALG takes training '
            'samples of the seen classes, two classes at least'
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError('logits of -inf: ALG has no gap to tell; take a head over all classes')
    z = logits.double()
    own = z.gather(1, labels[:, None]).squeeze(1)
    wrong = (z[:, mask].sum(dim=1) - own) / (count - 1)
    return float((wrong - z[:, ~mask].mean(dim=1)).mean())


def best_gamma(
    logits: Tensor, labels: Tensor, seen: Sequence[int] | Tensor, least_unseen: float = 0.0
) -> BestGamma | None:
    """The gamma of the greatest Acc Y/Y with Acc U/Y of at least ``least_unseen``, exactly, in O(N log N).

    The accuracies change at the margins of samples alone (:func:`~olor_mm.evaluation.ausuc_curve`), so that one gamma
    between each two of them stands for all. Of equals it is the one nearest to 0.

    Args:
        logits: (N, C).
        labels: (N,), some in S and some not.
        seen: Labels of S.
        least_unseen: In %. Defaults to 0.

    Returns:
        It, or None where Acc U/Y is less at every gamma.

    Raises:
        ValueError: If they do not fit, are NaN or +inf, ``seen`` is none or all of the classes, or there is no sample
            of seen or of unseen classes.
    """
    curve = ausuc_curve(logits, labels, seen)
    possible = curve.gammas.isfinite() & (curve.unseen >= least_unseen - _ROUNDING)
    if not bool(possible.any()):
        return None
    gammas, overall, unseen = curve.gammas[possible], curve.overall[possible], curve.unseen[possible]
    best = (overall >= overall.max() - _ROUNDING).nonzero().flatten()
    k = best[gammas[best].abs().argmin()]
    return BestGamma(float(gammas[k]), float(overall[k]), float(unseen[k]), least_unseen)


def pcv_fold(
    tuned: Tensor, pretrained: Tensor, labels: Tensor, pseudo_seen: Sequence[int], pseudo_absent: Sequence[int]
) -> BestGamma | None:
    """gamma of one fold of pseudo cross-validation (PCV).

    The classes that are fine-tuned on, S, are split into pseudo-seen and pseudo-absent ones, and the pre-trained model
    is fine-tuned on the first alone. gamma is the :func:`best_gamma` of that model on training samples of all of S that
    it was not trained on, with Acc U/Y (U the pseudo-absent classes, Y all of S) of at least the pre-trained model's.
    Logits of classes outside of S are left out: nothing is known of them.

    Args:
        tuned: (N, C), logits of the model that was fine-tuned on the pseudo-seen classes.
        pretrained: (N, C), those of the pre-trained model.
        labels: (N,), all in S.
        pseudo_seen: Labels.
        pseudo_absent: Labels.

    Returns:
        It, or None where the fine-tuned model is below the pre-trained one at every gamma.

    Raises:
        ValueError: If they do not fit, or there is no sample of pseudo-seen or of pseudo-absent classes.
    """
    if tuned.shape != pretrained.shape:
        raise ValueError(f'logits of {tuple(tuned.shape)} and {tuple(pretrained.shape)}: both must be of one head')
    order = sorted([*pseudo_seen, *pseudo_absent])
    labels = check_labels('labels', labels, len(tuned), tuned.size(1))
    if len(set(order)) < len(order) or not 0 <= order[0] <= order[-1] < tuned.size(1):
        raise ValueError(f'pseudo_seen and pseudo_absent must be labels from 0 to {tuned.size(1) - 1}, each once')
    place = torch.full((tuned.size(1),), -1)
    place[order] = torch.arange(len(order))
    inside = place[labels.cpu()]
    if bool((inside < 0).any()):
        raise ValueError('labels: some are neither pseudo-seen nor pseudo-absent')
    seen = place[list(pseudo_seen)].tolist()
    least = seen_unseen_accuracies(pretrained[:, order], inside, seen)['U/Y']
    if math.isnan(least):
        raise ValueError('there is no sample of pseudo-absent classes')
    return best_gamma(tuned[:, order], inside, seen, least)


def pcv_gamma(folds: Sequence[BestGamma | None]) -> float | None:
    """gamma by PCV: the mean over the folds that have one; None where none has."""
    found = [fold.gamma for fold in folds if fold is not None]
    return sum(found) / len(found) if found else None
