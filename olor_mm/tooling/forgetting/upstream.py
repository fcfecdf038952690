"""What the model knew before: how much of it is still known, measured on images of the pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor

from ...evaluation.features import extract_features
from ...evaluation.heads import OriginalHead
from ...evaluation.knn import knn_accuracy
from ..errors import InputError

__all__ = ['Upstream', 'head_accuracy']


@dataclass
class Upstream:
    """Images of the pre-training, and what is asked of a model on them.

    Args:
        bank: Data set with labels to which the nearest neighbours are looked up; None for no kNN.
        queries: Data set with labels that is asked about.
        loader: What both are read with.
        classes: Names, in the order of the labels.
        record: What results depend on besides the weights.
        ks: Of kNN.
        reader: A classifier that is given the backbone; None for the model itself.
        head: The original head; None where it cannot be had.
        outputs: Its output for each label.
        present: The labels that occur among the queries, ascending.
        notes: What is to be said of it in words.
    """

    bank: Any
    queries: Any
    loader: Mapping[str, Any]
    classes: Sequence[str]
    record: dict[str, Any]
    ks: Sequence[int]
    reader: Any = None
    head: OriginalHead | None = None
    outputs: list[int] = field(default_factory=list)
    present: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def measure(self, model: Any) -> dict[str, Any]:
        """kNN accuracy and that of the original head, %.

        Args:
            model: The model of the fine-tuning, not wrapped.

        Returns:
            ``knn``, as ``knn_accuracy`` has it, and ``head``: ``all/top1`` and ``all/top5`` over all of its outputs,
            ``upstream/top1`` and so on over those of the upstream classes.
        """
        reader = model if self.reader is None else self._given(model)
        found: dict[str, Any] = {}
        queries, labels = extract_features(reader, self._loader(self.queries), dtype=torch.float32)
        if self.bank is not None:
            bank, bank_labels = extract_features(reader, self._loader(self.bank), dtype=torch.float32)
            found['knn'] = knn_accuracy(bank, bank_labels, queries, labels, len(self.classes), ks=self.ks)
        if self.head is not None:
            found['head'] = head_accuracy(self.head, queries, labels, self.outputs, self.present)
        return found

    def _given(self, model: Any) -> Any:
        device = next(model.parameters()).device
        self.reader.to(device)
        # The module itself: what a method put into it comes with it.
        self.reader.backbone = model.backbone
        return self.reader

    def _loader(self, dataset: Any) -> Any:
        return Runner.build_dataloader({**self.loader, 'dataset': dataset})


@torch.no_grad()
def head_accuracy(
    head: OriginalHead, features: Tensor, labels: Tensor, outputs: Sequence[int], present: Sequence[int]
) -> dict[str, float]:
    """How often a head is right, %.

    Args:
        head: The head.
        features: [N, d], what it is given.
        labels: [N], of the data.
        outputs: The output of the head for each label.
        present: The labels that occur, ascending.

    Returns:
        ``all/top1`` and ``all/top5`` over all of its outputs, ``upstream/top1`` and ``upstream/top5`` over those of
        ``present``; no top-5 among fewer than 6.
    """
    chosen, among = torch.tensor(list(outputs)), torch.tensor(list(present))
    if features.shape[1] != head.in_features:
        raise InputError(
            f'the backbone gives {features.shape[1]} features, but the original head takes {head.in_features}',
            'name its file with --head FILE, or leave it out: --measures knn',
        )
    logits = torch.cat([head(part) for part in features.float().split(4096)])
    found = {}
    for name, scores, wanted in (
        ('all', logits, chosen[labels]),
        ('upstream', logits[:, chosen[among]], torch.searchsorted(among, labels)),
    ):
        for k in (1, 5):
            if k == 1 or scores.shape[1] > k:
                right = (scores.topk(k, 1).indices == wanted[:, None]).any(1)
                found[f'{name}/top{k}'] = 100 * float(right.double().mean())
    return found
