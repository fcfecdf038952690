"""Options of ``FSDPStrategy``: MMEngine's own errors name neither the option nor what it may be."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

__all__ = ['check_strategy_options']

_KINDS = ('full', 'local', 'sharded')
_STATE = 'strategy.state_dict_cfg'
_STATE_KEYS = ('state_dict_type', 'state_dict_config', 'optim_state_dict_config')


def check_strategy_options(strategy: type, options: Mapping[str, Any]) -> None:
    """See that the options of a strategy exist, and that ``state_dict_cfg`` has a value that it can have.

    Args:
        strategy: Its class.
        options: Its arguments; ``type`` may be among them.

    Raises:
        ValueError: If one does not; the message names option, value and what is known.
    """
    known: dict[str, None] = {}
    for base in strategy.__mro__:
        for name, parameter in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.kind is not parameter.VAR_POSITIONAL:
                known[name] = None
    known.pop('self', None)
    for key in options:
        if key != 'type' and key not in known:
            raise ValueError(f'strategy.{key}={options[key]!r:.80} is no option: {_hint(key, list(known))}')
    _check_state(options.get('state_dict_cfg', 'full'))


def _check_state(given: Any) -> None:
    if isinstance(given, str) and given in _KINDS:
        return
    if not isinstance(given, Mapping):
        raise ValueError(f'{_STATE}={given!r:.80} must be one of {", ".join(map(repr, _KINDS))}, or a dict')
    for key in given:
        if key not in _STATE_KEYS:
            raise ValueError(f'{_STATE}.{key}={given[key]!r:.80} is no option: {_hint(key, _STATE_KEYS)}')


def _hint(key: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    return f'did you mean {near[0]}?' if near else f'known are {", ".join(known)}'
