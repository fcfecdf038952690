"""The paper's two algorithms as loops over tensors, written from the paper: what a plain implementation costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['AdamLoop', 'SGDLoop']


@dataclass
class AdamLoop:
    """Algorithm 2 as it is printed, tensor by tensor, with torch's place of eps; and the weight decay of AdamW.

    The learning rate is constant, and so the strength a is the level. Parameters without a level make Adam's step.
    """

    params: Sequence[Tensor]
    levels: Mapping[Tensor, float]
    d: dict[Tensor, Tensor]
    m: Mapping[Tensor, Tensor]
    v: Mapping[Tensor, Tensor]
    lr: float
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    t: int = 0

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        beta_1, beta_2 = self.betas
        for p in self.params:
            m, v, g = self.m[p], self.v[p], p.grad
            m.mul_(beta_1).add_(g, alpha=1 - beta_1)
            v.mul_(beta_2).addcmul_(g, g, value=1 - beta_2)
            m_hat, v_hat = m / (1 - beta_1**self.t), v / (1 - beta_2**self.t)
            update = self.lr * (m_hat / (v_hat.sqrt() + self.eps))
            if self.decay:
                update += self.lr * self.decay * p
            _move(p, update, self.levels, self.d)


@dataclass
class SGDLoop:
    """Algorithm 1, tensor by tensor, with the undamped momentum of torch's SGD."""

    params: Sequence[Tensor]
    levels: Mapping[Tensor, float]
    d: dict[Tensor, Tensor]
    m: Mapping[Tensor, Tensor]
    lr: float
    beta: float = 0.9

    @torch.no_grad()
    def step(self) -> None:
        for p in self.params:
            m = self.m[p]
            m.mul_(self.beta).add_(p.grad)
            _move(p, self.lr * m, self.levels, self.d)


def _move(p: Tensor, update: Tensor, levels: Mapping[Tensor, float], d: dict[Tensor, Tensor]) -> None:
    a = levels.get(p, 0.0)
    if a == 0.0:
        p.sub_(update)
        return
    p.sub_(a * d[p] + (1 - a) * update)
    d[p].copy_((1 - a) * (d[p] - update))
