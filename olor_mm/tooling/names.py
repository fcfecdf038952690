"""Misspelt names of olor_mm's parts: found in the config, before a model is built or data is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS, Registry

from .. import registry
from ..engine.checks import find
from .errors import InputError

__all__ = ['check_names']

_SCOPE = 'olor_mm.'
_PARTS = (
    registry.OPTIM_WRAPPERS,
    registry.OPTIM_WRAPPER_CONSTRUCTORS,
    registry.STRATEGIES,
    registry.HOOKS,
    registry.MODELS,
    registry.METHODS,
    registry.METRICS,
)
_WRAPPER_KEYS = ('rollback', 'constructor')


def check_names(cfg: Config | Mapping[str, Any]) -> None:
    """See that everything the config names of olor_mm exists, and that the keys which turn rollback on are spelt right.

    Args:
        cfg: The config of a run.

    Raises:
        InputError: If something does not; the message names the option and what it may have meant.
    """
    _check_runner_type(cfg.get('runner_type'))
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, Mapping):
        _check_wrapper_keys('optim_wrapper', wrapper)
        # Of an OptimWrapperDict each entry is a wrapper.
        for key, value in wrapper.items():
            if isinstance(value, Mapping) and 'optimizer' in value:
                _check_wrapper_keys(f'optim_wrapper.{key}', value)
    for option, name in _named(dict(cfg.items()), ''):
        near = _not_ours(name)
        if near is not None:
            raise InputError(f'{option}={name!r} does not exist', *_suggestion(option, near))


def _check_runner_type(name: Any) -> None:
    if isinstance(name, str) and find(RUNNERS, name) is None:
        near = difflib.get_close_matches(name, {'Runner', 'FlexibleRunner', *RUNNERS.module_dict}, n=1)
        raise InputError(f'runner_type={name!r} does not exist', *_suggestion('runner_type', near))


def _check_wrapper_keys(option: str, wrapper: Mapping[str, Any]) -> None:
    for key in wrapper:
        near = difflib.get_close_matches(str(key), _WRAPPER_KEYS, n=1, cutoff=0.8)
        if near and key not in _WRAPPER_KEYS:
            raise InputError(
                f'{option}.{key}={wrapper[key]!r:.200} is no option of an optimizer wrapper',
                f'did you mean {option}.{near[0]}?',
            )


def _named(node: Any, option: str) -> Iterator[tuple[str, str]]:
    """Option and value of each ``type`` or ``constructor`` of this package."""
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    for key, value in items:
        inner = f'{option}.{key}' if option else str(key)
        if key in ('type', 'constructor') and isinstance(value, str):
            if value.startswith(_SCOPE):
                yield inner, value
        else:
            yield from _named(value, inner)


def _not_ours(name: str) -> list[str] | None:
    """None where a name is found; else those that are alike, of which there may be none."""
    if any(find(each, name) is not None for each in _PARTS):
        return None
    near = _alike(name, *_PARTS)
    try:
        # Data sets come last: to import them takes mmpretrain, and seconds.
        import_module('olor_mm.datasets')
    except ImportError:
        return near or None
    return None if find(registry.DATASETS, name) is not None else near or _alike(name, registry.DATASETS)


def _alike(name: str, *registries: Registry) -> list[str]:
    known = [key for each in registries for key in each.module_dict]
    return [_SCOPE + key for key in difflib.get_close_matches(name.removeprefix(_SCOPE), known, n=1, cutoff=0.7)]


def _suggestion(option: str, near: list[str]) -> list[str]:
    return [f'set {option}={near[0]}'] if near else []
