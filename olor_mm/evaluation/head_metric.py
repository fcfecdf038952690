"""What the METRICS of features and logits have in common."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from torch import Tensor

from .._options import check_known
from ._checks import is_count
from .capture import HeadOutputs
from .features import labels_of
from .loaders import TRAIN, bank_loader, labels_in

__all__ = ['HOOK', 'BankMetric', 'HeadMetric', 'SeenClasses']

#: What a config needs besides such a metric.
HOOK = "custom_hooks=[dict(type='olor_mm.MetricsHook')]"

_COMMON = ('collect_device', 'prefix', 'collect_dir')


class HeadMetric(BaseMetric):
    """A metric of what the head is given and gives; :class:`~olor_mm.evaluation.MetricsHook` hands it over.

    A subclass says in :meth:`prepare` what is to be done before the first batch, and in :meth:`score` what is kept of
    each sample: a tuple of numbers, so that the ranks have little to send.

    Args:
        options: ``collect_device``, 'cpu' or 'gpu': how the ranks send; ``prefix`` of the names of the figures;
            ``collect_dir``, a folder that all ranks can write to, for 'cpu'.

    Raises:
        ValueError: If an option does not exist.
    """

    def __init__(self, **options: Any) -> None:
        own = [name for name in inspect.signature(type(self)).parameters if name != 'options']
        check_known(type(self).__name__, options, [*own, *_COMMON])
        super().__init__(**options)
        self._outputs: HeadOutputs | None = None
        self._calls = 0

    def begin(self, model: Any, outputs: HeadOutputs, cfg: Mapping[str, Any], split: str) -> None:
        """Get ready for an evaluation; called by MetricsHook on all ranks.

        Args:
            model: The model, its weights being those that are evaluated.
            outputs: What will read its head.
            cfg: The config of the run.
            split: 'val' or 'test'.
        """
        self.results.clear()
        self._outputs, self._calls = outputs, outputs.calls
        self.prepare(model, cfg, split)

    def prepare(self, model: Any, cfg: Mapping[str, Any], split: str) -> None:
        """What is to be done before the first batch. Defaults to nothing."""

    def score(self, features: Tensor, logits: Tensor, labels: Tensor) -> Iterator[tuple]:
        """What is kept of each sample of a batch.

        Args:
            features: (N, d).
            logits: (N, C).
            labels: (N,), on the CPU.
        """
        raise NotImplementedError

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score a batch.

        Raises:
            RuntimeError: If the head was not read.
            ValueError: If it ran several times, or samples have no labels.
        """
        name, outputs = type(self).__name__, self._outputs
        if outputs is None or outputs.features is None or outputs.logits is None:
            raise RuntimeError(
                f'{name} gets no features and logits: set {HOOK}; if it is set, model.head was not called as a module'
            )
        runs, self._calls = outputs.calls - self._calls, outputs.calls
        if runs != 1 or len(outputs.features) != len(data_samples):
            raise ValueError(
                f'{name}: the head ran {runs} times for a batch of {len(data_samples)} samples, and last gave '
                f'{len(outputs.features)} rows; one run is needed: test without --tta'
            )
        labels = labels_of(data_samples)
        self.results.extend(self.score(outputs.features, outputs.logits, labels))


class BankMetric(HeadMetric):
    """A metric that compares with the features of another set.

    Args:
        bank: See :class:`KNNMetric`.
        num_classes: See there.
        options: As of :class:`HeadMetric`.
    """

    def __init__(self, bank: Any, num_classes: int | None, **options: Any) -> None:
        super().__init__(**options)
        if num_classes is not None and not is_count(num_classes):
            raise ValueError(f'num_classes={num_classes!r} must be a whole number of 1 or more')
        self.bank, self.num_classes = bank, num_classes

    def prepare(self, model: Any, cfg: Mapping[str, Any], split: str) -> None:
        """Extract the features of the bank, on all ranks."""
        name = type(self).__name__
        if self._outputs is None:
            raise RuntimeError(f'{name} has no bank: set {HOOK}')
        features, labels = self._outputs.bank(model, bank_loader(f'{name}.bank', self.bank, cfg, split), name)
        named = len((self.dataset_meta or {}).get('classes') or ())
        self.take(features, labels, self.num_classes or max(named, int(labels.max()) + 1))

    def take(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Take the bank, which is on the CPU."""
        raise NotImplementedError


class SeenClasses:
    """The option ``seen``: labels, or where they occur."""

    def __init__(self, metric: str, given: Any) -> None:
        listed = isinstance(given, Sequence) and not isinstance(given, str) and all(is_count(each, 0) for each in given)
        if not listed and not isinstance(given, Mapping) and given != TRAIN:
            raise ValueError(
                f'{metric}.seen={given!r:.60} must be labels, such as [0, 1, 2], {TRAIN!r}, or the config of a data '
                'loader in which they occur'
            )
        self._name, self._given = f'{metric}.seen', given
        self.labels: list[int] = list(given) if listed else []

    def find(self, cfg: Mapping[str, Any], split: str) -> None:
        """Look through a data set, once."""
        self.labels = self.labels or labels_in(bank_loader(self._name, self._given, cfg, split))
