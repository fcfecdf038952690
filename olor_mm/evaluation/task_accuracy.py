"""The accuracy on each task alone, when the classes of a data set came in tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from olor_mm.registry import METRICS

__all__ = ['TaskAccuracy']


@METRICS.register_module()
class TaskAccuracy(BaseMetric):  # type: ignore[misc]
    """Top-1 on the images of each task, with all classes to choose from.

    Over tasks it is a row of the matrix that :func:`~olor_mm.evaluation.forgetting` and
    :func:`~olor_mm.evaluation.backward_transfer` are of.

    Args:
        tasks: The labels of each task.
        collect_device: Where the ranks' results are gathered, 'cpu' or 'gpu'. Defaults to 'cpu'.
        prefix: In front of ``task_0`` and so on. Defaults to None: 'accuracy'.

    Raises:
        ValueError: If a label is in two tasks, or in none of them when an image has it.
    """

    default_prefix = 'accuracy'

    def __init__(self, tasks: Sequence[Sequence[int]], collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self._task = {int(label): number for number, labels in enumerate(tasks) for label in labels}
        if len(self._task) != sum(len(labels) for labels in tasks):
            raise ValueError(f'tasks={tasks!r:.200}: a label is in two of them')

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take the predictions for a batch: ``pred_label`` and ``gt_label`` of each."""
        for sample in data_samples:
            label = int(torch.as_tensor(sample['gt_label']).item())
            if label not in self._task:
                raise ValueError(f'an image has the label {label}, which is in none of the tasks')
            self.results.append((self._task[label], int(torch.as_tensor(sample['pred_label']).item()) == label))

    def compute_metrics(self, results: list[tuple[int, bool]]) -> dict[str, float]:
        """%, of the tasks that there were images of."""
        found: dict[str, float] = {}
        for number in sorted({task for task, _ in results}):
            right = [correct for task, correct in results if task == number]
            found[f'task_{number}'] = 100.0 * sum(right) / len(right)
        return found
