"""k-nearest-neighbour accuracy of features: how well those of an upstream set still tell its classes apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_features, check_labels, is_count

__all__ = ['KNNBank', 'check_ks', 'knn_accuracy']

#: An index in the low half of a key, counted down: of equal cosines the earlier sample has the greater key.
_LOW = 0xFFFFFFFF
_MAGNITUDE = 0x7FFFFFFF
#: Scores of classes that are held at a time, in numbers of 8 bytes.
_SCORES = 1 << 24
#: The rank of a class that nothing votes for.
NEVER = 1 << 31


class KNNBank:
    """Features with labels, to which the nearest are looked up.

    Features are kept as they are given, on their device and in their dtype, and normalised in float32 when they are
    read, a chunk at a time: a bank in the memory of the CPU serves queries on a GPU. Of equal cosines the earlier
    sample is the nearer one, of equal scores the lower label wins: the same input gives the same figure.

    Args:
        num_classes: Labels are below it.
        chunk_size: Queries times samples of the bank that are compared at a time: ``chunk_size`` of each. Peak memory
            is about 12 ``chunk_size``² bytes. Defaults to 4096.

    Example:
        >>> bank = KNNBank(num_classes=1000)
        >>> for features, labels in batches: bank.add(features, labels)
        >>> bank.accuracy(queries, query_labels, ks=(20,))
        {'top1/k=20': 74.1, 'top5/k=20': 88.9}
    """

    def __init__(self, num_classes: int, chunk_size: int = 4096) -> None:
        for name, value in (('num_classes', num_classes), ('chunk_size', chunk_size)):
            if not is_count(value):
                raise ValueError(f'{name}={value!r} must be a whole number of 1 or more')
        self.num_classes, self.chunk_size = num_classes, chunk_size
        self.dim: int | None = None
        self._blocks: list[tuple[Tensor, Tensor]] = []
        #: What was added since, too little for a block.
        self._loose: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in [*self._blocks, *self._loose])

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples.

        Args:
            features: (N, d), of any floating point dtype.
            labels: (N,).

        Raises:
            ValueError: If they do not fit, or are not finite.
        """
        check_features('the bank', features, self.dim)
        labels = check_labels('labels of the bank', labels, len(features), self.num_classes)
        if not len(features):
            return
        self.dim = features.size(1)
        self._loose.append((features.detach(), labels.cpu()))
        if sum(len(labels) for _, labels in self._loose) >= self.chunk_size:
            self._pack()

    def to(self, device: torch.device) -> None:
        """Keep the features on a device."""
        self._pack()
        self._blocks = [(features.to(device), labels) for features, labels in self._blocks]

    def _pack(self) -> None:
        if self._loose:
            features, labels = (torch.cat(parts) for parts in zip(*self._loose, strict=True))
            self._blocks.append((features, labels))
            self._loose = []

    def neighbours(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest samples of each query.

        Args:
            queries: (Q, d).
            k: How many; all of the bank where it has fewer.

        Returns:
            Cosines in float32 and indices into the bank in the order of :meth:`add`, both (Q, min(k, bank)) on the
            device of the queries, the nearest first.
        """
        self._check_queries(queries)
        k = min(k, len(self))
        normal = [F.normalize(part.float(), dim=1) for part in queries.detach().split(self.chunk_size)]
        best = [part.new_empty(len(part), 0, dtype=torch.int64) for part in normal]
        start = 0
        self._pack()
        for block, _ in self._blocks:
            for chunk in block.split(self.chunk_size):
                samples = F.normalize(chunk.to(queries.device).float(), dim=1)
                for i, part in enumerate(normal):
                    keys = _best_keys(part @ samples.T, start, k)
                    keys = torch.cat([best[i], keys], dim=1)
                    best[i] = keys.topk(min(k, keys.size(1)), dim=1).values
                start += len(chunk)
        return _read(torch.cat(best))

    def scores(self, queries: Tensor, k: int, temperature: float = 0.07) -> Tensor:
        """The classes' scores: the sum over the k nearest samples of the class of exp((cos - c) / temperature).

        c is the cosine of the nearest sample, a constant of the query that keeps the powers finite.

        Returns:
            (Q, C), float64, on the CPU; 0 for a class without a sample among the k.
        """
        cosines, labels = self._voters(queries, check_ks((k,)), temperature)
        scores = torch.zeros(len(queries), self.num_classes, dtype=torch.float64)
        return scores.scatter_add_(1, labels, _weights(cosines, temperature))

    def ranks(self, queries: Tensor, labels: Tensor, ks: Sequence[int], temperature: float = 0.07) -> Tensor:
        """How many classes come before the right one.

        Args:
            queries: (Q, d).
            labels: (Q,).
            ks: As of :func:`knn_accuracy`.
            temperature: As there.

        Returns:
            (Q, K) in the order of ``ks``, int64, on the CPU: 0 where the prediction is right, 2**31 where none of the
            k nearest is of the right class.
        """
        ks = check_ks(ks)
        labels = check_labels('labels of the queries', labels, len(queries), self.num_classes).cpu()
        cosines, voters = self._voters(queries, ks, temperature)
        weights = _weights(cosines, temperature)
        rows = max(1, _SCORES // self.num_classes)
        parts = [
            _ranks(weight, voter, label, ks, self.num_classes)
            for weight, voter, label in zip(weights.split(rows), voters.split(rows), labels.split(rows), strict=True)
        ]
        return torch.cat(parts)

    def accuracy(
        self, queries: Tensor, labels: Tensor, ks: Sequence[int] = (10, 20, 100, 200), temperature: float = 0.07
    ) -> dict[str, float]:
        """Top-1 and top-5 in % for each k; see :func:`knn_accuracy`.

        Raises:
            ValueError: If there is no query, or what is given does not fit.
        """
        if not len(queries):
            raise ValueError('there are no queries: an accuracy needs samples')
        return accuracies(self.ranks(queries, labels, ks, temperature), ks)

    def _voters(self, queries: Tensor, ks: Sequence[int], temperature: float) -> tuple[Tensor, Tensor]:
        if not isinstance(temperature, (int, float)) or not 0 < temperature < float('inf'):
            raise ValueError(f'temperature={temperature!r} must be a number above 0, such as 0.07')
        over = [k for k in ks if k > len(self)]
        if over and len(self):
            warnings.warn(f'k={over}: the bank has {len(self)} samples, and all of them vote', stacklevel=4)
        cosines, indices = self.neighbours(queries, max(ks))
        return cosines.cpu(), torch.cat([labels for _, labels in self._blocks])[indices.cpu()]

    def _check_queries(self, queries: Tensor) -> None:
        if not len(self):
            raise ValueError('the bank is empty: add features of the training set first')
        check_features('the queries', queries, self.dim)


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    num_classes: int,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk_size: int = 4096,
) -> dict[str, float]:
    r"""Accuracy of the weighted vote of the k nearest neighbours by cosine (Wu 2018, section 3.4).

    The score of a class c is :math:`\sum_{i \in N_k} 1[y_i = c] \exp(\cos(x, x_i) / 0.07)`. A class without a neighbour
    is never predicted, among the top five either. A k greater than the bank means all of the bank, with a warning.

    Args:
        bank: (N, d), any floating point dtype, of any length; usually the upstream training set.
        bank_labels: (N,).
        queries: (Q, d); the device of these computes.
        query_labels: (Q,).
        num_classes: Labels are below it.
        ks: Numbers of neighbours. Defaults to (10, 20, 100, 200).
        temperature: What cosines are divided by. Defaults to 0.07.
        chunk_size: Queries, and samples of the bank, that are compared at a time. Defaults to 4096.

    Returns:
        In %, by names such as 'top1/k=20' and 'top5/k=20'.

    Raises:
        ValueError: If what is given does not fit, is empty, or is not finite.
    """
    held = KNNBank(num_classes, chunk_size)
    held.add(bank, bank_labels)
    return held.accuracy(queries, query_labels, ks, temperature)


def accuracies(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Top-1 and top-5 in % from :meth:`KNNBank.ranks`."""
    found = {}
    for column, k in enumerate(ks):
        for top in (1, 5):
            found[f'top{top}/k={k}'] = 100 * float((ranks[:, column] < top).double().mean())
    return found


def check_ks(ks: Any) -> list[int]:
    """Numbers of neighbours, checked.

    Raises:
        ValueError: If they are none, or one stands twice.
    """
    given = list(ks) if isinstance(ks, Sequence) and not isinstance(ks, str) else []
    if not given or not all(map(is_count, given)) or len(set(given)) < len(given):
        raise ValueError(f'ks={ks!r} must be numbers of neighbours, each once, such as (10, 20, 100, 200)')
    return given


def _weights(cosines: Tensor, temperature: float) -> Tensor:
    cosines = cosines.double()
    return torch.exp((cosines - cosines[:, :1]) / temperature)


def _ranks(weights: Tensor, voters: Tensor, labels: Tensor, ks: Sequence[int], num_classes: int) -> Tensor:
    """Votes in float64 on the CPU, where the order of a sum is always the same."""
    scores = weights.new_zeros(len(weights), num_classes)
    earlier = torch.arange(num_classes) < labels[:, None]
    ranks = torch.empty(len(weights), len(ks), dtype=torch.int64)
    done = 0
    for column, k in sorted(enumerate(ks), key=lambda each: each[1]):
        scores.scatter_add_(1, voters[:, done:k], weights[:, done:k])
        done = min(k, weights.size(1))
        own = scores.gather(1, labels[:, None])
        before = ((scores > own) | (earlier & (scores == own))).sum(dim=1)
        ranks[:, column] = torch.where(own[:, 0] > 0, before, NEVER)
    return ranks


def _best_keys(cosines: Tensor, start: int, k: int) -> Tensor:
    """Keys of the k nearest of a chunk: the cosine in the high half, the index in the low one; no two are equal."""
    # What is both 0.0 and -0.0 must be one number.
    cosines = cosines + 0.0
    k = min(k, cosines.size(1))
    values, columns = cosines.topk(k, dim=1)
    keys = _keys(values, columns + start)
    # torch.topk takes any of equal values: where more are equal to the last than were taken, the first of them count.
    tied = (cosines >= values[:, -1:]).sum(dim=1) > k
    if bool(tied.any()):
        every = torch.arange(start, start + cosines.size(1), device=cosines.device)
        keys[tied] = _keys(cosines[tied], every).topk(k, dim=1).values
    return keys


def _keys(cosines: Tensor, indices: Tensor) -> Tensor:
    bits = cosines.view(torch.int32)
    return (_flip(bits).long() << 32) | (_LOW - indices)


def _flip(bits: Tensor) -> Tensor:
    """The bits of float32 as integers of the same order, and back."""
    return bits ^ ((bits >> 31) & _MAGNITUDE)


def _read(keys: Tensor) -> tuple[Tensor, Tensor]:
    return _flip((keys >> 32).int()).view(torch.float32), _LOW - (keys & _LOW)
