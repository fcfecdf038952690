"""What a class-incremental run writes down: its split, what each task gave, and the table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...engine.replacing import PART, put_in_place
from ...evaluation.continual import backward_transfer, forgetting
from ...models.incremental import TaskSplit
from ..errors import InputError
from .plan import task_dir, task_file

__all__ = ['TaskResult', 'begin', 'markdown', 'read_result', 'summary', 'write_json', 'write_result']


@dataclass
class TaskResult:
    """What a finished task gave.

    Attributes:
        task: From 0 on.
        classes: Its labels.
        num_seen: How many classes it was tested on: all so far.
        accuracy: Top-1 over these, %.
        metrics: All metrics of the test.
        alignment_loss: Mean loss of the last epoch of the alignment; None where there was none.
    """

    task: int
    classes: list[int]
    num_seen: int
    accuracy: float
    metrics: dict[str, float]
    alignment_loss: float | None = None


def begin(root: Path, split: TaskSplit, resume: bool) -> None:
    """Write down the split of a new run, or see that it is the one of the run that goes on.

    Raises:
        InputError: If the work dir holds a run and this is no resume, or the split is another one.
    """
    if int(os.environ.get('RANK', 0)) > 0:
        return
    file = root / 'split.json'
    if not resume and file.exists():
        raise InputError(
            f'{root} holds a class-incremental run already', 'to go on: --resume; to start anew: another --work-dir'
        )
    if not file.is_file():
        if resume and any(task_dir(root, task).is_dir() for task in range(split.num_tasks)):
            raise InputError(
                f'--resume: {file} is missing, which says what the tasks in {root} are',
                'restore it, or start anew: without --resume and with another --work-dir',
            )
        write_json(file, {'tasks': split.record()})
        return
    try:
        saved = json.loads(file.read_text(encoding='utf-8'))['tasks']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'--resume: {file} cannot be read: {error}', 'start anew with another --work-dir') from error
    if saved != split.record():
        raise InputError(
            f'--resume: the run in {root} has another split of the classes into tasks',
            f'there: {str(saved)[:120]}',
            f'here: {str(split.record())[:120]}',
            'take the incremental.seed, num_classes and num_tasks that it was started with, or another --work-dir',
        )


def read_result(root: Path, task: int) -> TaskResult | None:
    """What a task gave, or None where it is not finished.

    Raises:
        InputError: If it is finished, but what the next one starts from is missing.
    """
    file = task_dir(root, task) / 'result.json'
    if not file.is_file():
        return None
    try:
        result = TaskResult(**json.loads(file.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f'{file} cannot be read: {error}', 'remove it: the task is then tested again') from error
    if not task_file(root, task).is_file():
        raise InputError(
            f'task {task} is finished, but its weights and statistics are missing',
            f'looked for: {task_file(root, task)}',
            f'restore it, or remove {file}: the task is then finished again from its last checkpoint',
        )
    return result


def write_result(root: Path, result: TaskResult) -> None:
    """Say that a task is finished: the last thing that is written of it."""
    write_json(task_dir(root, result.task) / 'result.json', asdict(result))


def write_json(file: Path, content: Any) -> None:
    """Write a file that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'.{file.name}.{os.getpid()}{PART}')
    part.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    put_in_place(part, file)


def summary(results: Sequence[TaskResult]) -> dict[str, Any]:
    """What a run gave.

    Returns:
        'A_last', the accuracy after the last task; 'A_avg', the mean of those after each; 'forgetting' and
        'backward_transfer', None with one task; 'matrix', the accuracies on each task after each; 'tasks'.
    """
    accuracies = [result.accuracy for result in results]
    matrix = [row for row in map(each_task, results) if row]
    several = len(matrix) == len(results) > 1
    return {
        'A_last': accuracies[-1],
        'A_avg': sum(accuracies) / len(accuracies),
        'forgetting': forgetting(matrix) if several else None,
        'backward_transfer': backward_transfer(matrix) if several else None,
        'matrix': matrix,
        'tasks': [asdict(result) for result in results],
    }


def each_task(result: TaskResult) -> list[float]:
    """The accuracy on each task so far, %; empty where it was not measured."""
    row = [result.metrics.get(f'accuracy/task_{number}') for number in range(result.task + 1)]
    return [value for value in row if value is not None] if None not in row else []


def markdown(results: Sequence[TaskResult]) -> str:
    """The table of a run."""
    header = ['task', 'new classes', 'classes seen', 'top-1 over them, %', 'mean so far, %', 'on each task, %']
    rows = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    for number, result in enumerate(results, start=1):
        mean = sum(each.accuracy for each in results[:number]) / number
        apart = ', '.join(f'{value:.1f}' for value in each_task(result)) or '-'
        cells = [str(number), str(len(result.classes)), str(result.num_seen), f'{result.accuracy:.2f}', f'{mean:.2f}']
        rows.append(f'| {" | ".join([*cells, apart])} |')
    found = summary(results)
    last = f'A_last {found["A_last"]:.2f}, A_avg {found["A_avg"]:.2f}'
    if found['forgetting'] is not None:
        last += f', forgetting {found["forgetting"]:.2f}, backward transfer {found["backward_transfer"]:.2f}'
    return '\n'.join([*rows, '', last])
