"""Pseudo cross-validation: an ordinary run for each fold, and its gamma."""

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from torch import Tensor

from ...evaluation.calibration import BestGamma, pcv_fold
from ...registry import type_name
from .. import launch, settings
from ..errors import InputError, say
from ..incremental.results import write_json
from ..run_checkpoint import check_run_checkpoint
from ..signals import Terminated, terminable
from .bench import Bench, logits_of, put_in, read_checkpoint, run_name
from .plan import Plan, fold_dir, loader_of

__all__ = ['cross_validate']


def cross_validate(
    bench: Bench, training: Config, plan: Plan, root: Path, resume: bool, notes: Sequence[str], argv: Sequence[str]
) -> list[BestGamma | None]:
    """Run the folds that are not finished; all ranks must call this.

    Args:
        bench: For what the pre-trained model says.
        training: The config without its evaluation.
        plan: What is to be done.
        root: The work dir of the calibration.
        resume: Whether an interrupted fold goes on.
        notes: Lines for the log.
        argv: The command line, for the text after Ctrl-C.

    Returns:
        What each fold has found.
    """
    held_out = loader_of(training, plan.seen, dict(share=plan.share, seed=plan.seed))
    before: Tensor | None = None
    found = []
    for number, fold in enumerate(plan.folds):
        result = _read(root, number) if resume else None
        if result is None:
            if before is None:
                bench.to_pretrained()
                before, labels = bench.logits(held_out)
                _warn_of_random_head(before, labels)
            say(
                f'PCV, fold {number + 1} of {len(plan.folds)}: fine-tuning on {len(fold.seen)} classes, '
                f'{len(fold.absent)} absent'
            )
            tuned, labels = _train(training, plan, number, root, resume, notes, argv, held_out)
            best = pcv_fold(tuned, before, labels, fold.seen, fold.absent)
            if is_main_process():
                write_json(fold_dir(root, number) / 'result.json', {'best': None if best is None else asdict(best)})
            barrier()
            result = (best,)
        found.append(result[0])
        say(_told(number, len(plan.folds), result[0]))
    return found


def _train(
    training: Config,
    plan: Plan,
    number: int,
    root: Path,
    resume: bool,
    notes: Sequence[str],
    argv: Sequence[str],
    held_out: Any,
) -> tuple[Tensor, Tensor]:
    """Fine-tune on the pseudo-seen classes; logits and labels of the images that were held out."""
    cfg = plan.fold_config(training, number, root)
    cfg.experiment_name = run_name(cfg, f'fold_{number}')
    said = [*notes, *(settings.apply_resume(cfg, 'auto') if resume else [])]
    if cfg.get('resume'):
        check_run_checkpoint(cfg.load_from, *launch._rollback_of(cfg))
    how = f'in fold {number + 1} of {len(plan.folds)}; to go on, give the same command with --resume:\n  '
    how += shlex.join([Path(sys.executable).name, sys.argv[0], *argv, *([] if '--resume' in argv else ['--resume'])])
    try:
        with terminable(last_words=lambda: say(f'terminated {how}')):
            runner = launch._build_runner(cfg, said)
            runner.train()
            if any(type_name(hook.get('type')) == 'EMAHook' for hook in cfg.get('custom_hooks') or []):
                # A checkpoint has the averaged weights, which are those of a test.
                file = str(settings.latest_checkpoint(cfg.work_dir))
                put_in(runner, read_checkpoint(file), file)
            logits = logits_of(runner, held_out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted {how}') from None
    except Terminated:
        raise Terminated(f'terminated {how}') from None
    del runner
    gc.collect()
    return logits


def _warn_of_random_head(logits: Tensor, labels: Tensor) -> None:
    """Say so where the pre-trained model knows next to nothing: its head may be drawn at random."""
    right = float((logits.argmax(dim=1) == labels).double().mean())
    if logits.size(1) >= 10 and right < 2 / logits.size(1):
        say(
            f'warning: the pre-trained model is right in {100 * right:.2f}% of the training images held out, of '
            f'{logits.size(1)} classes: its head has to come from pre-training too, by load_from or model.init_cfg'
        )


def _read(root: Path, number: int) -> tuple[BestGamma | None] | None:
    """What a finished fold has found; None where it is not finished."""
    file = fold_dir(root, number) / 'result.json'
    if not file.is_file():
        return None
    try:
        best = json.loads(file.read_text(encoding='utf-8'))['best']
        return (None if best is None else BestGamma(**best),)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{file} cannot be read: {error}', 'remove it: the fold is then measured again') from error


def _told(number: int, count: int, best: BestGamma | None) -> str:
    start = f'PCV, fold {number + 1} of {count}: '
    if best is None:
        return f'{start}no gamma gives the pseudo-absent classes the accuracy of the pre-trained model'
    return (
        f'{start}gamma {best.gamma:.3f}; on images held out {best.overall:.2f}% of all, {best.unseen:.2f}% of the '
        f'pseudo-absent classes (pre-trained: {best.least_unseen:.2f}%)'
    )
