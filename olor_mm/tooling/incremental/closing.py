"""What follows a task's training: statistics of its classes, alignment of the heads, the test, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, broadcast, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from torch import nn

from ...engine.loading import load_from_local
from ...engine.replacing import PART, put_in_place
from ...models.incremental import ClassMoments, ClassStatistics, IncrementalClsHead, align
from ..errors import InputError
from .plan import IncrementalSettings, statistics_loader, task_file
from .results import TaskResult, write_result

__all__ = ['class_statistics', 'close_task', 'load_statistics']


def close_task(
    runner: Runner, settings: IncrementalSettings, task: int, root: Path, before: dict[int, ClassStatistics]
) -> TaskResult:
    """Finish a task whose training is over; all ranks must call this.

    Args:
        runner: That of the task.
        settings: ``incremental``.
        task: From 0 on.
        root: The work dir of the run.
        before: Statistics of former tasks, as far as they are in memory; those of this one are added.

    Returns:
        What the task gave.
    """
    model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    head, split = model.head, settings.split
    before[task] = class_statistics(runner, settings, split.tasks[task])
    loss = None
    with head.kept():
        state = _to_cpu(model)
        if task and settings.options is not None:
            for former in range(task):
                if former not in before:
                    before[former] = load_statistics(root, former, split.tasks[former])
            joint = ClassStatistics.join([before[each] for each in range(task + 1)])
            loss = align(head.heads, split, joint, settings.options, int(runner.seed))
            for param in head.heads.parameters():
                broadcast(param.data)
            head.aligned.fill_(True)
            runner.logger.info(f'the heads of {task + 1} tasks are aligned; loss {loss:.4f}')
        metrics = {name: float(value) for name, value in runner.test().items()}
        if settings.metric not in metrics:
            raise InputError(
                f'incremental.metric={settings.metric!r} is not among the metrics of the test',
                f'these are: {", ".join(metrics)}',
            )
        aligned = _to_cpu(model)
    result = TaskResult(
        task, list(split.tasks[task]), len(split.seen(task)), metrics[settings.metric], metrics, alignment_loss=loss
    )
    if is_main_process():
        meta = dict(cfg=runner.cfg.pretty_text, seed=int(runner.seed))
        kept = dict(task=task, tasks=split.record(), statistics=before[task].state_dict())
        kept['aligned'] = {name: value for name, value in aligned.items() if name.startswith('head.')}
        _save(dict(meta=meta, state_dict=state, incremental=kept), task_file(root, task))
        if task == split.num_tasks - 1:
            _save(dict(meta=meta, state_dict=aligned), root / 'model.pth')
        write_result(root, result)
    barrier()
    return result


@torch.no_grad()
def class_statistics(runner: Runner, settings: IncrementalSettings, labels: Sequence[int]) -> ClassStatistics:
    """Those of the features of a task's training images, under the transforms of the test; each image counts once."""
    model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    head: IncrementalClsHead = model.head
    loader = runner.build_dataloader(statistics_loader(runner.cfg), seed=runner.seed)
    moments = ClassMoments(labels, head.in_channels)
    model.eval()
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        features = head.pre_logits(model.extract_feat(data['inputs']))
        moments.update(features, torch.cat([sample.gt_label for sample in data['data_samples']]))
    moments.reduce()
    statistics = moments.statistics(settings.ridge)
    runner.logger.info(f'statistics of {len(labels)} classes from {sum(statistics.counts):,} images')
    return statistics


def load_statistics(root: Path, task: int, labels: Sequence[int]) -> ClassStatistics:
    """Those that a finished task left.

    Raises:
        InputError: If they are missing, or of other classes.
    """
    file = task_file(root, task)
    if not file.is_file():
        raise InputError(
            f'the statistics of task {task} are missing, which the alignment draws from', f'looked for: {file}'
        )
    kept = load_from_local(str(file), 'cpu').get('incremental')
    try:
        statistics = ClassStatistics.load((kept or {}).get('statistics'))
    except ValueError:
        raise InputError(
            f'the statistics of task {task} are missing, which the alignment draws from',
            f'looked in: {file}',
            'remove result.json beside it, and give --resume: the task is then finished again',
        ) from None
    if list(statistics.classes) != list(labels):
        raise InputError(f'{file} has the statistics of the classes {statistics.classes}, not of {list(labels)}')
    return statistics


def start_file(root: Path) -> Path:
    """The weights at the start of the first task."""
    return root / 'start.pth'


def save_start(runner: Runner, root: Path) -> None:
    """Keep the weights that a run starts from; rank 0 writes."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if is_main_process():
        _save(dict(state_dict=_to_cpu(model)), start_file(root))
    barrier()


def _to_cpu(model: nn.Module) -> Any:
    return {name: value.clone() for name, value in weights_to_cpu(get_state_dict(model)).items()}


def _save(content: Any, file: Path) -> None:
    part = file.with_name(f'.{file.name}{PART}')
    torch.save(content, part)
    put_in_place(part, file)


def describe(cfg: Config) -> str:
    """How long a task is trained, in words."""
    train = cfg.train_cfg
    return f'{train.max_epochs} epochs' if train.get('max_epochs') else f'{train.max_iters} iterations'
