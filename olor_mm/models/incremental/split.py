"""Which classes come in which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ['TaskSplit', 'is_count']


@dataclass(frozen=True)
class TaskSplit:
    """The classes of a data set, shared out to tasks that are learnt one after the other.

    Args:
        tasks: The labels of each task, in the order of its head's outputs; every label from 0 on occurs once.

    Raises:
        ValueError: If they are not so.
    """

    tasks: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        tasks = self.tasks
        right = isinstance(tasks, Sequence) and not isinstance(tasks, str) and len(tasks) > 0
        right = right and all(isinstance(task, Sequence) and len(task) > 0 for task in tasks)
        labels = sorted(label for task in tasks for label in task) if right else []
        if not labels or labels != list(range(len(labels))):
            raise ValueError(
                f'tasks={tasks!r:.200} must share out the labels 0, 1, ... to tasks, each label once, such as '
                'tasks=[[0, 2], [3, 1]]'
            )
        object.__setattr__(self, 'tasks', tuple(tuple(int(label) for label in task) for task in tasks))

    @classmethod
    def make(
        cls,
        num_classes: int,
        num_tasks: int | None = None,
        task_sizes: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> TaskSplit:
        """Share out classes in an order that a seed gives.

        The order is NumPy's legacy permutation, which is the same in every version; with the seeds that the authors of
        SLCA give (1993, 1996, 1997) it is theirs.

        Args:
            num_classes: How many classes there are.
            num_tasks: How many tasks of equal size. Defaults to None: ``task_sizes`` says it.
            task_sizes: How many classes each task has. Defaults to None.
            seed: Of the order of the classes. Defaults to None: that of the labels.

        Raises:
            ValueError: If the numbers do not fit together; the message names option, value and remedy.

        Example:
            >>> TaskSplit.make(5, task_sizes=[3, 2]).tasks
            ((0, 1, 2), (3, 4))
        """
        if not is_count(num_classes):
            raise ValueError(f'num_classes={num_classes!r} must be a number of classes, 1 at least')
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
            raise ValueError(
                f'seed={seed!r} must be a whole number from 0 to 2**32 - 1, or None for the labels in order'
            )
        sizes = _sizes(num_classes, num_tasks, task_sizes)
        order = range(num_classes) if seed is None else np.random.RandomState(seed).permutation(num_classes).tolist()
        ends = np.cumsum(sizes).tolist()
        return cls(tuple(tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)))

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    @property
    def num_classes(self) -> int:
        """How many classes all tasks have together."""
        return sum(map(len, self.tasks))

    @property
    def class_to_task(self) -> list[int]:
        """The task of each label."""
        table = [0] * self.num_classes
        for task, labels in enumerate(self.tasks):
            for label in labels:
                table[label] = task
        return table

    def seen(self, task: int) -> tuple[int, ...]:
        """The labels of a task and of those before it, in the order of the heads' outputs."""
        return tuple(label for labels in self.tasks[: task + 1] for label in labels)

    def record(self) -> list[list[int]]:
        """The tasks as JSON holds them."""
        return [list(task) for task in self.tasks]


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number of ``least`` at least."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _sizes(num_classes: int, num_tasks: int | None, task_sizes: Sequence[int] | None) -> list[int]:
    if task_sizes is not None:
        if isinstance(task_sizes, str) or not isinstance(task_sizes, Sequence) or not all(map(is_count, task_sizes)):
            raise ValueError(f'task_sizes={task_sizes!r} must be numbers of classes, each 1 at least, such as [50, 10]')
        if sum(task_sizes) != num_classes:
            raise ValueError(
                f'task_sizes={list(task_sizes)!r} are {sum(task_sizes)} classes in all, but num_classes={num_classes}'
            )
        if num_tasks not in (None, len(task_sizes)):
            raise ValueError(f'num_tasks={num_tasks!r}, but task_sizes has {len(task_sizes)}: give one of the two')
        return list(task_sizes)
    if num_tasks is None or not is_count(num_tasks):
        raise ValueError(f'num_tasks={num_tasks!r} must be a number of tasks, 1 at least, unless task_sizes is given')
    if num_tasks > num_classes:
        raise ValueError(f'num_tasks={num_tasks} is more than num_classes={num_classes}: each task needs a class')
    if num_classes % num_tasks:
        size, left = divmod(num_classes, num_tasks)
        sizes = [size + (task < left) for task in range(num_tasks)]
        raise ValueError(
            f'num_classes={num_classes} cannot be shared out evenly to num_tasks={num_tasks}: give the sizes, such as '
            f'task_sizes={sizes}'
        )
    return [num_classes // num_tasks] * num_tasks
