"""MMEngine METRICS of features and logits: kNN, nearest class mean, seen and unseen classes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from olor_mm.registry import METRICS

from .ausuc import margin_curve
from .head_metric import HOOK, BankMetric, HeadMetric, SeenClasses
from .knn import KNNBank, accuracies, check_ks
from .loaders import TRAIN
from .ncm import class_means, is_right, ncm_scores
from .seen_unseen import Margins, margin_accuracies

__all__ = ['KNNMetric', 'NCMMetric', 'SeenUnseenMetric']


@METRICS.register_module()
class KNNMetric(BankMetric):
    """Accuracy (%) of the k nearest neighbours in a bank, by the features that the head is given.

    Figures are 'knn/top1/k=20' and 'knn/top5/k=20' for each k; see :func:`~olor_mm.evaluation.knn_accuracy`. The bank
    is extracted anew at each evaluation, with the weights that are evaluated, and every rank has all of it; each
    scores its own samples.

    Args:
        bank: What neighbours are looked up in: the config of a data loader whose labels mean the same classes, or
            'train_dataloader', the config's training set under the transforms of the evaluation. Defaults to
            'train_dataloader'.
        ks: Numbers of neighbours; all of the bank where it has fewer. Defaults to (10, 20, 100, 200).
        temperature: What cosines are divided by. Defaults to 0.07.
        num_classes: Labels are below it. Defaults to None: as many as the evaluated set names, or the bank has.
        chunk_size: Samples of the bank that are compared at a time. Defaults to 4096.
        bank_device: 'model', or 'cpu' where the memory of the GPU is short: slower. Defaults to 'model'.
        options: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's metrics.

    Raises:
        ValueError: If an option cannot be right.

    Example:
        >>> test_evaluator = [dict(type='Accuracy'), dict(type='olor_mm.KNNMetric', ks=(20,))]
        >>> custom_hooks = [dict(type='olor_mm.MetricsHook')]
    """

    default_prefix = 'knn'

    def __init__(
        self,
        bank: Any = TRAIN,
        ks: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        num_classes: int | None = None,
        chunk_size: int = 4096,
        bank_device: str = 'model',
        **options: Any,
    ) -> None:
        super().__init__(bank, num_classes, **options)
        if bank_device not in ('model', 'cpu'):
            raise ValueError(f"bank_device={bank_device!r} must be 'model' or 'cpu'")
        if not isinstance(temperature, (int, float)) or not 0 < temperature < float('inf'):
            raise ValueError(f'temperature={temperature!r} must be a number above 0, such as 0.07')
        self.ks, self.temperature = check_ks(ks), temperature
        self.chunk_size, self.bank_device = chunk_size, bank_device
        self._held: KNNBank | None = None
        KNNBank(1, chunk_size)

    def take(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Hold the bank."""
        over = [k for k in self.ks if k > len(features)]
        if over:
            print_log(
                f'KNNMetric.ks={over}: the bank has {len(features)} samples, and all of them vote',
                logger='current',
                level=logging.WARNING,
            )
        self._held = KNNBank(num_classes, self.chunk_size)
        self._held.add(features, labels)

    def score(self, features: Tensor, logits: Tensor, labels: Tensor) -> Iterator[tuple]:
        """The ranks of the right class, one for each k."""
        held = self._held
        if held is None:
            raise RuntimeError(f'KNNMetric has no bank: set {HOOK}')
        if self.bank_device == 'model':
            held.to(features.device)
        with warnings.catch_warnings():
            # Said once, with the bank.
            warnings.simplefilter('ignore')
            ranks = held.ranks(features, labels, self.ks, self.temperature)
        yield from map(tuple, ranks.tolist())

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracies from ranks."""
        self._held = None
        return accuracies(torch.tensor(results), self.ks)


@METRICS.register_module()
class NCMMetric(BankMetric):
    """Accuracy (%) of the nearest class mean, by the features that the head is given.

    The figure is 'ncm/top1'; with ``seen`` there are also 'ncm/S/Y', 'ncm/U/Y', 'ncm/S/S' and 'ncm/U/U', as of
    :class:`SeenUnseenMetric`. See :func:`~olor_mm.evaluation.class_means`.

    Args:
        bank: What the means are of; as of :class:`KNNMetric`.
        seen: Labels of the classes that were fine-tuned on, or the config of a loader in which they occur, or
            'train_dataloader'. Defaults to None.
        num_classes: As of :class:`KNNMetric`.
        options: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's metrics.
    """

    default_prefix = 'ncm'

    def __init__(self, bank: Any = TRAIN, seen: Any = None, num_classes: int | None = None, **options: Any) -> None:
        super().__init__(bank, num_classes, **options)
        self._seen = None if seen is None else SeenClasses('NCMMetric', seen)
        self._means: Tensor | None = None

    def prepare(self, model: Any, cfg: Mapping[str, Any], split: str) -> None:
        """Extract the bank, and find the classes."""
        super().prepare(model, cfg, split)
        if self._seen is not None:
            self._seen.find(cfg, split)

    def take(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Hold the means."""
        self._means = class_means(features, labels, num_classes)

    def score(self, features: Tensor, logits: Tensor, labels: Tensor) -> Iterator[tuple]:
        """Whether it is right, and what :class:`~olor_mm.evaluation.Margins` has."""
        if self._means is None:
            raise RuntimeError(f'NCMMetric has no bank: set {HOOK}')
        scores = ncm_scores(features, self._means)
        right = is_right(scores, labels.to(scores.device)).tolist()
        columns = [] if self._seen is None else _columns(Margins.of(scores, labels, self._seen.labels))
        yield from zip(right, *columns, strict=True)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracies."""
        right, *columns = zip(*results, strict=True)
        found = {'top1': 100 * sum(right) / len(right)}
        if columns:
            found.update(margin_accuracies(_margins(columns)))
            del found['Y/Y']
        return found


@METRICS.register_module()
class SeenUnseenMetric(HeadMetric):
    """Accuracies (%) on the classes that were fine-tuned on (S), the others (U) and all (Y), and AUSUC (0 to 1).

    Figures are 'seen_unseen/Y/Y', 'S/Y', 'U/Y', 'S/S', 'U/U' and 'AUSUC'; see
    :func:`~olor_mm.evaluation.seen_unseen_accuracies` and :func:`~olor_mm.evaluation.ausuc`. They are NaN where there
    are no samples of the kind.

    Args:
        seen: Labels of S; or the config of a data loader in which they occur; or 'train_dataloader', that of the
            config. No image of it is read. Defaults to 'train_dataloader'.
        gamma: What is added to the logits of U before the accuracies; AUSUC has no use for it. Defaults to 0.
        options: ``collect_device``, ``prefix`` and ``collect_dir`` of MMEngine's metrics.

    Raises:
        ValueError: If an option cannot be right.

    Example:
        >>> test_evaluator = [dict(type='Accuracy'), dict(type='olor_mm.SeenUnseenMetric', seen=[0, 1, 2])]
        >>> custom_hooks = [dict(type='olor_mm.MetricsHook')]
    """

    default_prefix = 'seen_unseen'

    def __init__(self, seen: Any = TRAIN, gamma: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        nothing = torch.zeros(0)
        margin_accuracies(Margins(nothing.bool(), nothing.bool(), nothing.double(), nothing.bool()), gamma)
        self._seen, self.gamma = SeenClasses('SeenUnseenMetric', seen), gamma

    def prepare(self, model: Any, cfg: Mapping[str, Any], split: str) -> None:
        """Find the classes."""
        self._seen.find(cfg, split)

    def score(self, features: Tensor, logits: Tensor, labels: Tensor) -> Iterator[tuple]:
        """What :class:`~olor_mm.evaluation.Margins` has."""
        yield from zip(*_columns(Margins.of(logits, labels, self._seen.labels)), strict=True)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Accuracies and the area."""
        margins = _margins(list(zip(*results, strict=True)))
        found = margin_accuracies(margins, self.gamma)
        both = 0 < int(margins.seen.sum()) < len(margins.seen)
        return {**found, 'AUSUC': margin_curve(margins).area if both else float('nan')}


def _columns(margins: Margins) -> list[list]:
    return [margins.seen.tolist(), margins.right.tolist(), margins.margin.tolist(), margins.seen_wins_ties.tolist()]


def _margins(columns: Sequence[Any]) -> Margins:
    seen, right, margin, ties = columns
    return Margins(
        torch.tensor(seen), torch.tensor(right), torch.tensor(margin, dtype=torch.float64), torch.tensor(ties)
    )
