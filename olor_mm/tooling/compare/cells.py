"""What one run of a comparison gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runs import Outcome, RunResult, read_run
from ..runs.read import rule_of
from ..runs.record import read_record
from .methods import Variant

__all__ = ['Cell', 'collect']


@dataclass
class Cell:
    """A method with a seed.

    Attributes:
        method: Label of the method.
        seed: Of the run.
        state: 'finished', 'failed', 'started' or 'missing'.
        work_dir: Of the run.
        log: Of its process.
        metric: Name of the metric.
        rule: Whether 'greater' or 'less' of it is better.
        value: Of a finished run; None where there is none.
        result: All else that was read.
        side_by_side: How many runs shared the machine at most while it was made.
        config: The config file that it was given.
        kept: What was measured of its last checkpoint, by names.
    """

    method: str
    seed: int
    state: str
    work_dir: Path
    log: Path
    metric: str | None = None
    rule: str = 'greater'
    value: float | None = None
    result: RunResult | None = None
    side_by_side: int = 1
    config: Path | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f'{self.method}, seed {self.seed}'

    def line(self) -> dict[str, Any]:
        """As a line of a table."""
        found = self.result
        return {
            'method': self.method,
            'seed': self.seed,
            'state': self.state,
            'metric': self.metric,
            'value': self.value,
            'trained': found and found.trained,
            'parameters': found and found.parameters,
            'seconds_per_iter': found and found.seconds_per_iter,
            'memory_mib': found and found.memory,
            'memory_of': found and found.memory_of,
            'memory_before_mib': found and found.memory_before,
            'device': found and found.device,
            'side_by_side': self.side_by_side,
            **self.kept,
            'work_dir': str(self.work_dir),
        }


def collect(variant: Variant, seed: int, outcome: Outcome, metric: str | None, which: str, rule: str | None) -> Cell:
    """Read a run.

    Args:
        variant: Its method.
        seed: Its seed.
        outcome: How it ended.
        metric: Which metric; None for the first one of its validations.
        which: 'last' or 'best'.
        rule: Whether 'greater' or 'less' is better; None goes by the metric's name.

    Raises:
        InputError: If it has no such metric.
    """
    cell = Cell(variant.label, seed, outcome.state, outcome.run.work_dir, outcome.log)
    cell.config = Path(outcome.run.argv[0])
    if outcome.state != 'finished':
        return cell
    cell.result = found = read_run(cell.work_dir)
    record = read_record(cell.work_dir)
    cell.side_by_side = max((int(each.get('side_by_side', 1)) for each in record.sessions), default=1) if record else 1
    if found.validations:
        cell.metric = found.check_metric(metric)
        cell.rule = rule or rule_of(cell.metric)
        chosen = found.last if which == 'last' else found.best(cell.metric, cell.rule)
        cell.value = chosen.get(cell.metric)
    return cell
