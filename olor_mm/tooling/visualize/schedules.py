"""The learning rate of every iteration of a config, without training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import PARAM_SCHEDULERS

from ...registry import type_name
from ...rollback.level_schedule import LevelSchedule
from ..errors import InputError

__all__ = ['length_of', 'lr_ratios', 'needs_epochs']


def needs_epochs(cfg: Mapping[str, Any], schedule: LevelSchedule | None) -> bool:
    """Whether it takes the number of iterations of an epoch to know the level of each iteration.

    Args:
        cfg: The config of a run.
        schedule: The level's own; None where it goes with the learning rate.
    """
    if _counts_epochs(cfg):
        return True
    if schedule is not None:
        return any(ramp.by_epoch for ramp in schedule.ramps)
    return any(each.get('by_epoch', True) for each in _schedulers(cfg))


def length_of(cfg: Mapping[str, Any], epoch_length: int | None) -> int:
    """Iterations of the run.

    Args:
        cfg: The config of a run.
        epoch_length: Iterations of an epoch, where it counts epochs.

    Raises:
        InputError: If the config does not say how long it is.
    """
    train = cfg.get('train_cfg') or {}
    number = train.get('max_epochs' if _counts_epochs(cfg) else 'max_iters')
    if not isinstance(number, int) or number < 1:
        raise InputError(f'train_cfg={dict(train)!r} does not say how long the run is', 'set max_epochs or max_iters')
    return number * (epoch_length or 1) if _counts_epochs(cfg) else number


def lr_ratios(cfg: Mapping[str, Any], total: int, epoch_length: int | None) -> list[float]:
    """lr_t / lr_0 of every iteration, by MMEngine's own schedulers on an optimizer of nothing.

    Args:
        cfg: The config of a run.
        total: Its iterations.
        epoch_length: Iterations of an epoch; None where nothing counts epochs.

    Raises:
        InputError: If a scheduler cannot be built.
    """
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr', 1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=float(rate), momentum=0.9)
    by_iter: list[Any] = []
    by_epoch: list[Any] = []
    for entry in _schedulers(cfg):
        scheduler = _built(entry, optimizer, total, epoch_length)
        (by_epoch if scheduler.by_epoch else by_iter).append(scheduler)
    group, ratios = optimizer.param_groups[0], []
    for step in range(total):
        initial = float(group.get('initial_lr', rate))
        ratios.append(group['lr'] / initial if initial else 0.0)
        optimizer.step()
        for scheduler in by_iter:
            scheduler.step()
        if epoch_length and (step + 1) % epoch_length == 0:
            for scheduler in by_epoch:
                scheduler.step()
    return ratios


def _built(given: Mapping[str, Any], optimizer: Any, total: int, epoch_length: int | None) -> Any:
    entry = copy.deepcopy(dict(given))
    length = epoch_length or total
    # As the Runner does: what says no end ends with the run.
    entry.setdefault('end', -(-total // length) if entry.get('by_epoch', True) else total)
    try:
        return PARAM_SCHEDULERS.build(entry, default_args=dict(optimizer=optimizer, epoch_length=length))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'param_scheduler={entry.get("type")!r} cannot be built: {error}') from error


def _schedulers(cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of the learning rate."""
    given = cfg.get('param_scheduler') or []
    entries: Sequence[Any] = [given] if isinstance(given, Mapping) else given
    if not all(isinstance(entry, Mapping) and 'type' in entry for entry in entries):
        raise InputError('param_scheduler is of several optimizers', 'levels are drawn for one: give --set instead')
    return [entry for entry in entries if 'Momentum' not in str(type_name(entry['type']))]


def _counts_epochs(cfg: Mapping[str, Any]) -> bool:
    train = cfg.get('train_cfg') or {}
    return train.get('by_epoch', 'IterBased' not in str(type_name(train.get('type')))) and 'max_iters' not in train
