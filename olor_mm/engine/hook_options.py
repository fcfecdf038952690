"""The options of the checkpoint hook, checked when it is built: MMEngine meets a wrong one at the first save."""

import difflib
import inspect
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

__all__ = ['check_metrics', 'check_options']

_OPTION = 'default_hooks.checkpoint'
_OWN = ('check_finite', 'max_invalid_losses')
_FLAGS = ('check_finite', 'by_epoch', 'save_optimizer', 'save_param_scheduler', 'save_last')
#: Least value of each number, and what it means.
_NUMBERS = {
    'max_invalid_losses': (0, 'a whole number of 0 or more: 0 stops at the first one'),
    'interval': (1, 'a whole number of 1 or more, or -1 for never'),
    'max_keep_ckpts': (0, 'a whole number of 1 or more, or -1 for all'),
    'save_begin': (0, 'a whole number of 0 or more'),
}
_MINUS_ONE = ('interval', 'max_keep_ckpts')


def check_options(args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """See that every option is known, and of the type that it has to be.

    Args:
        args: Arguments of ``CheckpointHook`` by position.
        options: Those by name, with the options of ``DurableCheckpointHook``.

    Raises:
        ValueError: If an option does not exist or has a value that it cannot have.
    """
    names = _parameters(CheckpointHook.__init__)
    # CheckpointHook hands what it does not know to save_checkpoint.
    known = {*_OWN, *names, *_parameters(Runner.save_checkpoint)} - {'filename'}
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(sorted(known))}'
            raise ValueError(f'{_OPTION}.{name}={value!r} is not an option of the checkpoint hook: {hint}')
    for name, value in {**dict(zip(names, args, strict=False)), **options}.items():
        wrong = _wrong(name, value)
        if wrong is not None:
            raise ValueError(f'{_OPTION}.{name}={value!r} must be {wrong}')


def check_metrics(wanted: Collection[str], metrics: Collection[str]) -> None:
    """See that validation gives the metrics that choose the best checkpoint.

    Args:
        wanted: The metrics of ``save_best``.
        metrics: Those that validation gave.

    Raises:
        ValueError: If one is not among them.
    """
    for name in wanted:
        if name != 'auto' and name not in metrics:
            near = difflib.get_close_matches(name, sorted(metrics), n=1)
            hint = f'did you mean {near[0]}? ' if near else ''
            raise ValueError(
                f'{_OPTION}.save_best={name!r} is not among the metrics of validation: {hint}'
                f'they are {", ".join(sorted(metrics))}; take one of them, or auto for the first'
            )


def _parameters(function: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return [name for name, parameter in parameters.items() if name != 'self' and parameter.kind not in kinds]


def _wrong(name: str, value: Any) -> str | None:
    """What a value has to be, where it is not."""
    if name in _FLAGS:
        return None if isinstance(value, bool) else 'True or False'
    if name in _NUMBERS:
        least, told = _NUMBERS[name]
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        # MMEngine divides by it: 8e3 is as good as 8000.
        whole = whole or (name == 'interval' and isinstance(value, float) and value.is_integer())
        return None if whole and (value >= least or (value == -1 and name in _MINUS_ONE)) else told
    if name == 'save_best':
        texts = value if isinstance(value, list) else [value]
        return None if value is None or all(isinstance(text, str) for text in texts) else 'a metric, or a list of them'
    return None
