"""Algorithms 1 and 2 of the paper as printed: slow, readable, the truth that the fast paths are tested against.

They keep d_t, the discrepancy theta_t - theta_0, by the paper's own recursion; nothing here is shared with the code
under test. Symbols are the paper's: a = eta_t lambda_i / eta is the strength of a step. After them the relatives of the
rollback, each for one tensor.
"""

import torch
from torch import Tensor

__all__ = ['AdamOLORReference', 'SGDOLORReference', 'projection_reference', 'rollback_reference', 'spd_reference']


class SGDOLORReference:
    """Algorithm 1: SGD with momentum, and weight rollback.

    m_0 = 0, d_0 = 0; m_t = beta m_{t-1} + (1 - beta) g_t; theta_t = theta_{t-1} - a d_{t-1} - (1 - a) eta_t m_t;
    d_t = (1 - a)(d_{t-1} - eta_t m_t).

    ``torch.optim.SGD`` differs in two ways, both switches here, both False for the paper's own update:

    Args:
        theta: theta_0, a tensor that is not modified.
        beta: Momentum. Defaults to 0.9.
        undamped: Use g_t with factor 1, not (1 - beta): torch's SGD without ``dampening``. Defaults to False.
        undamped_first: Use g_1 with factor 1 at the first step alone: torch's SGD with ``dampening=beta``.
            Defaults to False.
    """

    def __init__(self, theta: Tensor, beta: float = 0.9, undamped: bool = False, undamped_first: bool = False) -> None:
        self.theta = theta.detach().clone()
        self.m = torch.zeros_like(self.theta)
        self.d = torch.zeros_like(self.theta)
        self.beta, self.undamped, self.undamped_first = beta, undamped, undamped_first
        self.t = 0

    def step(self, g: Tensor, eta_t: float, a: float) -> Tensor:
        """One step with gradient ``g``, learning rate ``eta_t`` and strength ``a``; returns theta_t."""
        self.t += 1
        plain = self.undamped or (self.undamped_first and self.t == 1)
        self.m = self.beta * self.m + (1.0 if plain else 1.0 - self.beta) * g
        self.theta = self.theta - a * self.d - (1 - a) * eta_t * self.m
        self.d = (1 - a) * (self.d - eta_t * self.m)
        return self.theta


class AdamOLORReference:
    """Algorithm 2: Adam, and weight rollback.

    theta_t = theta_{t-1} - a d_{t-1} - (1 - a) eta_t u_t; d_t = (1 - a)(d_{t-1} - eta_t u_t).

    Args:
        theta: theta_0, a tensor that is not modified.
        betas: Decay rates of the two moments. Defaults to (0.9, 0.999).
        eps: Added for stability. Defaults to 1e-8.
        eps_in_sqrt: u_t = m_hat / sqrt(v_hat + eps) as printed; False is sqrt(v_hat) + eps, as torch and the authors'
            code have it. Defaults to True.
        weight_decay: Decoupled weight decay as in AdamW (not in the paper): theta_{t-1} is first multiplied by
            1 - eta_t weight_decay, which adds eta_t weight_decay theta_{t-1} to the update. Defaults to 0.
    """

    def __init__(
        self,
        theta: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_in_sqrt: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        self.theta = theta.detach().clone()
        self.m = torch.zeros_like(self.theta)
        self.v = torch.zeros_like(self.theta)
        self.d = torch.zeros_like(self.theta)
        self.betas, self.eps, self.eps_in_sqrt, self.weight_decay = betas, eps, eps_in_sqrt, weight_decay
        self.t = 0

    def step(self, g: Tensor, eta_t: float, a: float) -> Tensor:
        """One step with gradient ``g``, learning rate ``eta_t`` and strength ``a``; returns theta_t."""
        self.t += 1
        beta_1, beta_2 = self.betas
        self.m = beta_1 * self.m + (1 - beta_1) * g
        self.v = beta_2 * self.v + (1 - beta_2) * g * g
        m_hat = self.m / (1 - beta_1**self.t)
        v_hat = self.v / (1 - beta_2**self.t)
        u = m_hat / ((v_hat + self.eps).sqrt() if self.eps_in_sqrt else v_hat.sqrt() + self.eps)
        update = eta_t * u + eta_t * self.weight_decay * self.theta
        self.theta = self.theta - a * self.d - (1 - a) * update
        self.d = (1 - a) * (self.d - update)
        return self.theta


def rollback_reference(theta_pre: Tensor, theta_0: Tensor, a: float) -> Tensor:
    """theta = (1 - a) theta_pre + a theta_0 (equations 3 to 6), theta_pre being what the base optimizer produced."""
    return (1 - a) * theta_pre + a * theta_0


def spd_reference(theta: Tensor, theta_pre: Tensor, theta_0: Tensor, g: Tensor, w: float) -> Tensor:
    """Selective projection decay of one tensor (arXiv 2411.01713): w r of the way back, where c < 0.

    c = -<g, theta - theta_0>; r = max(0, ||theta_pre - theta_0|| - ||theta - theta_0||) / ||theta_pre - theta_0||.
    """
    c = -float((g * (theta - theta_0)).sum())
    before, after = float((theta - theta_0).norm()), float((theta_pre - theta_0).norm())
    if c >= 0 or after <= before:
        return theta_pre
    r = (after - before) / after
    return theta_pre - w * r * (theta_pre - theta_0)


def projection_reference(theta_pre: Tensor, theta_0: Tensor, rho: float) -> Tensor:
    """The nearest point of the ball of radius rho around theta_0 (arXiv 2303.10720)."""
    distance = float((theta_pre - theta_0).norm())
    return theta_pre if distance <= rho else theta_0 + rho / distance * (theta_pre - theta_0)
