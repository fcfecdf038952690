"""``visualize.py discrepancy``: how far the weights of checkpoints are from theta_0, layer by layer."""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, say
from ..figures import Chart, HeatMap, LineChart, Series
from .distance import Distance, Subject
from .output import named_all, write
from .progress import Progress
from .quiet import quiet

__all__ = ['discrepancy']

_SAVED = re.compile(r'(epoch|iter)_(\d+)\.pth$')


@dataclass
class Run:
    """Checkpoints of one run, in the order of training.

    Attributes:
        name: What it is called.
        files: Its checkpoints.
        labels: What each is called: its epoch, or iteration.
        steps: The number of each.
        unit: 'epoch' or 'iteration'.
        found: The distance of each.
        origin: Where theta_0 was.
    """

    name: str
    files: list[Path]
    labels: list[str]
    steps: list[int]
    unit: str
    found: list[Distance] = field(default_factory=list)
    origin: str = ''


def discrepancy(args: argparse.Namespace) -> None:
    """Draw ||theta - theta_0|| / ||theta_0|| of each layer.

    Args:
        args: Of the command line.

    Raises:
        InputError: If a checkpoint, its config or theta_0 is missing or does not fit.
    """
    if args.theta_0 is not None and not Path(args.theta_0).expanduser().is_file():
        raise InputError('the file of --theta-0 is missing', f'looked for: {Path(args.theta_0).absolute()}')
    runs = [_run(name, path) for name, path in named_all(args.checkpoints, 'checkpoint or work dir')]
    with Progress('checkpoints', sum(len(run.files) for run in runs)) as progress:
        for run in runs:
            subject = Subject(_config(args, run.files[0]), args)
            for file in run.files:
                with quiet():
                    run.found.append(subject.measure(file))
                progress.advance()
            run.origin = subject.origin
    _say(runs)
    write(args, _charts(args, runs), 'Distance from the pre-trained weights')


def _run(name: str, path: Path) -> Run:
    if path.is_file():
        return Run(name, [path], [path.stem], [0], 'checkpoint')
    found = [
        (int(match[2]), match[1], file)
        for file in path.iterdir()
        if (match := _SAVED.match(file.name)) and file.is_file()
    ]
    if not found:
        raise InputError(
            f'{path} has no checkpoints', 'looked for: epoch_*.pth and iter_*.pth', 'give a checkpoint file instead'
        )
    unit = Counter(kind for _, kind, _ in found).most_common(1)[0][0]
    chosen = sorted((step, file) for step, kind, file in found if kind == unit)
    return Run(
        name,
        [file for _, file in chosen],
        [f'{unit} {step}' for step, _ in chosen],
        [step for step, _ in chosen],
        'iteration' if unit == 'iter' else 'epoch',
    )


def _config(args: argparse.Namespace, checkpoint: Path) -> str:
    """That of the command line, or the one that the Runner wrote beside the checkpoint."""
    if args.config is not None:
        return str(args.config)
    configs = sorted(checkpoint.parent.glob('*.py'))
    if len(configs) != 1:
        told = ', '.join(config.name for config in configs) or 'none'
        raise InputError(
            f'the config of {checkpoint} is not known: there is not one beside it, but {told}',
            'give it: --config CONFIG',
        )
    return str(configs[0])


def _say(runs: Sequence[Run]) -> None:
    for run in runs:
        last = run.found[-1]
        say(f'{run.name}, {run.labels[-1]}: {last.overall:.4g} from theta_0 ({run.origin})')


def _charts(args: argparse.Namespace, runs: Sequence[Run]) -> list[Chart]:
    origins = dict.fromkeys(run.origin for run in runs)
    each = '; '.join(f'{run.name}: {run.origin}' for run in runs)
    told = f'θ₀: {next(iter(origins)) if len(origins) == 1 else each}.'
    what = 'layer i (0: the stem)' if args.index == 'layer' else 'tensor i'
    last = [
        Series(
            run.name if len(run.files) == 1 else f'{run.name}, {run.labels[-1]}',
            range(len(run.found[-1].labels)),
            run.found[-1].values,
            notes=run.found[-1].labels,
        )
        for run in runs
    ]
    measure = '‖θ − θ₀‖ / ‖θ₀‖'
    charts: list[Chart] = [
        LineChart('Distance from θ₀ over layers', what, measure, last, told, log_y=args.log, from_zero=True)
    ]
    trained = [run for run in runs if len(run.files) > 1]
    for unit in dict.fromkeys(run.unit for run in trained):
        series = [
            Series(run.name, run.steps, [found.overall for found in run.found]) for run in trained if run.unit == unit
        ]
        caption = 'All layers together.'
        charts.append(
            LineChart('Distance from θ₀ over training', unit, measure, series, caption, log_y=args.log, from_zero=True)
        )
    if args.index == 'layer':
        values = [value for run in trained for found in run.found for value in found.values if math.isfinite(value)]
        charts += [_map(run, (0.0, max(values, default=1.0))) for run in trained]
    return charts


def _map(run: Run, limits: tuple[float, float]) -> HeatMap:
    """Layers over epochs, in the colours of all runs."""
    rows = [f'{i} {label}'.strip() for i, label in enumerate(run.found[-1].labels)]
    values = [[found.values[i] for found in run.found] for i in range(len(rows))]
    columns = [str(step) for step in run.steps]
    return HeatMap(
        f'{run.name}: distance from θ₀',
        rows,
        columns,
        values,
        run.unit,
        'layer',
        '‖θ − θ₀‖ / ‖θ₀‖',
        digits=3,
        limits=limits,
    )
