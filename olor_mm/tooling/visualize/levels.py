"""``visualize.py levels``: how strongly each layer is pulled back, and how that goes on over a training."""

from __future__ import annotations

import argparse
import math
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

from ...engine import OLOROptimWrapperConstructor, RollbackSettings
from ...engine.session import RollbackSession
from ...registry import type_name
from ...rollback.penalty import layerwise_penalty
from .. import launch
from ..data_checks import check_data
from ..errors import InputError, say
from ..figures import Chart, LineChart, Series
from .output import write
from .schedules import length_of, lr_ratios, needs_epochs

__all__ = ['levels']

_FORMULA = 'λᵢ = ι₂ + (1 − i/n)^γ (ι₁ − ι₂): the share of the distance to θ₀ that a step at the peak rate takes back.'
_MOST_POINTS = 600
_MOST_LAYERS = 5


def levels(args: argparse.Namespace) -> None:
    """Draw the levels of a config, or of numbers.

    Args:
        args: Of the command line.

    Raises:
        InputError: If there is nothing to draw, or something in the config is the user's to mend.
    """
    for option in ('layers', 'epoch_length'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f'--{option.replace("_", "-")} {value} must be 1 at least')
    if args.config is None:
        if not args.set:
            raise InputError('there is nothing to draw', 'give a config, or numbers: --set MAX MIN POWER')
        charts: list[Chart] = [_over_layers(args, [], args.layers or 12, [])]
        write(args, charts, 'Levels over layers')
        return
    cfg, _ = launch._configure(args)
    session, settings = _session(cfg)
    table = session.layers
    if table is None:
        raise InputError(
            "optim_wrapper.rollback.roots='loaded' is known only once weights are loaded",
            'name the roots: --cfg-options optim_wrapper.rollback.roots=backbone',
        )
    by_layer = {table.index[name]: session.levels[p] for name, p in session.names.items() if p in session.levels}
    own = [by_layer.get(i, math.nan) for i in range(table.num_layers + 1)]
    labels = [table.labels.get(i, '') for i in range(table.num_layers + 1)]
    charts = [_over_layers(args, own, table.num_layers, labels, settings)]
    if settings.rule != 'projection':
        charts.append(_over_training(args, cfg, settings, own))
    write(args, charts, f'Levels of {_stem(args.config)}')


def _stem(config: str) -> str:
    return config.rsplit('/', 1)[-1].removesuffix('.py')


def _session(cfg: Config) -> tuple[RollbackSession, RollbackSettings]:
    """The rollback of a config, on its own model without weights."""
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper.get('constructor')) != 'OLOROptimWrapperConstructor':
        raise InputError(
            f'optim_wrapper.constructor={wrapper.get("constructor")!r}: the config has no rollback, so no levels',
            'give a config with OLOR, or numbers without a config: --set MAX MIN POWER',
        )
    settings = RollbackSettings.from_cfg(wrapper.get('rollback'))
    if not settings.max_level and settings.rule != 'projection':
        raise InputError(f'optim_wrapper.rollback.max_level={settings.max_level!r}: nothing is pulled back')
    scope = cfg.get('default_scope')
    with MODELS.switch_scope_and_registry(scope) as registry:
        model = registry.build(cfg.model)
    options = {key: value for key, value in wrapper.items() if key not in ('constructor', 'paramwise_cfg')}
    built: Any = OLOROptimWrapperConstructor(options, wrapper.get('paramwise_cfg'))(model)
    return built.rollback_session, settings


def _over_layers(
    args: argparse.Namespace, own: list[float], n: int, labels: list[str], settings: RollbackSettings | None = None
) -> LineChart:
    notes = labels or None
    series = []
    if settings is not None:
        name = _told(settings.max_level, settings.min_level, settings.power)
        name = f'radius {settings.radius}' if settings.rule == 'projection' else name
        series.append(Series(f'config: {name}', range(n + 1), own, notes=notes))
    for numbers in args.set:
        try:
            values = [layerwise_penalty(i, n, *numbers) for i in range(n + 1)]
        except ValueError as error:
            raise InputError(f'--set {" ".join(f"{number:g}" for number in numbers)}: {error}') from error
        series.append(Series(_told(*numbers), range(n + 1), values, notes=notes))
    what = 'radius' if settings is not None and settings.rule == 'projection' else 'λᵢ'
    deepest = f'{n}: {labels[-1]}' if labels and labels[-1] else str(n)
    return LineChart(
        'Level of each layer' if what == 'λᵢ' else 'Radius of each layer',
        f'layer i (0: the stem, {deepest})' if settings is None or settings.index == 'layer' else 'tensor i',
        f'{what}' if what != 'λᵢ' else 'level λᵢ (share of the distance, no unit)',
        series,
        caption=_FORMULA if what == 'λᵢ' else '',
        log_y=args.log,
        from_zero=True,
    )


def _told(max_level: float, min_level: float, power: float) -> str:
    return f'ι₁={max_level:g}, ι₂={min_level:g}, γ={power:g}'


def _over_training(args: argparse.Namespace, cfg: Config, settings: RollbackSettings, own: list[float]) -> LineChart:
    epoch = args.epoch_length
    if epoch is None and needs_epochs(cfg, settings.schedule):
        epoch = _epoch_length(cfg)
    total = length_of(cfg, epoch)
    schedule = settings.schedule
    if schedule is None:
        factors = lr_ratios(cfg, total, epoch)
    else:
        by_epoch = (cfg.get('train_cfg') or {}).get('max_epochs') is not None
        fitted = schedule.fitted(total, float(epoch) if epoch and by_epoch else None)
        factors = [fitted(step) for step in range(total)]
    shown = sorted({round(number * (total - 1) / (_MOST_POINTS - 1)) for number in range(_MOST_POINTS)})
    pulled = [i for i, level in enumerate(own) if math.isfinite(level) and level > 0]
    chosen = sorted({pulled[round(k * (len(pulled) - 1) / (_MOST_LAYERS - 1))] for k in range(_MOST_LAYERS)})
    series = [
        Series(f'layer {i}: λᵢ = {own[i]:.3g}', shown, [own[i] * factors[step] for step in shown]) for i in chosen
    ]
    how = 'lrₜ / lr₀, the learning rate over its peak' if schedule is None else 'the factor of level_schedule'
    return LineChart(
        'Pull of each step over the training',
        f'iteration ({epoch} of them are an epoch)' if epoch else 'iteration',
        'aₜ (share of the distance, no unit)',
        series,
        caption=f'aₜ is λᵢ times {how}, as the schedules of the config have it.',
        log_y=args.log,
        ordered=True,
        from_zero=True,
    )


def _epoch_length(cfg: Config) -> int:
    """Iterations of an epoch in one process."""
    try:
        check_data(cfg, 'train')
    except InputError as error:
        raise InputError(
            f'{error}', 'or say how long an epoch is, without the data: --epoch-length ITERATIONS'
        ) from None
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')):
        loader = {**cfg.train_dataloader, 'num_workers': 0, 'persistent_workers': False}
        length = len(Runner.build_dataloader(loader))
    say(f'an epoch has {length} iterations, in one process; for several: --epoch-length ITERATIONS')
    return length
