"""``tools/forgetting.py review``: back to theta_0 step by step, without training, both accuracies on the way."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from torch import Tensor

from ..errors import InputError
from ..figures import LineChart, Series
from .bench import Bench, Checkpoint, file_digest
from .distance import discrepancies
from .kept import Kept
from .progress import Progress
from .start import begin
from .statistics import Statistics, names_of
from .table import columns_of, value_at
from .tables import cell, draw, markdown_table, write_all
from .upstream import Upstream
from .upstream_data import build_upstream
from .weights import Way, levels_of, refuse_added, straight, with_levels

__all__ = ['Review', 'review']

Point = dict[str, Any]


def review(args: argparse.Namespace) -> None:
    """Review a checkpoint, write review.md, .json, .csv and pictures, and print the table."""
    steps = Review(args).steps
    progress = Progress(total=len(steps) * (2 if args.upstream else 1))
    with progress.shown():
        bench = begin(args, args.config, progress, args.pretrained)
        upstream = build_upstream(args, bench) if args.upstream else None
        kept = Kept(Path(args.out), progress, args.fresh)
        points = Review(args).run(bench, Checkpoint('', args.checkpoint), kept, upstream)
    if is_main_process():
        _write(Path(args.out), points, upstream, args)


class Review:
    """The steps of a review.

    Args:
        args: ``steps``, ``every``, ``path``, ``max_level``, ``min_level``, ``power``, ``index``, ``buffers``.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        if args.every > args.steps:
            raise InputError(f'--every {args.every} is more than --steps {args.steps}')
        #: After which steps the model is looked at; 0 is the fine-tuned one.
        self.steps = sorted({*range(0, args.steps + 1, args.every), args.steps})

    def run(self, bench: Bench, checkpoint: Checkpoint, kept: Kept, upstream: Upstream | None) -> list[Point]:
        """Go back, and measure after the steps that are wanted.

        Args:
            bench: Of the config.
            checkpoint: The fine-tuned weights.
            kept: Where results are.
            upstream: What is measured besides the test; None for nothing.

        Raises:
            InputError: If the model has parameters that theta_0 lacks.
        """
        args = self.args
        bench.load(checkpoint)
        refuse_added(bench.model)
        statistics = Statistics(args.buffers, args.estimate_batches, bench)
        way = Way(bench.model, bench.origin, names_of(bench.origin, args.buffers))
        settings = [args.path, args.steps, args.buffers, statistics.record]
        if args.path == 'levels':
            levels = levels_of(
                bench.model, bench.origin, way.names, args.max_level, args.min_level, args.power, args.index
            )
            settings.append(levels)
            states = with_levels(way, args.steps, levels)
        else:
            states = straight(way, args.steps)
        common = {'weights': file_digest(checkpoint.file), 'settings': settings, **bench.record('test')}
        points = []
        for step, state in enumerate(_with_start(way.start, states)):
            if step in self.steps:
                points.append(self._look(bench, state, step, {**common, 'step': step}, kept, upstream, statistics))
        return points

    def _look(
        self,
        bench: Bench,
        state: Mapping[str, Tensor],
        step: int,
        common: Mapping[str, Any],
        kept: Kept,
        upstream: Upstream | None,
        statistics: Statistics,
    ) -> Point:
        bench.model.load_state_dict(state)
        point: Point = {'step': step, 'distance': discrepancies(bench.model, bench.origin)['overall']}
        ready = statistics.later(of=step > 0)

        def downstream() -> dict[str, float]:
            ready()
            return bench.test()

        what = f'step {step} of {self.args.steps}'
        point['downstream'] = kept.get(f'{what}: downstream', {'part': 'downstream', **common}, downstream)
        if upstream is not None:

            def measure() -> dict[str, Any]:
                ready()
                return upstream.measure(bench.model)

            inputs = {'part': 'upstream', **common, 'upstream': upstream.record}
            point['upstream'] = kept.get(f'{what}: upstream', inputs, measure)
        return point


def _with_start(start: dict[str, Tensor], states: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    return itertools.chain([start], states)


# ---------------------------------------------------------------- what is written


def curves(points: Sequence[Point], upstream: Upstream | None, ks: Sequence[int]) -> list[tuple[str, tuple[str, ...]]]:
    """Header and place in a point of what was measured."""
    metric = next(iter(points[0]['downstream']))
    return [(f'downstream {metric}', ('downstream', metric)), *columns_of(upstream, ks)]


def _write(out: Path, points: Sequence[Point], upstream: Upstream | None, args: argparse.Namespace) -> None:
    columns = curves(points, upstream, args.knn_k)
    header = ['step', *(name for name, _ in columns), 'distance']
    rows = [[str(p['step']), *(cell(value_at(p, path)) for _, path in columns), cell(p['distance'], 4)] for p in points]
    said = 'equal steps to theta_0' if args.path == 'straight' else (
        f'rollbacks of levels {args.max_level:g} (shallow) to {args.min_level:g} (deep), power {args.power:g}'
    )  # fmt: skip
    left = points[-1]['distance'] / points[0]['distance'] if points[0]['distance'] else 0.0
    told = f'{args.steps} {said}; at the end {100 * left:.1f}% of the distance is left.'
    notes = [] if upstream is None else upstream.notes
    text = '\n\n'.join([markdown_table(header, rows), told, *(f'{n[0].upper()}{n[1:]}.' for n in notes)])
    report = {'path': args.path, 'steps': args.steps, 'points': points, 'notes': notes}
    write_all(out, 'review', report, points, text)
    steps = [p['step'] for p in points]
    lines = [Series(name.removesuffix(', %'), steps, [value_at(p, path) for p in points]) for name, path in columns]
    charts = [
        LineChart('Accuracy', 'step', 'accuracy, %', lines, caption=told),
        LineChart('Distance', 'step', 'relative discrepancy', [Series('all layers', steps, _all(points, 'distance'))]),
    ]
    print(text)
    draw(charts, out, 'review', 'Zero-shot reviewing')


def _all(points: Sequence[Point], key: str) -> list[float]:
    return [p[key] for p in points]
