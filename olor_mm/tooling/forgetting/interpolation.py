"""``tools/forgetting.py interpolate``: (1 - alpha) theta_T + alpha theta_0, and the best alpha as a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner.checkpoint import weights_to_cpu

from ...engine.replacing import PART, put_in_place
from ..errors import InputError, say
from ..figures import Chart, LineChart, Series
from .bench import Bench, Checkpoint, file_digest
from .kept import Kept
from .progress import Progress
from .splits import different_images, share_out
from .start import begin
from .statistics import Statistics, names_of
from .table import columns_of, value_at
from .tables import cell, draw, markdown_table, write_all
from .upstream import Upstream
from .upstream_data import build_upstream
from .weights import Way, grid, refuse_added

__all__ = ['interpolate']

Point = dict[str, Any]


def interpolate(args: argparse.Namespace) -> None:
    """Try the alphas on the validation set, save the best, test it, and write tables and pictures."""
    alphas = grid(args.alphas, args.grid)
    out = Path(args.out)
    progress = Progress(total=len(alphas) * (2 if args.upstream else 1) + 2)
    with progress.shown():
        share = None if args.val_share is None else partial(share_out, share=args.val_share, seed=args.val_seed)
        bench = begin(args, args.config, progress, args.pretrained, share)
        different_images(bench)
        upstream = build_upstream(args, bench) if args.upstream else None
        kept = Kept(out, progress, args.fresh)
        mixer = _Mixer(bench, Checkpoint('', args.checkpoint), args)
        points = [mixer.look(alpha, kept, upstream) for alpha in alphas]
        metric, best = _choose(points, args.metric, args.lower)
        _test(mixer, points[0], kept)
        _test(mixer, best, kept)
        if best is points[0]:
            progress.known()
        file = Path(args.save).expanduser() if args.save else out / 'best.pth'
        mixer.save(best['alpha'], file, metric, best['validation'][metric])
    if is_main_process():
        _write(out, points, best, metric, file, upstream, args)


class _Mixer:
    """Puts mixtures into the model and measures them."""

    def __init__(self, bench: Bench, checkpoint: Checkpoint, args: argparse.Namespace) -> None:
        self.bench, self.file = bench, checkpoint.file
        self.meta = dict(bench.load(checkpoint).get('meta') or {})
        refuse_added(bench.model)
        self.statistics = Statistics(args.buffers, args.estimate_batches, bench)
        self.way = Way(bench.model, bench.origin, names_of(bench.origin, args.buffers))
        self.common = {
            'weights': file_digest(self.file),
            'interpolation': [args.buffers, self.statistics.record],
            **bench.record('val', 'test'),
        }

    def put(self, alpha: float) -> Callable[[], None]:
        """Put a mixture into the model; what it returns is to be called before the model is used."""
        self.bench.model.load_state_dict(self.way.mixture(alpha))
        return self.statistics.later(of=alpha > 0)

    def look(self, alpha: float, kept: Kept, upstream: Upstream | None) -> Point:
        """Validate a mixture, and measure upstream."""
        ready = self.put(alpha)
        point: Point = {'alpha': alpha}
        point['validation'] = self._get(f'alpha {alpha:g}: validation', 'val', alpha, kept, ready, self.bench.val)
        if upstream is not None:
            measure = partial(upstream.measure, self.bench.model)
            point['upstream'] = self._get(
                f'alpha {alpha:g}: upstream', 'upstream', alpha, kept, ready, measure, upstream.record
            )
        return point

    def test(self, alpha: float, kept: Kept) -> dict[str, Any]:
        """Test a mixture."""
        ready = self.put(alpha)
        return self._get(f'alpha {alpha:g}: test', 'test', alpha, kept, ready, self.bench.test)

    def _get(
        self,
        what: str,
        part: str,
        alpha: float,
        kept: Kept,
        ready: Callable[[], None],
        measure: Callable[[], dict[str, Any]],
        further: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            ready()
            return measure()

        return kept.get(what, {'part': part, 'alpha': alpha, 'further': further, **self.common}, compute)

    def save(self, alpha: float, file: Path, metric: str, value: float) -> None:
        """Write a mixture as an ordinary checkpoint; rank 0 does."""
        self.put(alpha)()
        told = dict(alpha=alpha, fine_tuned=self.file, theta_0=self.bench.source, metric=metric, value=value)
        content = {
            'meta': {**self.meta, 'interpolation': told},
            'state_dict': {
                name: value.clone() for name, value in weights_to_cpu(self.bench.model.state_dict()).items()
            },
        }
        if is_main_process():
            _save(content, file)
        barrier()


def _save(content: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'.{file.name}{PART}')
    torch.save(content, part)
    put_in_place(part, file)


def _choose(points: Sequence[Point], metric: str | None, lower: bool) -> tuple[str, Point]:
    """The metric that decides, and the best point: of equal ones that which is nearest to theta_0."""
    known = list(points[0]['validation'])
    metric = known[0] if metric is None and known else metric
    if metric is None or metric not in known:
        raise InputError(
            f'--metric {metric} is not among those of the validation', f'these are: {", ".join(known) or "none"}'
        )
    sign = -1 if lower else 1
    return metric, max(points, key=lambda p: (sign * p['validation'][metric], p['alpha']))


def _test(mixer: _Mixer, point: Point, kept: Kept) -> None:
    if 'test' not in point:
        point['test'] = mixer.test(point['alpha'], kept)


# ---------------------------------------------------------------- what is written


def _write(
    out: Path,
    points: Sequence[Point],
    best: Point,
    metric: str,
    file: Path,
    upstream: Upstream | None,
    args: argparse.Namespace,
) -> None:
    columns: list[tuple[str, tuple[str, ...]]] = [(f'validation {metric}', ('validation', metric))]
    columns += columns_of(upstream, args.knn_k)
    test = next(iter(best['test']), None)
    shown = [*columns, *([(f'test {test}', ('test', test))] if test else [])]
    rows = []
    for p in points:
        alpha = f'**{p["alpha"]:g}**' if p is best else f'{p["alpha"]:g}'
        rows.append([alpha, *(cell(value_at(p, path)) for _, path in shown)])
    told = f'The best alpha on the validation set is {best["alpha"]:g}; it is saved in {file}.'
    if best is points[0]:
        told = f'No mixture is better on the validation set than the fine-tuned model, alpha 0; {file} is that one.'
    notes = [] if upstream is None else upstream.notes
    header = ['alpha', *(name for name, _ in shown)]
    text = '\n\n'.join([markdown_table(header, rows), told, *(f'{n[0].upper()}{n[1:]}.' for n in notes)])
    report = {'metric': metric, 'best': best['alpha'], 'points': points, 'file': str(file), 'notes': notes}
    write_all(out, 'interpolation', report, points, text)
    alphas = [p['alpha'] for p in points]
    lines = [Series(name.removesuffix(', %'), alphas, [value_at(p, path) for p in points]) for name, path in columns]
    caption = f'The best alpha on the validation set is {best["alpha"]:g}.'
    charts: list[Chart] = [LineChart('Accuracy', 'alpha', 'accuracy, %', lines, caption=caption)]
    if len(columns) > 1:
        charts.append(_trade(points, columns))
    print(text)
    draw(charts, out, 'interpolation', 'Between fine-tuned and pre-trained weights')
    say(f'written: {file}')


def _trade(points: Sequence[Point], columns: Sequence[tuple[str, tuple[str, ...]]]) -> Chart:
    (name, path), *others = columns
    notes = [f'alpha {p["alpha"]:g}' for p in points]
    y = [value_at(p, path) for p in points]
    lines = [Series(other, [value_at(p, where) for p in points], y, notes=notes) for other, where in others]
    return LineChart('What is gained and what is lost', 'upstream accuracy, %', name, lines, compare=False)
