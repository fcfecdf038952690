"""``tools/forgetting.py pacs``: the paper's forgetting test (figure 3)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..figures import Chart, LineChart, Series
from ..runs import execute, read_run
from .bench import Checkpoint
from .kept import Kept
from .options import parser_of
from .pacs_configs import METHODS, final_checkpoint, pacs_run
from .progress import Progress
from .review import Review
from .start import begin, check_args
from .tables import cell, draw, markdown_table, write_all

__all__ = ['pacs']

_FOLDS = ('fold_1/top1', 'fold_2/top1')
Point = dict[str, Any]


def pacs(args: argparse.Namespace) -> None:
    """Pre-train, fine-tune by Full and by OLOR, review Full; write pacs.md, .json, .csv and pictures."""
    _run(args, ['fold_1'])
    _run(args, list(METHODS))
    start = _points(args, 'fold_1')
    if not start:
        raise InputError(f'{args.out}/fold_1 has no validation', 'remove that folder: the run is then made anew')
    curves = {'fold_1': start}
    for name in METHODS:
        curves[name] = [{**start[-1], 'epoch': 0, 'discrepancy': 0.0}, *_points(args, name)]
    _write(args, curves, _review(args))


def _run(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Make runs; those that are finished are not repeated.

    Raises:
        InputError: If one fails.
    """
    for outcome in execute([pacs_run(args, name) for name in names]):
        if outcome.state != 'finished':
            raise InputError(f'the run {outcome.run.name} failed; its log: {outcome.log}', outcome.why)


def _points(args: argparse.Namespace, name: str) -> list[Point]:
    """Of each epoch of a run, what its validation said."""
    found = read_run(Path(args.out, name)).validations
    keys = (*_FOLDS, 'discrepancy')
    return [{'epoch': int(each['step']), **{key: each[key] for key in keys if key in each}} for each in found]


def _review(args: argparse.Namespace) -> list[Point]:
    """Full's last checkpoint on its way back to fold 1's."""
    config, file = Path(args.out, 'configs', 'full.py'), final_checkpoint(args, 'full')
    argv = [str(config), str(file), '--out', args.out, '--steps', str(args.steps), '--every', str(args.every)]
    argv += ['--path', args.path, '--max-level', str(args.max_level), '--min-level', str(args.min_level)]
    argv += ['--power', str(args.power), *(['--data-root', args.data_root] if args.data_root else [])]
    given = parser_of('review').parse_args([*argv, *(['--no-pin-memory'] if args.no_pin_memory else [])])
    check_args(given)
    given.work_dir = str(Path(args.out, 'review'))
    review = Review(given)
    progress = Progress(total=len(review.steps))
    with progress.shown():
        bench = begin(given, given.config, progress, None)
        points = review.run(bench, Checkpoint('full', str(file)), Kept(Path(args.out), progress), None)
    return [{'step': p['step'], **p['downstream'], 'discrepancy': p['distance']} for p in points]


# ---------------------------------------------------------------- what is written


def _write(args: argparse.Namespace, curves: Mapping[str, Sequence[Point]], review: Sequence[Point]) -> None:
    out = Path(args.out)
    ends: list[tuple[str, Point]] = [(f'pre-trained on fold 1, {args.pretrain_epochs} epochs', curves['full'][0])]
    ends += [(f'{METHODS[name]} on fold 2, {args.epochs} epochs', curves[name][-1]) for name in METHODS]
    ends.append((f'Full, reviewed in {args.steps} steps', review[-1]))
    best = max(review, key=lambda point: (sum(point[key] for key in _FOLDS), -point['step']))
    ends.append((f'Full, after step {best["step"]}: the highest sum', best))
    header = ['model', 'fold 1, %', 'fold 2, %', 'distance']
    rows = [[name, *(cell(p.get(key)) for key in _FOLDS), cell(p.get('discrepancy'), 4)] for name, p in ends]
    told = 'Fold 1: cartoon, photo, sketch; fold 2: art painting; top-1 on the test fifth of each. '
    told += (
        f'OLOR: iota_1 = {args.max_level:g}, iota_2 = {args.min_level:g}, gamma = {args.power:g}; seed {args.seed}. '
    )
    told += 'Distance: ||theta - theta_0|| / ||theta_0||, theta_0 being the model of fold 1. '
    told += 'The step of the highest sum is read off the same images.'
    text = f'{markdown_table(header, rows)}\n\n{told}'
    lines: list[Mapping[str, Any]] = [{'run': name, **point} for name, points in curves.items() for point in points]
    lines += [{'run': 'review', **point} for point in review]
    write_all(out, 'pacs', {'curves': curves, 'review': review}, lines, text)
    print(text)
    draw(_charts(curves, review, told), out, 'pacs', 'The forgetting test on PACS')


def _charts(curves: Mapping[str, Sequence[Point]], review: Sequence[Point], told: str) -> list[Chart]:
    tuned = [
        Series(f'{METHODS[name]}, fold {fold}', _of(curves[name], 'epoch'), _of(curves[name], key))
        for name in METHODS
        for fold, key in enumerate(_FOLDS, start=1)
    ]
    far = [Series(METHODS[name], _of(curves[name], 'epoch'), _of(curves[name], 'discrepancy')) for name in METHODS]
    back = [Series(f'fold {fold}', _of(review, 'step'), _of(review, key)) for fold, key in enumerate(_FOLDS, start=1)]
    before = [
        Series(f'fold {fold}', _of(curves['fold_1'], 'epoch'), _of(curves['fold_1'], key))
        for fold, key in enumerate(_FOLDS, start=1)
    ]
    return [
        LineChart('Fine-tuning on fold 2', 'epoch', 'top-1, %', tuned, caption=told),
        LineChart('Distance from the model of fold 1', 'epoch', '||theta - theta_0|| / ||theta_0||', far),
        LineChart('Zero-shot reviewing of Full', 'step', 'top-1, %', back),
        LineChart('Pre-training on fold 1', 'epoch', 'top-1, %', before),
    ]


def _of(points: Sequence[Point], key: str) -> list[Any]:
    return [point.get(key) for point in points]
