"""What all parts of the package say of an option that does not exist."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ['check_known']


def check_known(name: str, given: Mapping[Any, Any], known: Iterable[str]) -> None:
    """See that all options exist.

    Args:
        name: Of what they are options of, as the config has it.
        given: The options.
        known: Names of those that exist.

    Raises:
        ValueError: If one does not; the message names it, its value, and the option that is meant.
    """
    known = list(known)
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f'did you mean {near[0]}? ' if near else ''
            raise ValueError(f'{name}.{key}={value!r:.200} is not an option: {hint}known are {", ".join(known)}')
