"""DurableCheckpointHook: a checkpoint has its name only when it is complete, and the one before goes only then."""

import hashlib
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner, save_checkpoint

from olor_mm.registry import HOOKS

from . import zero
from .finite import LossWatch, check_resumed, check_weights
from .hook_options import check_metrics, check_options
from .integrity import last_complete
from .loading import load_from_local
from .replacing import PART, put_in_place, remove, restore
from .saved import changed_statement, warn

__all__ = ['CheckpointNotSavedError', 'DurableCheckpointHook']

#: Strategies whose checkpoints name themselves in other files, so that they cannot be renamed.
_SELF_NAMING = ('DeepSpeedStrategy', 'ColossalAIStrategy')


class CheckpointNotSavedError(RuntimeError):
    """A checkpoint could not be written; what was there before is untouched."""


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, such that no fault at any moment damages or loses a complete checkpoint.

    - A checkpoint is written under a temporary name in its folder, flushed to the disk and then renamed, and so is
      ``last_checkpoint``: a kill, a full disk or a power cut never leaves half a file under a final name. What a kill
      leaves under a temporary name is removed at the next save.
    - What ``max_keep_ckpts`` and ``save_best`` make superfluous is removed only after its successor is complete. The
      disk needs room for one checkpoint more than is kept.
    - Weights that are NaN or infinite end the run with an error before they are saved, so that they never replace good
      ones. A loss that is NaN or infinite is reported in the iteration it occurs in, and ends the run if it reached the
      weights. MMEngine copies every loss to the host as it is; nothing is copied for this.

    The files hold what MMEngine's hold. Storage that is not a local file system is written to as MMEngine does.

    Args:
        check_finite: Whether NaN and infinity are looked for. Defaults to True.
        max_invalid_losses: How many losses in a row may be NaN or infinite while the weights stay finite, as where a
            GradScaler skips the steps. Defaults to 100.
        kwargs: The options of ``CheckpointHook``.

    Raises:
        ValueError: If an option does not exist, or has a value that it cannot have.
        CheckpointNotSavedError: While training, if a checkpoint cannot be written.
        NonFiniteError: While training, if weights or losses are NaN or infinite.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type='olor_mm.DurableCheckpointHook', interval=1, max_keep_ckpts=2))
    """

    def __init__(self, *args: Any, check_finite: bool = True, max_invalid_losses: int = 100, **kwargs: Any) -> None:
        own = {'check_finite': check_finite, 'max_invalid_losses': max_invalid_losses}
        check_options(args, {**own, **kwargs})
        try:
            super().__init__(*args, **kwargs)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            text = error.args[0] if error.args else error
            raise ValueError(f'default_hooks.checkpoint cannot be built from {kwargs!r:.200}: {text}') from error
        self.watch = LossWatch(max_invalid_losses) if check_finite else None
        self._superseded: list[str] = []

    # ---------------------------------------------------------------- MMEngine's calls

    def before_train(self, runner: Runner) -> None:
        """Prepare as MMEngine does, and remove what an earlier run left half-written."""
        super().before_train(runner)
        self.file_backend: Any = _KeepsForNow(self.file_backend, self._superseded)
        self._remove_leftovers(runner)
        zero.announce(runner.optim_wrapper)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to go on from NaN; say so where the schedule is not the config's: MMEngine does not."""
        if not runner._resume:
            return
        if self.watch is not None:
            check_resumed(runner._load_from, checkpoint.get('state_dict') or {})
        cfg = (checkpoint.get('meta') or {}).get('cfg')
        changed = changed_statement('param_scheduler', cfg, runner.cfg.pretty_text)
        if changed is not None:
            told = "param_scheduler is {1} in the config, but the checkpoint's {0} goes on, as MMEngine resumes it"
            warn([told.format(*changed)])
        here, there = _number(runner.param_schedulers), _number(checkpoint.get('param_schedulers'))
        if there < here:
            warn([f'the checkpoint has the state of {there} of {here} param_schedulers: the others begin anew'])
        _say_if_over(runner, checkpoint.get('meta') or {})

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at the losses, then save where it is due."""
        if self.watch is not None:
            self.watch.look(runner, outputs)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        hub = runner.message_hub
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        options = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler, meta=meta)
        options.update(self.args, by_epoch=self.by_epoch, backend_args=self.backend_args)
        _Saves(runner, self).save_checkpoint(self.out_dir, name, self.file_client_args, **options)
        if is_main_process():
            with _written(Path(runner.work_dir, 'last_checkpoint'), runner) as part:
                part.write_text(str(self.last_ckpt))
        self._remove_superseded(runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        # Runner.val() by itself prepares nothing: there is no training, so no checkpoint of it.
        if not self.save_best or not hasattr(self, 'file_backend'):
            return
        check_metrics(self.key_indicators, metrics)
        # MMEngine removes the best one so far, saves the new best one, and saves the last one again because it names
        # the best one. Here the removal waits for the two others.
        super()._save_best_checkpoint(_Saves(runner, self), metrics)
        self._remove_superseded(runner)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        if not self._is_local():
            super()._publish_model(runner, ckpt_path)
            return
        if os.path.isdir(ckpt_path):
            runner.logger.warning(
                f'{ckpt_path} is not published: it is a folder of shards, and published_keys '
                f"({', '.join(self.published_keys)}) is for files, as strategy.state_dict_cfg='full' makes them"
            )
            return
        checkpoint = load_from_local(ckpt_path, 'cpu')
        dropped = [key for key in checkpoint if key not in self.published_keys]
        for key in dropped:
            del checkpoint[key]
        digest = hashlib.sha256(pickle.dumps(checkpoint)).hexdigest()[:8]
        final = Path(f'{os.path.splitext(ckpt_path)[0]}-{digest}.pth')
        with _written(final, runner) as part:
            save_checkpoint(checkpoint, str(part))
        runner.logger.info(f'{ckpt_path} is published as {final}, without {", ".join(dropped) or "omissions"}')

    # ---------------------------------------------------------------- files

    def _is_local(self) -> bool:
        inner = getattr(self.file_backend, 'inner', self.file_backend)
        return isinstance(getattr(inner, 'client', inner), LocalBackend)

    def save(self, runner: Runner, out_dir: str, name: str, arguments: tuple, options: dict) -> None:
        """Let the runner write under a temporary name, then rename. All ranks must call this.

        Args:
            runner: The runner.
            out_dir: The folder.
            name: The final name in it.
            arguments: Further arguments of ``runner.save_checkpoint``.
            options: Its keyword arguments.
        """
        if self.watch is not None:
            check_weights(runner, name, self.watch.since)
        if options.get('save_optimizer', True):
            zero.gather(runner.optim_wrapper)
        # A run that repeats an epoch replaces the best one by one of the same name.
        final = self.file_backend.join_path(out_dir, name)
        self._superseded[:] = [path for path in self._superseded if path != final]
        strategy = getattr(runner, 'strategy', None)
        if not self._is_local() or type(strategy).__name__ in _SELF_NAMING:
            runner.save_checkpoint(out_dir, name, *arguments, **options)
            return
        self._remove_leftovers(runner)
        if strategy is not None:
            # Ranks that write into one folder must not do so before it is tidied up.
            barrier()
        with _written(Path(final), runner, in_place=is_main_process()) as part:
            runner.save_checkpoint(out_dir, os.path.join(os.path.dirname(name), part.name), *arguments, **options)
            if strategy is not None:
                # Sharded checkpoints are folders that every rank writes into.
                barrier()

    def _remove_superseded(self, runner: Runner) -> None:
        """Now that their successors are complete."""
        paths, self._superseded[:] = list(self._superseded), []
        backend = self.file_backend.inner
        for path in paths if is_main_process() else ():
            if backend.isfile(path):
                backend.remove(path)
            elif backend.isdir(path):
                # Sharded checkpoints are folders.
                backend.rmtree(path)
            else:
                continue
            runner.logger.info(f'{path} is removed: it has a successor')

    def _remove_leftovers(self, runner: Runner) -> None:
        if not is_main_process():
            return
        remove(Path(runner.work_dir, f'.last_checkpoint{PART}'))
        folder = Path(self.out_dir)
        if self._is_local() and folder.is_dir():
            restore(folder, discard=True)
            for part in folder.glob(f'.*{PART}'):
                remove(part)


class _KeepsForNow:
    """A file backend that only notes what is to be removed."""

    def __init__(self, inner: Any, noted: list[str]) -> None:
        self.inner = inner
        self._noted = noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def remove(self, filepath: str) -> None:
        self._noted.append(str(filepath))

    rmtree = remove


class _Saves:
    """A runner whose checkpoints a hook saves."""

    def __init__(self, runner: Any, hook: DurableCheckpointHook) -> None:
        self._inner: Any = runner._inner if isinstance(runner, _Saves) else runner
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *arguments: Any, **options: Any) -> None:
        self._hook.save(self._inner, out_dir, filename, arguments, options)


def _say_if_over(runner: Runner, meta: Mapping[str, Any]) -> None:
    kind = 'epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iter'
    done, wanted = meta.get(kind, 0), runner.max_epochs if kind == 'epoch' else runner.max_iters
    if done >= wanted:
        print_log(
            f'the checkpoint is from the end of its run ({kind} {done} of {wanted}): there is nothing left to train; a '
            f'higher train_cfg.max_{kind}s goes on',
            logger='current',
            level=logging.WARNING,
        )


def _number(schedulers: Any) -> int:
    """How many there are, of one optimizer or of several."""
    parts = schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]
    return sum(len(part) for part in parts)


@contextmanager
def _written(final: Path, runner: Any, in_place: bool = True) -> Iterator[Path]:
    """The temporary name to write to; afterwards it is made durable and takes its final name, if ``in_place``.

    Raises:
        CheckpointNotSavedError: If the file system refuses.
    """
    part = final.with_name(f'.{final.name}{PART}')
    try:
        yield part
        if in_place:
            put_in_place(part, final)
    except OSError as error:
        remove(part)
        latest = last_complete(runner.work_dir)
        kept = f'the last complete checkpoint is {latest}' if latest else 'there is no earlier checkpoint'
        raise CheckpointNotSavedError(
            f'{final} could not be saved: {error.strerror or error}. Nothing saved earlier was touched; {kept}. '
            'Mend the folder (room, rights) or take another one (default_hooks.checkpoint.out_dir), then resume: the '
            'same command with --resume'
        ) from error
    except BaseException:
        if in_place:
            remove(part)
        raise
