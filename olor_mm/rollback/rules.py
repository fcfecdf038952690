"""The family of rules: each is another a for the one operation theta <- lerp(theta_pre, theta_0, a).

'olor' knows a before the step: the level, times what the schedule says (:mod:`olor_mm.rollback.schedule`). The others
look at the weights. theta is what they are before a step, theta_pre what the optimizer makes of them:

- 'spd', selective projection decay (Tian, Huang and Kira, "Rethinking Weight Decay for Robust Fine-Tuning of Foundation
  Models", NeurIPS 2024, arXiv 2411.01713);
- 'projection', onto a ball around theta_0: the projection of TPGM (Tian et al., CVPR 2023, arXiv 2303.10720) and FTP
  (NeurIPS 2023, arXiv 2310.19182), which also learn the radii, one for each layer; here they are given.

They work on vectors, an element for each tensor, on the device of the weights: nothing here waits for it.
"""

from typing import Any

import torch
from torch import Tensor

from .penalty import check_level, check_radius

__all__ = ['RULES', 'check_amount', 'check_rule', 'is_off', 'projection', 'spd']

RULES = ('olor', 'spd', 'projection')


def spd(weight: Tensor, inner: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """a = w r, r = clamp((after - before) / after, 0, 1), where -<g, theta - theta_0> < 0; elsewhere 0.

    Args:
        weight: w, in [0, 1]: with 1 a tensor goes back to the distance that it had before the step.
        inner: <g, theta - theta_0>, of which only the sign counts: a loss scale does not matter.
        before: ||theta - theta_0||.
        after: ||theta_pre - theta_0||. 0/0 is 0.
    """
    grown = ((after - before) / torch.where(after > 0, after, 1.0)).clamp(0, 1)
    # What is NaN, as in a step that a scaler skips, is not above 0.
    return torch.where(inner > 0, weight.clamp(0, 1) * grown, 0.0)


def projection(radius: Tensor, after: Tensor) -> Tensor:
    """a = 1 - clamp(rho / after, 0, 1): what lies outside of the ball of radius rho comes onto it.

    Args:
        radius: rho, at least 0.
        after: ||theta_pre - theta_0||. 0/0 is 0.
    """
    return torch.where(after > radius, 1 - radius / torch.where(after > 0, after, 1.0), 0.0)


def check_rule(rule: Any) -> str:
    """Return ``rule`` if it is one of ``RULES``.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f'rule={rule!r} is not known: choose one of {", ".join(RULES)}')
    return rule


def check_amount(rule: str, option: str, value: float) -> float:
    """Return ``value`` as a float if it is what ``rule`` takes for a parameter: a level, or a radius.

    Raises:
        ValueError: If it is not.
    """
    return check_radius(option, value) if rule == 'projection' else check_level(option, value)


def is_off(rule: str, amount: float) -> bool:
    """Whether a parameter with this level, or radius, is never pulled back."""
    return amount == float('inf') if rule == 'projection' else amount == 0
