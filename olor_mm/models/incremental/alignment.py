"""Classifier alignment: the heads of all tasks are trained together on features drawn from the classes' Gaussians."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from olor_mm._options import check_known

from .split import TaskSplit, is_count
from .statistics import ClassStatistics

__all__ = ['Alignment', 'align', 'factors', 'normalised_logits']

_SCALINGS = ('mean', 'sample', 'none')


@dataclass(frozen=True)
class Alignment:
    """How the heads are aligned; the defaults are those of SLCA's authors.

    Args:
        epochs: How often features are drawn and gone through. Defaults to 5.
        samples: Features drawn of each class in each epoch. Defaults to 256.
        batch_size: Defaults to 256.
        lr: Learning rate of SGD; it falls to 0 along a cosine, epoch by epoch. Defaults to 0.01.
        momentum: Defaults to 0.9.
        weight_decay: Defaults to 5e-4.
        tau: Temperature that the normalised logits are divided by; 0.05 for Cars. Defaults to 0.1.
        scaling: 'mean', as SLCA, multiplies the mean of a class by 0.9 + 0.1 (t + 1) / (T + 1), t being its task and T
            the current one; 'sample', as SLCA++, multiplies each feature by 1 / (1 + s (T - t)), s being uniform in
            ``spread``; 'none' does neither. Defaults to 'mean'.
        spread: The range of s. Defaults to (0.01, 0.03).

    Raises:
        ValueError: If an option is unknown or cannot be right.
    """

    epochs: int = 5
    samples: int = 256
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    tau: float = 0.1
    scaling: str = 'mean'
    spread: Sequence[float] = (0.01, 0.03)

    def __post_init__(self) -> None:
        for option in ('epochs', 'samples', 'batch_size'):
            if not is_count(getattr(self, option)):
                raise ValueError(f'alignment.{option}={getattr(self, option)!r} must be a whole number of 1 or more')
        for option in ('lr', 'momentum', 'weight_decay', 'tau'):
            value = getattr(self, option)
            if not _is_number(value) or value < 0 or (value == 0 and option in ('lr', 'tau')):
                raise ValueError(f'alignment.{option}={value!r} must be a number above 0, or 0 where that is off')
        if self.scaling not in _SCALINGS:
            raise ValueError(f'alignment.scaling={self.scaling!r} is not known: choose one of {", ".join(_SCALINGS)}')
        spread = self.spread
        if not isinstance(spread, Sequence) or len(spread) != 2 or not all(map(_is_number, spread)):
            raise ValueError(f'alignment.spread={spread!r} must be two numbers, such as (0.01, 0.03)')
        if not 0 <= spread[0] <= spread[1]:
            raise ValueError(f'alignment.spread={spread!r} must be two numbers of 0 or more, the smaller one first')

    @classmethod
    def from_cfg(cls, cfg: object) -> Alignment:
        """Options from the dict of a config."""
        if not isinstance(cfg, Mapping):
            raise ValueError(f'alignment={cfg!r} must be a dict of options, such as dict(tau=0.1), or None for none')
        check_known('alignment', cfg, [field.name for field in fields(cls)])
        return cls(**{str(option): value for option, value in cfg.items()})


def factors(statistics: ClassStatistics) -> Tensor:
    """Cholesky factors L of the covariances, (C, d, d), in float64: fewer images than features leave them no slack.

    Raises:
        ValueError: If a covariance is not positive definite; the message names the class.
    """
    lower, info = torch.linalg.cholesky_ex(statistics.covariances.double())
    if bool(info.any()):
        label = statistics.classes[int(info.nonzero()[0])]
        raise ValueError(
            f'the covariance of class {label} is not positive definite: give a larger ridge, such as '
            'incremental.ridge=1e-3'
        )
    return lower


def normalised_logits(logits: Sequence[Tensor], tau: float) -> Tensor:
    """Logits of all heads, divided by the mean over the heads of their norm, and by tau.

    Args:
        logits: Of each task, (N, its classes).
        tau: The temperature.

    Returns:
        (N, all classes).
    """
    norms = torch.stack([part.norm(dim=1) + 1e-7 for part in logits], dim=1).mean(dim=1, keepdim=True)
    return torch.cat(list(logits), dim=1) / norms / tau


def align(heads: nn.ModuleList, split: TaskSplit, statistics: ClassStatistics, options: Alignment, seed: int) -> float:
    """Train the heads of all tasks so far; what is drawn depends on the seed, the task and the epoch alone.

    Args:
        heads: A linear layer for each task so far.
        split: The classes of the tasks.
        statistics: Of all classes of these tasks, in any order.
        options: How.
        seed: Of what is drawn.

    Returns:
        The mean loss of the last epoch.

    Raises:
        ValueError: If classes lack statistics, or a covariance is none.
    """
    task = len(heads) - 1
    seen = split.seen(task)
    missing = sorted(set(seen) - set(statistics.classes))
    if missing:
        raise ValueError(f'there are no statistics of the classes {missing}, which the alignment draws from')
    lower = factors(statistics)
    params = [p for head in heads for p in head.parameters()]
    device = params[0].device
    trained = [p.requires_grad for p in params]
    for p in params:
        p.requires_grad_(True)
    optimizer = torch.optim.SGD(params, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    loss = 0.0
    with torch.enable_grad():
        for epoch in range(options.epochs):
            for group in optimizer.param_groups:
                group['lr'] = options.lr * 0.5 * (1 + math.cos(math.pi * epoch / options.epochs))
            generator = torch.Generator().manual_seed(_seed(seed, task, epoch))
            features, targets = draw(statistics, lower, split, task, options, generator)
            losses = []
            for batch in torch.randperm(len(features), generator=generator).split(options.batch_size):
                # In the precision of the heads: drawing it took more.
                inputs = features[batch].to(device, params[0].dtype)
                logits = normalised_logits([head(inputs) for head in heads], options.tau)
                step = F.cross_entropy(logits, targets[batch].to(device))
                optimizer.zero_grad()
                step.backward()
                optimizer.step()
                losses.append(float(step.detach()))
            loss = sum(losses) / len(losses)
    for p, grad in zip(params, trained, strict=True):
        p.grad = None
        p.requires_grad_(grad)
    return loss


def draw(
    statistics: ClassStatistics,
    lower: Tensor,
    split: TaskSplit,
    task: int,
    options: Alignment,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Features of all classes seen, class by class, and their columns in the heads' outputs.

    Args:
        statistics: Of the classes.
        lower: The Cholesky factors of their covariances.
        split: The classes of the tasks.
        task: The current one, T.
        options: How many and how scaled.
        generator: On the CPU.

    Returns:
        (C * samples, d), float64, and (C * samples,).
    """
    row = {label: number for number, label in enumerate(statistics.classes)}
    table = split.class_to_task
    features = []
    for label in split.seen(task):
        mean, gap = statistics.means[row[label]].double(), task - table[label]
        if options.scaling == 'mean':
            mean = mean * (0.9 + 0.1 * (table[label] + 1) / (task + 1))
        noise = torch.randn(options.samples, len(mean), dtype=torch.float64, generator=generator)
        drawn = mean + noise @ lower[row[label]].T
        if options.scaling == 'sample':
            low, high = options.spread
            s = low + (high - low) * torch.rand(options.samples, 1, dtype=torch.float64, generator=generator)
            drawn = drawn / (1 + s * gap)
        features.append(drawn)
    return torch.cat(features), torch.arange(len(features)).repeat_interleave(options.samples)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence([abs(int(n)) for n in numbers]).generate_state(1)[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
