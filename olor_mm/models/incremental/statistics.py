"""Mean and covariance of each class's features: in one pass over any number of images, on one process or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

__all__ = ['ClassMoments', 'ClassStatistics']


@dataclass
class ClassStatistics:
    """What is kept of the classes of a task: a Gaussian for each.

    Attributes:
        classes: Their labels.
        counts: How many images each is from.
        means: (C, d), float64.
        covariances: (C, d, d), float64, positive definite.
    """

    classes: list[int]
    counts: list[int]
    means: Tensor
    covariances: Tensor

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return vars(self).copy()

    @classmethod
    def load(cls, state: object) -> ClassStatistics:
        """What :meth:`state_dict` gave.

        Raises:
            ValueError: If it is something else.
        """
        names = ('classes', 'counts', 'means', 'covariances')
        if not isinstance(state, Mapping) or set(names) - set(state):
            raise ValueError(f'these are no statistics of classes: {state!r:.80}; they have {", ".join(names)}')
        return cls(**{name: state[name] for name in names})

    @classmethod
    def join(cls, parts: Sequence[ClassStatistics]) -> ClassStatistics:
        """Those of several tasks as one."""
        return cls(
            [label for part in parts for label in part.classes],
            [count for part in parts for count in part.counts],
            torch.cat([part.means for part in parts]),
            torch.cat([part.covariances for part in parts]),
        )


class ClassMoments:
    """Adds up features, batch by batch, in float64 on the CPU (Chan, Golub and LeVeque 1983).

    Args:
        classes: The labels that occur.
        dim: The number of features d.
    """

    def __init__(self, classes: Sequence[int], dim: int) -> None:
        self.classes = list(classes)
        self._row = {label: row for row, label in enumerate(self.classes)}
        self.counts = torch.zeros(len(self.classes), dtype=torch.float64)
        self.means = torch.zeros(len(self.classes), dim, dtype=torch.float64)
        #: Sums of (f - mean) (f - mean)^T.
        self.scatters = torch.zeros(len(self.classes), dim, dim, dtype=torch.float64)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: (N, d).
            labels: (N,).

        Raises:
            ValueError: If a feature is NaN or infinite, or a label is none of the classes.
        """
        features, labels = features.detach().to('cpu', torch.float64), labels.detach().cpu()
        if not bool(torch.isfinite(features).all()):
            raise ValueError('features of classes are NaN or infinite: lower the learning rate, or check the weights')
        for label in labels.unique().tolist():
            if label not in self._row:
                raise ValueError(f'an image has the label {label}, which is none of the classes {self.classes}')
            part = features[labels == label]
            mean = part.mean(dim=0)
            self._add(self._row[label], len(part), mean, (part - mean).T @ (part - mean))

    def _add(self, row: int, count: float, mean: Tensor, scatter: Tensor) -> None:
        before = float(self.counts[row])
        delta = mean - self.means[row]
        self.means[row] += delta * (count / (before + count))
        self.scatters[row] += scatter + torch.outer(delta, delta) * (before * count / (before + count))
        self.counts[row] += count

    def reduce(self) -> None:
        """Add up what the processes have; each image must have been seen by one of them alone."""
        if get_world_size() == 1:
            return
        counts = self.counts.clone()
        all_reduce(counts)
        means = self.means * self.counts[:, None]
        all_reduce(means)
        means /= counts.clamp(min=1)[:, None]
        delta = self.means - means
        scatters = self.scatters + self.counts[:, None, None] * delta[:, :, None] * delta[:, None, :]
        all_reduce(scatters)
        self.counts, self.means, self.scatters = counts, means, scatters

    def statistics(self, ridge: float = 1e-4) -> ClassStatistics:
        """Means and unbiased covariances, with ``ridge`` on their diagonals.

        Of a class with a single image, whose covariance is not defined, the ridge alone.

        Args:
            ridge: In units of squared features. Defaults to 1e-4.

        Raises:
            ValueError: If a class has no image.
        """
        empty = [label for label, count in zip(self.classes, self.counts.tolist(), strict=True) if count == 0]
        if empty:
            raise ValueError(
                f'there is no training image of the classes {empty}: see that num_classes is right and that every '
                'class has images'
            )
        covariances = self.scatters / (self.counts - 1).clamp(min=1)[:, None, None]
        covariances.diagonal(dim1=1, dim2=2).add_(ridge)
        return ClassStatistics(self.classes, [int(n) for n in self.counts.tolist()], self.means.clone(), covariances)
