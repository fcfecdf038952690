"""Optuna's samplers, pruners and storages, by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import INSTALL_ANALYSIS, InputError

__all__ = ['build_part', 'check_sampler', 'find_part', 'open_study', 'optuna_module']

#: Of no use here: they need others inside, are none themselves, or try a grid, as the search does without them.
_LEFT_OUT = (
    *('BaseSampler', 'BaseGASampler', 'BasePruner'),
    *('PartialFixedSampler', 'GridSampler', 'BruteForceSampler', 'PatientPruner'),
)


def optuna_module() -> Any:
    """Optuna, quiet.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f'a sampler needs a package that is not installed: {error}',
            f'{INSTALL_ANALYSIS}; --sampler grid needs none of it',
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def find_part(kind: str, name: str) -> type[Any]:
    """Optuna's sampler or pruner of a name, with or without its ending, large or small letters.

    Args:
        kind: 'sampler' or 'pruner'.
        name: Such as 'tpe', 'TPESampler' or 'none'.

    Raises:
        InputError: If there is none.
    """
    module = getattr(optuna_module(), f'{kind}s')
    ending = kind.capitalize()
    known = {each[: -len(ending)].lower(): each for each in dir(module) if each.endswith(ending)}
    known = {short: each for short, each in known.items() if each not in _LEFT_OUT}
    if kind == 'pruner':
        known['none'] = known.pop('nop')
    short = name.lower().replace('-', '').replace('_', '')
    short = short.removesuffix(kind) or short
    if short not in known:
        near = difflib.get_close_matches(short, known, n=1)
        names = ['grid', *sorted(known)] if kind == 'sampler' else sorted(known)
        raise InputError(
            f'--{kind} {name} does not exist',
            *([f'did you mean: --{kind} {near[0]}'] if near else []),
            f'known are: {", ".join(names)}',
        )
    found: type[Any] = getattr(module, known[short])
    return found


def build_part(kind: str, name: str, options: Mapping[str, Any], seed: int | None = None) -> Any:
    """A sampler or pruner.

    Args:
        kind: 'sampler' or 'pruner'.
        name: As of :func:`find_part`.
        options: Arguments.
        seed: Where it takes one. Defaults to None.

    Raises:
        InputError: If it does not exist, or does not take an argument or its value.
    """
    part = find_part(kind, name)
    known = inspect.signature(part).parameters
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f'--{kind}-options {key}={value}: {part.__name__} has no such argument',
                *([f'did you mean: {near[0]}'] if near else []),
                f'it takes: {", ".join(known) or "none"}',
            )
    # They would warn of parameters that they leave to another sampler; None is the default of what is deprecated.
    given: dict[str, Any] = {key: False for key, p in known.items() if key.startswith('warn_') and p.default is True}
    if 'seed' in known:
        given['seed'] = seed
    try:
        return part(**{**given, **options})
    except (TypeError, ValueError, ImportError) as error:
        said = ' '.join([f'--{kind} {name}', *(f'{key}={value}' for key, value in options.items())])
        remedy = 'install it' if isinstance(error, ImportError) else f'--{kind}-options takes: {", ".join(known)}'
        raise InputError(f'{said}: {error}', f'{remedy}; or choose another {kind}') from error


def check_sampler(name: str, options: Mapping[str, Any]) -> None:
    """See that a sampler has what it needs, some of which it looks for when it has seen trials.

    Args:
        name: As of :func:`find_part`.
        options: Its arguments.

    Raises:
        InputError: If it has not.
    """
    study = optuna_module().create_study(sampler=build_part('sampler', name, options, 0))
    try:
        for _ in range(3):
            trial = study.ask()
            study.tell(
                trial, trial.suggest_float('level', 0.1, 1, log=True) * trial.suggest_categorical('power', [1, 2])
            )
    except ImportError as error:
        raise InputError(
            f'--sampler {name} needs a package that is not installed: {error}', 'install it, or choose another sampler'
        ) from error


def open_study(storage: str, name: str, greater: bool, pruner: Any) -> Any:
    """A study, a new one or the one that is there.

    Args:
        storage: An address, or a file, which becomes a journal.
        name: Of the study.
        greater: Whether more of the metric is better.
        pruner: What stops poor trials.

    Raises:
        InputError: If the storage cannot be used, or holds a study of another direction.
    """
    optuna = optuna_module()
    direction = 'maximize' if greater else 'minimize'
    try:
        study = optuna.create_study(
            storage=_storage(optuna, storage),
            study_name=name,
            direction=direction,
            load_if_exists=True,
            pruner=pruner,
        )
    except Exception as error:
        # A driver that lacks, an address that leads nowhere, a file that is no journal: each storage has its own.
        said = (str(error).splitlines() or [''])[0]
        raise InputError(
            f'--storage {storage} cannot be used: {type(error).__name__}: {said}',
            'give an address, as sqlite:///FILE, or a file, which becomes a journal; the default is in the work dir',
        ) from error
    there = study.direction.name.lower()
    if there != direction:
        raise InputError(
            f'the study {name!r} in {storage} is to {there} its metric, this search to {direction}',
            'take another --study or --storage, or the --metric and --mode that it was begun with',
        )
    return study


def _storage(optuna: Any, given: str) -> Any:
    if '://' in given:
        return optuna.storages.RDBStorage(given)
    file = Path(given).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
