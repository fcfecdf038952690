"""The runs of each method, put together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cells import Cell
from .methods import Variant
from .statistics import Difference, difference, holm, mean_and_std

__all__ = ['Row', 'rows_of']


@dataclass
class Row:
    """A method over its seeds.

    Attributes:
        method: Its label.
        cells: Its runs, by seed.
        values: Seed to metric, of finished runs.
        mean: Of the metric.
        std: Sample standard deviation; None of one seed.
        difference: From the reference; None of the reference itself.
        trained: Parameters trained.
        parameters: Of the model.
        seconds_per_iter: Mean over the seeds, s.
        memory: Mean over the seeds, MiB.
        kept: Mean and sample standard deviation of what was measured of the checkpoints, by name.
    """

    method: str
    cells: list[Cell]
    values: dict[int, float] = field(default_factory=dict)
    mean: float | None = None
    std: float | None = None
    difference: Difference | None = None
    trained: int | None = None
    parameters: int | None = None
    seconds_per_iter: float | None = None
    memory: float | None = None
    kept: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        """Seeds whose run did not finish."""
        return [cell.seed for cell in self.cells if cell.state != 'finished']

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        found = {key: value for key, value in vars(self).items() if key not in ('cells', 'difference', 'kept')}
        found['difference'] = None if self.difference is None else vars(self.difference)
        found['kept'] = {name: {'mean': mean, 'std': std} for name, (mean, std) in self.kept.items()}
        return {**found, 'failed': self.failed, 'runs': [cell.line() for cell in self.cells]}


def rows_of(variants: Sequence[Variant], against: Variant, cells: Sequence[Cell], test: str) -> list[Row]:
    """One row for each method, in the order given.

    Args:
        variants: The methods.
        against: The reference.
        cells: All runs.
        test: 'paired', 'welch' or 'none'.
    """
    rows = [_row(variant.label, [cell for cell in cells if cell.method == variant.label]) for variant in variants]
    reference = next(row for row in rows if row.method == against.label)
    others = [row for row in rows if row is not reference]
    if test != 'none':
        for row in others:
            row.difference = difference(row.values, reference.values, paired=test == 'paired')
        tested = [row.difference for row in others if row.difference is not None and row.difference.p is not None]
        for each, p in zip(tested, holm([each.p for each in tested if each.p is not None]), strict=True):
            each.p_holm = p
    return rows


def _row(label: str, cells: list[Cell]) -> Row:
    values = {cell.seed: cell.value for cell in cells if cell.value is not None}
    row = Row(label, cells, values, *mean_and_std([*values.values()]))
    results = [cell.result for cell in cells if cell.result is not None]
    if results:
        row.trained, row.parameters = results[0].trained, results[0].parameters
    row.seconds_per_iter = _mean([each.seconds_per_iter for each in results])
    row.memory = _mean([each.memory for each in results])
    for name in dict.fromkeys(name for cell in cells for name in cell.kept):
        row.kept[name] = mean_and_std([cell.kept[name] for cell in cells if cell.kept.get(name) is not None])
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None
