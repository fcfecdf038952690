"""The command line of tools/slca.py, and the loop over the tasks."""

from __future__ import annotations

import copy
import gc
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...models.incremental import ClassStatistics
from .. import launch, settings
from ..errors import InputError, say
from ..options import incremental_parser
from ..pretrained import check_vit_names, replace_pretrained
from ..run_checkpoint import check_run_checkpoint
from ..signals import Terminated, terminable
from . import results
from .closing import close_task, describe, save_start, start_file
from .plan import IncrementalSettings, check_config, forget_pretrained, task_config
from .results import TaskResult

__all__ = ['incremental']

_runs = itertools.count()


def incremental(argv: Sequence[str]) -> None:
    """Learn one task after the other, as ``tools/slca.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the data, the weights or the work dir is the user's to mend.
        KeyboardInterrupt: On Ctrl-C, with a text that says how to go on.
        Terminated: On SIGTERM, likewise.
    """
    args = incremental_parser().parse_args(argv)
    cfg, notes = launch._configure(args)
    plan = IncrementalSettings.from_cfg(cfg.get('incremental'))
    check_config(cfg, plan)
    if args.amp:
        settings.apply_amp(cfg)
    if args.pretrained:
        notes += replace_pretrained(cfg, args.pretrained)
    launch._check_rollback(cfg)
    root = Path(cfg.work_dir)
    done: list[TaskResult] = []
    results.begin(root, plan.split, args.resume)
    while args.resume and len(done) < plan.split.num_tasks:
        found = results.read_result(root, len(done))
        if found is None:
            break
        done.append(found)
    first = copy.deepcopy(cfg)
    if done:
        # All weights come from the last finished task.
        forget_pretrained(first)
        first.load_from = None
    launch._check(first, 'train', 'val', 'test')
    check_vit_names(first)
    _say_begin(plan, done)
    statistics: dict[int, ClassStatistics] = {}
    for task in range(len(done), plan.split.num_tasks):
        done.append(_run_task(cfg, plan, task, root, args.resume, notes, statistics, argv))
        _say_task(done, plan)
    if is_main_process():
        table = results.markdown(done)
        results.write_json(root / 'results.json', results.summary(done))
        (root / 'results.md').write_text(f'{table}\n', encoding='utf-8')
        print(table)


def _run_task(
    base: Config,
    plan: IncrementalSettings,
    task: int,
    root: Path,
    resume: bool,
    notes: Sequence[str],
    statistics: dict[int, ClassStatistics],
    argv: Sequence[str],
) -> TaskResult:
    cfg = task_config(base, plan, task, root)
    # Of its own in this process: MMEngine keeps message hubs and visualizers by name.
    cfg.experiment_name = f'{Path(cfg.filename or "run").stem}_task_{task}_{next(_runs)}'
    said = [*notes, *(settings.apply_resume(cfg, 'auto') if resume else [])]
    resumed = bool(cfg.get('resume'))
    if resumed:
        check_run_checkpoint(cfg.load_from, *launch._rollback_of(cfg))
    if (resumed or task) and (cfg.optim_wrapper.get('rollback') or {}).get('anchor') != 'init_cfg':
        # All weights come from a checkpoint: the files that the run started from may be gone by now.
        forget_pretrained(cfg)
    if plan.olor_anchor == 'pretrained' and (resumed or task) and not start_file(root).is_file():
        raise InputError(
            "incremental.olor_anchor='pretrained': the weights that the run started from are missing",
            f'looked for: {start_file(root)}',
            "restore the file, or start anew with another --work-dir; olor_anchor='task' needs none",
        )
    say(f'task {task + 1} of {plan.split.num_tasks}: {len(plan.split.tasks[task])} classes, {describe(cfg)}')
    how = f'in task {task + 1} of {plan.split.num_tasks}; to go on, give the same command with --resume:\n  '
    how += shlex.join([Path(sys.executable).name, sys.argv[0], *argv, *([] if '--resume' in argv else ['--resume'])])
    try:
        with terminable(last_words=lambda: say(f'terminated {how}')):
            runner = launch._build_runner(cfg, said)
            if task == 0 and plan.olor_anchor == 'pretrained' and not resumed:
                runner.register_hook(_KeepStart(root))
            runner.train()
            result = close_task(runner, plan, task, root, statistics)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted {how}') from None
    except Terminated:
        raise Terminated(f'terminated {how}') from None
    del runner
    gc.collect()
    return result


class _KeepStart(Hook):
    """Keeps the weights right before the first step."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def before_train(self, runner: Runner) -> None:
        save_start(runner, self._root)


def _say_begin(plan: IncrementalSettings, done: Sequence[TaskResult]) -> None:
    split = plan.split
    sizes = ', '.join(str(len(task)) for task in split.tasks)
    say(f'{split.num_classes} classes in {split.num_tasks} tasks ({sizes}), order of seed {plan.seed}')
    if done:
        say(f'--resume: {len(done)} of {split.num_tasks} tasks are finished')


def _say_task(done: Sequence[TaskResult], plan: IncrementalSettings) -> None:
    found = results.summary(done)
    last = done[-1]
    say(
        f'task {len(done)} of {plan.split.num_tasks} is finished: top-1 {last.accuracy:.2f}% over the {last.num_seen} '
        f'classes seen; mean so far {found["A_avg"]:.2f}%'
    )
