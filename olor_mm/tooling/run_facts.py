"""What a run of tools/train.py says of itself beside its log: how much it trains, how fast, in how much memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..engine.replacing import PART

__all__ = ['FACTS', 'RunFactsHook']

#: Beside MMEngine's scalars.json.
FACTS = 'facts.json'
_MIB = 1024 * 1024


class RunFactsHook(Hook):
    """Writes ``facts.json`` beside the scalars: parameters, seconds of an iteration, memory of the process of rank 0.

    Written before the first step, after each validation and at the end. Nothing is done within an iteration.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}

    def before_train(self, runner: Any) -> None:
        self._facts['before'] = _resident('VmRSS')
        self._write(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        # A validation alone trains nothing.
        if self._facts:
            self._write(runner)

    def after_train(self, runner: Any) -> None:
        self._write(runner)

    def _write(self, runner: Any) -> None:
        if not is_main_process():
            return
        counts = _counts(runner.model)
        times = _times(runner)
        self._facts.update(
            trained=counts[0],
            parameters=counts[1],
            seconds_per_iter=statistics.median(times) if times else None,
            iterations=runner.iter,
            peak=_resident('VmHWM') or _peak(),
            device=_device(),
            torch=torch.__version__,
        )
        folder = Path(runner.log_dir, 'vis_data')
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f'.{FACTS}{PART}'
            part.write_text(json.dumps(self._facts) + '\n', encoding='utf-8')
            os.replace(part, folder / FACTS)
        except OSError as error:
            # No reason to end a training.
            runner.logger.warning(f'{folder / FACTS} cannot be written: {error}')


def _counts(model: torch.nn.Module) -> tuple[int | None, int | None]:
    """Parameters trained, and all; None where a rank has but a share of them."""
    if any('Sharded' in type(part).__name__ or 'FullyShard' in type(part).__name__ for part in model.modules()):
        return None, None
    params = list(model.parameters())
    return sum(p.numel() for p in params if p.requires_grad), sum(p.numel() for p in params)


def _times(runner: Any) -> list[float]:
    """Seconds of all iterations, from the beginning of the run; the first takes what comes once."""
    scalars = runner.message_hub.log_scalars
    times = [float(value) for value in scalars['train/time'].data[0]] if 'train/time' in scalars else []
    return times[1:] or times


def _resident(key: str) -> float | None:
    """A line of Linux's account of this process's memory, MiB; None elsewhere."""
    try:
        lines = Path('/proc/self/status').read_text(encoding='ascii', errors='replace').splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f'{key}:')), None)


def _peak() -> float:
    """The highest resident memory of this process, MiB, as POSIX has it."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / _MIB if sys.platform == 'darwin' else found / 1024


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU ({platform.machine()}), {torch.get_num_threads()} threads'
