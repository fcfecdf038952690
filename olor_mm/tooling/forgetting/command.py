"""tools/forgetting.py: which command it is, and what is said when it is interrupted."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, say
from ..signals import Terminated, terminable
from .interpolation import interpolate
from .options import COMMANDS, parser_of
from .pacs import pacs
from .review import review
from .start import check_args
from .table import table

__all__ = ['forgetting']

_RUN: dict[str, Callable[[Any], None]] = {
    'table': table,
    'review': review,
    'interpolate': interpolate,
    'pacs': pacs,
}


def forgetting(argv: Sequence[str]) -> None:
    """Look at what was kept, as ``tools/forgetting.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the data, the weights or the options is the user's to mend.
        KeyboardInterrupt: On Ctrl-C, with a text that says how to go on.
        Terminated: On SIGTERM, likewise.
    """
    command = argv[0] if argv and argv[0] in COMMANDS else 'table'
    if command == 'table' and argv and not argv[0].startswith('-') and not Path(argv[0]).expanduser().exists():
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        if near:
            raise InputError(f'{argv[0]!r} is neither a config nor a command', f'did you mean {near[0]}?')
    args = parser_of(command).parse_args(argv[command != 'table' :])
    check_args(args)
    how = 'the results so far are kept; to go on, give the same command again'
    if getattr(args, 'launcher', 'none') == 'none':
        kept = [each for each in argv if each != '--fresh']
        how += f':\n  {shlex.join([Path(sys.executable).name, sys.argv[0], *kept])}'
    try:
        with terminable(last_words=lambda: say(f'terminated; {how}')):
            _RUN[command](args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted; {how}') from None
    except Terminated:
        raise Terminated(f'terminated; {how}') from None
