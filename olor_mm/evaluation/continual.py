"""How well tasks that were learnt one after the other are kept: figures of a matrix of accuracies.

``accuracies[t][j]`` is the accuracy on task j after task t was learnt. What stands above the diagonal, tasks that were
not seen yet, is not looked at: it may be NaN, or left out (rows of 1, 2, 3, ... values).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ['a_avg', 'a_last', 'backward_transfer', 'forgetting']

Accuracies = Tensor | Sequence[Sequence[float]]


def a_last(accuracies: Accuracies, weights: Sequence[float] | None = None) -> float:
    """The accuracy after the last task, over all tasks.

    Args:
        accuracies: (T, T), in any unit; rows may end at the diagonal.
        weights: What the tasks count, such as their numbers of test images: then this is the accuracy on all of them.
            Defaults to None: each the same.

    Raises:
        ValueError: If the matrix is not one, or lacks an accuracy at or below the diagonal.
    """
    return _means(_matrix(accuracies), weights)[-1]


def a_avg(accuracies: Accuracies, weights: Sequence[float] | None = None) -> float:
    """The mean over the tasks of the accuracy on the tasks seen so far; the arguments are those of :func:`a_last`."""
    means = _means(_matrix(accuracies), weights)
    return sum(means) / len(means)


def forgetting(accuracies: Accuracies) -> float:
    r"""How far the accuracies on former tasks are below their best (Chaudhry 2018).

    The mean over tasks j < T of :math:`\max_{j \le t < T} a_{t,j} - a_{T,j}`; negative where tasks went on to improve.
    NaN with one task, of which nothing can be forgotten.

    Args:
        accuracies: (T, T), in any unit; rows may end at the diagonal.

    Raises:
        ValueError: If the matrix is not one, or lacks an accuracy at or below the diagonal.
    """
    matrix = _matrix(accuracies)
    drops = [matrix[task:-1, task].max() - matrix[-1, task] for task in range(len(matrix) - 1)]
    return float(torch.stack(drops).mean()) if drops else math.nan


def backward_transfer(accuracies: Accuracies) -> float:
    """What later tasks did to former ones (Lopez-Paz 2017); below 0 is forgetting.

    The mean over tasks j < T of a_{T,j} - a_{j,j}; NaN with one task.

    Args:
        accuracies: (T, T), in any unit; rows may end at the diagonal.

    Raises:
        ValueError: If the matrix is not one, or lacks an accuracy at or below the diagonal.
    """
    matrix = _matrix(accuracies)
    return float((matrix[-1, :-1] - matrix.diagonal()[:-1]).mean()) if len(matrix) > 1 else math.nan


def _matrix(accuracies: Accuracies) -> Tensor:
    """(T, T) in float64, NaN above the diagonal."""
    rows = [row.tolist() if isinstance(row, Tensor) else list(row) for row in accuracies]
    tasks = len(rows)
    if not tasks or any(not task < len(row) <= tasks for task, row in enumerate(rows)):
        raise ValueError(
            f'accuracies of {tasks} tasks must have {tasks} rows, row t with t to {tasks} values, but they have '
            f'{[len(row) for row in rows]}'
        )
    matrix = torch.full((tasks, tasks), math.nan, dtype=torch.float64)
    for task, row in enumerate(rows):
        matrix[task, : task + 1] = torch.tensor(row[: task + 1], dtype=torch.float64)
        if not bool(torch.isfinite(matrix[task, : task + 1]).all()):
            raise ValueError(
                f'accuracies[{task}]={row[: task + 1]!r:.80}: after task {task} the accuracies on tasks 0 to {task} '
                'must be known'
            )
    return matrix


def _means(matrix: Tensor, weights: Sequence[float] | None) -> list[float]:
    tasks = len(matrix)
    share = torch.ones(tasks, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)
    if share.shape != (tasks,) or not bool(((share > 0) & torch.isfinite(share)).all()):
        raise ValueError(f'weights={weights!r:.80} must be {tasks} numbers above 0, one for each task')
    return [float((row[: t + 1] * share[: t + 1]).sum() / share[: t + 1].sum()) for t, row in enumerate(matrix)]
