"""The accuracy on each task alone, against counting by hand."""

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS

from olor_mm.evaluation import TaskAccuracy


def test_counts_each_task_alone() -> None:
    metric = METRICS.build(dict(type='olor_mm.TaskAccuracy', tasks=[[3, 1], [0], [2]]))
    assert isinstance(metric, TaskAccuracy)
    rng = np.random.default_rng(0)
    # No image of the label 2: its task says nothing.
    labels, found = rng.choice([0, 1, 3], 40), rng.integers(0, 4, 40)
    for start in range(0, 40, 8):
        batch = slice(start, start + 8)
        samples = [
            dict(gt_label=torch.tensor([int(y)]), pred_label=torch.tensor([int(p)]))
            for y, p in zip(labels[batch], found[batch], strict=True)
        ]
        metric.process(None, samples)
    first = np.isin(labels, [3, 1])
    assert metric.evaluate(40) == pytest.approx(
        {
            'accuracy/task_0': 100 * (found == labels)[first].mean(),
            'accuracy/task_1': 100 * (found == labels)[~first].mean(),
        }
    )


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match='a label is in two of them'):
        TaskAccuracy([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match='the label 7, which is in none of the tasks'):
        TaskAccuracy([[0], [1]]).process(None, [dict(gt_label=torch.tensor([7]), pred_label=torch.tensor([0]))])
