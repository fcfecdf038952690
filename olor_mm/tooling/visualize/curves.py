"""``visualize.py curves``: what several runs logged, side by side."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..figures import Chart, LineChart, Series
from ..runs import read_run
from .output import Named, named_all, write

__all__ = ['curves', 'smoothed']

#: What is logged besides, and shown only when it is asked for.
_ASIDE = ('lr', 'base_lr', 'time', 'data_time', 'memory', 'epoch', 'iter', 'step', 'momentum', 'grad_norm', 'eta')
#: Parts of a loss that are shown without being asked for.
_MOST_LOSSES = 4
_UNITS = {'time': 's', 'data_time': 's', 'memory': 'MiB'}
#: Metrics of mmpretrain and mmseg that are in percent.
_PERCENT = ('accuracy/', 'single-label/', 'mIoU', 'mAcc', 'aAcc', 'mDice')


@dataclass
class Curve:
    """A metric of a run.

    Attributes:
        run: The name of the run.
        unit: 'epoch' or 'iteration'.
        is_training: Whether it was logged while training, and not at a validation.
        x: Positions.
        y: Values.
    """

    run: str
    unit: str
    is_training: bool
    x: list[float]
    y: list[float]


def curves(args: argparse.Namespace) -> None:
    """Draw the metrics of runs.

    Args:
        args: Of the command line.

    Raises:
        InputError: If a folder is none of a run, or no metric has such a name.
    """
    if not 0 <= args.smooth < 1:
        raise InputError(f'--smooth {args.smooth:g} must be from 0, off, to below 1; 0.6 is a beginning')
    found = _read(named_all(args.work_dirs, 'work dir'))
    if args.list:
        for name in found:
            print(name)
        return
    chosen = _chosen(found, args.metric)
    charts: list[Chart] = []
    for name in chosen:
        for unit in dict.fromkeys(curve.unit for curve in found[name]):
            charts.append(_chart(args, name, [curve for curve in found[name] if curve.unit == unit], unit))
    write(args, charts, 'Training curves')


def _read(runs: Sequence[Named]) -> dict[str, list[Curve]]:
    """Metric to the curves of it."""
    found: dict[str, list[Curve]] = {}
    for name, path in runs:
        if not path.is_dir():
            raise InputError(f'{path} is no work dir', 'give the folder of a run, which holds <time>/vis_data')
        result = read_run(path)
        if not result.curves and not result.validations:
            raise InputError(
                f'{path} has no curves: nothing was logged there',
                f'looked for: {path}/<time>/vis_data/scalars.json, which LocalVisBackend writes',
                'set visualizer.vis_backends=[dict(type="LocalVisBackend")] in the config, as mm\'s configs have it',
            )
        for metric, points in result.curves.items():
            curve = Curve(name, 'iteration', True, [x for x, _ in points], [y for _, y in points])
            found.setdefault(metric, []).append(curve)
        last_epoch = max((epoch for _, epoch in result.curves.get('epoch', ())), default=math.inf)
        metrics = dict.fromkeys(key for each in result.validations for key in each if key not in _ASIDE)
        for metric in metrics:
            points = [(each['step'], each[metric]) for each in result.validations if metric in each]
            counts_epochs = 'epoch' in result.curves and points[-1][0] <= last_epoch
            unit = 'epoch' if counts_epochs or not result.curves else 'iteration'
            # A validation's loss is another one than the training's.
            key = f'val/{metric}' if metric in result.curves else metric
            found.setdefault(key, []).append(Curve(name, unit, False, [x for x, _ in points], [y for _, y in points]))
    return found


def _chosen(found: dict[str, list[Curve]], patterns: Sequence[str] | None) -> list[str]:
    if not patterns:
        # Of a loss with many parts, and of each layer's distance, the parts are asked for by name.
        own = [name for name in found if name not in _ASIDE and name.count('/') < 2]
        losses = [name for name in own if 'loss' in name]
        return [name for name in own if name not in losses or name == 'loss' or len(losses) <= _MOST_LOSSES]
    chosen: list[str] = []
    for pattern in patterns:
        matched = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, found, n=1)
            raise InputError(
                f'--metric {pattern}: nothing of that name was logged' + (f'; did you mean {near[0]}?' if near else ''),
                f'there are: {", ".join(found)}',
            )
        chosen += [name for name in matched if name not in chosen]
    return chosen


def _chart(args: argparse.Namespace, name: str, found: Sequence[Curve], unit: str) -> LineChart:
    # A validation is no noise of a batch.
    smooth = args.smooth if all(curve.is_training for curve in found) else 0.0
    series = [Series(curve.run, curve.x, smoothed(curve.y, smooth)) for curve in found]
    axis = _UNITS.get(name) or ('%' if name.startswith(_PERCENT) else '')
    caption = f'A moving average: {smooth:g} of the one before, {1 - smooth:g} of each value.' if smooth else ''
    return LineChart(name, unit, f'{name}, {axis}' if axis else name, series, caption, log_y=args.log)


def smoothed(values: Sequence[float], share: float) -> list[float]:
    """An exponential moving average that starts unbiased; gaps stay gaps.

    Args:
        values: The values.
        share: How much of the average before each takes, in [0, 1); 0 changes nothing.
    """
    if not share:
        return list(values)
    average, weight, found = 0.0, 0.0, []
    for value in values:
        if not math.isfinite(value):
            found.append(value)
            continue
        average = share * average + (1 - share) * value
        weight = share * weight + (1 - share)
        found.append(average / weight)
    return found
