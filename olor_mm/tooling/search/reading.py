"""What the runs of a search gave, read in terms of its metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...engine.replacing import remove
from ..runs import Outcome, read_run
from ..runs.read import _NO_METRICS
from ..runs.record import read_record
from .metric import Metric
from .plan import Plan
from .scores import Score, Verdict
from .space import Point

__all__ = ['Reader', 'remove_checkpoints']


class Reader:
    """Reads values of the search's metric; what its name and direction are may become known with the first validation.

    Args:
        plan: The search.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.metric: Metric = plan.metric

    def see(self, metrics: Mapping[str, float]) -> float:
        """The value in the metrics of a validation.

        Raises:
            InputError: If the metric is not among them, or its direction is unknown.
        """
        self.metric = self.metric.resolved([name for name in metrics if name not in _NO_METRICS])
        return float(metrics[str(self.metric.name)])

    def steps(self, folder: Path) -> list[tuple[int, float]]:
        """The value at each validation of a run so far, with the epoch or iteration."""
        return [(int(each['step']), self.see(each)) for each in read_run(folder).validations]

    def value(self, folder: Path) -> float | None:
        """What a finished run gave; None where it was not validated, or its value is no number."""
        found = [value for _, value in self.steps(folder)]
        known = [value for value in found if math.isfinite(value)]
        if not known or (self.plan.which == 'last' and not math.isfinite(found[-1])):
            return None
        if self.plan.which == 'last':
            return found[-1]
        return max(known) if self.metric.greater else min(known)

    def score(self, point: Point, name: str, outcomes: Iterable[tuple[int, Outcome]]) -> Score:
        """What a point gave.

        Args:
            point: max_level and power.
            name: Of the trial.
            outcomes: Seeds, and how their runs ended.
        """
        score = Score(point, name)
        for seed, outcome in outcomes:
            score.folders[seed] = str(outcome.run.work_dir)
            value = self.value(outcome.run.work_dir) if outcome.state == 'finished' else None
            if value is not None:
                score.values[seed] = value
            elif outcome.state == 'stopped':
                score.state, score.note = 'pruned', outcome.why
            else:
                score.state = 'failed'
                score.note = outcome.why or f'{self.metric.name} is missing or no number: {outcome.log}'
        if score.state == 'open' and score.values.keys() >= {*self.plan.seeds}:
            score.state = 'complete'
        return score


def remove_checkpoints(scores: Sequence[Score], verdict: Verdict) -> None:
    """Remove those of runs that have ended, but for the best point and plain fine-tuning."""
    for score in scores:
        if score is verdict.best or score.point.is_plain or score.state not in ('complete', 'pruned'):
            continue
        for folder in map(Path, score.folders.values()):
            record = read_record(folder)
            if record is not None and record.state in ('finished', 'stopped'):
                for path in [*folder.glob('*.pth'), folder / 'last_checkpoint']:
                    remove(path)
