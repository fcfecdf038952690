"""What a run gave, read from what MMEngine wrote into its work dir."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..resume import latest_checkpoint
from ..run_facts import FACTS

__all__ = ['RunResult', 'read_run']

#: What a validation's record has besides metrics.
_NO_METRICS = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory')
_LESS = ('loss', 'error', 'perplexity')


@dataclass(frozen=True)
class RunResult:
    """What a run gave so far.

    Attributes:
        work_dir: Its folder.
        validations: One dict of metrics for each validation, in order, with its 'step': the epoch, or the iteration
            where the config logs metrics by iteration.
        curves: What was logged while it was trained (loss, lr, ...): name to pairs of iteration and value.
        seconds_per_iter: Median of all iterations, s; None where nothing says it.
        memory: Peak, MiB; None where nothing says it.
        memory_of: What that is of: 'GPU' is what torch had allocated there at most, 'process' the resident memory of
            the training process, without data workers.
        memory_before: Of 'process': the resident memory before the first step, MiB.
        trained: How many parameters were trained; None where nothing says it.
        parameters: How many the model has.
        device: Name of what it ran on.
        in_train: Whether the last that was logged is of the training, so that no validation came after it.
    """

    work_dir: Path
    validations: list[dict[str, float]] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    seconds_per_iter: float | None = None
    memory: float | None = None
    memory_of: str | None = None
    memory_before: float | None = None
    trained: int | None = None
    parameters: int | None = None
    device: str | None = None
    in_train: bool = False

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last validation; empty where there was none."""
        return dict(self.validations[-1]) if self.validations else {}

    @property
    def metric(self) -> str | None:
        """The first metric of the validations, which MMEngine's ``save_best='auto'`` takes too."""
        return next((key for key in self.last if key not in _NO_METRICS), None)

    def best(self, metric: str | None = None, rule: str | None = None) -> dict[str, float]:
        """Metrics of the validation that is best in one of them; the earliest of several. Empty where there is none.

        Args:
            metric: Which one. Defaults to None: :attr:`metric`.
            rule: Whether 'greater' or 'less' is better. Defaults to None: 'less' for losses and errors.

        Raises:
            InputError: If it is no metric of the validations.
        """
        if not self.validations:
            return {}
        name = self.check_metric(metric)
        sign = -1 if (rule or rule_of(name)) == 'less' else 1
        found = [each for each in self.validations if not math.isnan(each.get(name, math.nan))]
        return dict(max(found, key=lambda each: sign * each[name])) if found else {}

    def check_metric(self, metric: str | None = None) -> str:
        """The name of a metric.

        Args:
            metric: Its name. Defaults to None: :attr:`metric`.

        Raises:
            InputError: If it is none of the validations, or there were none.
        """
        name = self.metric if metric is None else metric
        known = [key for key in self.last if key not in _NO_METRICS]
        if name is None or name not in known:
            raise InputError(
                f'the metric {name!r} is not among those of {self.work_dir}', f'these are: {", ".join(known) or "none"}'
            )
        return name

    @cached_property
    def checkpoint(self) -> Path | None:
        """The last checkpoint; None where there is none."""
        return latest_checkpoint(str(self.work_dir))


def rule_of(metric: str) -> str:
    """Whether 'greater' or 'less' of a metric is better, by its name."""
    return 'less' if any(word in metric.lower() for word in _LESS) else 'greater'


def read_run(work_dir: str | Path) -> RunResult:
    """What a run gave: finished, interrupted or still going on.

    Where a run was interrupted and went on from an earlier checkpoint, what it did twice counts once.

    Args:
        work_dir: Its folder. MMEngine's LocalVisBackend, which its configs have, writes what is read here.

    Raises:
        InputError: If there is no such folder.
    """
    root = Path(work_dir)
    if not root.is_dir():
        raise InputError('the work dir of a run is missing', f'looked for: {root.absolute()}')
    validations: list[dict[str, float]] = []
    training: list[dict[str, float]] = []
    # What hooks log by themselves, such as the distance of each layer from theta_0.
    others: list[dict[str, float]] = []
    in_train = False
    for session in sorted(root.glob('*/vis_data')):
        lines = [*_lines(session / 'scalars.json')]
        for known, kind in ((training, 'train'), (validations, 'val'), (others, 'other')):
            mine = [line for line in lines if _kind(line) == kind]
            if mine:
                # An earlier session may have gone farther than its last checkpoint.
                first = mine[0]['step']
                known[:] = [each for each in known if each['step'] < first] + mine
        in_train = _kind(lines[-1]) != 'val' if lines else in_train
    facts = _facts(root)
    memory = [line['memory'] for line in [*training, *validations] if 'memory' in line]
    process = [fact['peak'] for fact in facts if fact.get('peak')]
    last: Mapping[str, Any] = facts[-1] if facts else {}
    seconds = last.get('seconds_per_iter')
    times = [line['time'] for line in training if 'time' in line]
    if seconds is None and times:
        seconds = statistics.median(times)
    return RunResult(
        work_dir=root,
        validations=validations,
        curves=_curves([*training, *others]),
        seconds_per_iter=seconds,
        memory=max(memory) if memory else max(process, default=None),
        memory_of='GPU' if memory else 'process' if process else None,
        memory_before=last.get('before'),
        trained=last.get('trained'),
        parameters=last.get('parameters'),
        device=last.get('device'),
        in_train=in_train,
    )


def _kind(line: Mapping[str, float]) -> str:
    """Whether a record is of the training or of a validation: MMEngine times both, and counts iterations in one."""
    if 'iter' in line:
        return 'train'
    return 'val' if 'time' in line else 'other'


def _lines(file: Path) -> Iterator[dict[str, float]]:
    """Records of a session, but for a last line that a kill has cut off."""
    if not file.is_file():
        return
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and 'step' in found:
            yield {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}


def _curves(training: list[dict[str, float]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in training:
        for key, value in line.items():
            if key not in ('step', 'iter'):
                curves.setdefault(key, []).append((line['step'], value))
    return curves


def _facts(root: Path) -> list[dict[str, Any]]:
    """What tools/train.py says of itself, session by session."""
    found = []
    for file in sorted(root.glob(f'*/vis_data/{FACTS}')):
        try:
            found.append(json.loads(file.read_text(encoding='utf-8')))
        except ValueError:
            continue
    return [fact for fact in found if isinstance(fact, dict)]
