"""All points of a grid, each with all seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..runs import Outcome, Run, execute
from .plan import Plan
from .reading import Reader
from .scores import Score
from .space import Point

__all__ = ['run_points']


def run_points(
    plan: Plan,
    points: Sequence[Point],
    reader: Reader,
    machine: Mapping[str, Any],
    on_score: Callable[[list[Score]], None] | None = None,
) -> list[Score]:
    """Try points.

    Args:
        plan: The search.
        points: What to try.
        reader: Of what the runs give.
        machine: ``workers``, ``devices`` and ``processes`` of :func:`~olor_mm.tooling.runs.execute`.
        on_score: Called with all scores so far whenever a run ends. Defaults to None.

    Returns:
        The scores in the order of the points.
    """
    # One seed of all points before the next: a search that is stopped has compared something.
    runs = {}
    for seed in plan.seeds:
        for point in points:
            run = plan.run(point, seed)
            runs[run.name] = (run, point, seed)
    ended: dict[Point, list[tuple[int, Outcome]]] = {point: [] for point in points}

    def scores() -> list[Score]:
        return [reader.score(point, point.name, ended[point]) for point in points]

    def on_done(outcome: Outcome) -> None:
        _, point, seed = runs[outcome.run.name]
        ended[point].append((seed, outcome))
        if on_score is not None:
            on_score(scores())

    def watch(run: Run, metrics: dict[str, float]) -> None:
        # A metric that does not exist is found with the first validation, not with the last.
        reader.see(metrics)

    execute([run for run, _, _ in runs.values()], on_done=on_done, watch=watch, **machine)
    return scores()
