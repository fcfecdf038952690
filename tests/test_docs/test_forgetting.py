"""docs/forgetting.md: the tool takes every command that the page shows, and every option that it names exists."""

from __future__ import annotations

import re
import shlex

import pytest

from olor_mm.tooling.forgetting.options import COMMANDS, parser_of

from ._pages import text_of

_SHOWN = re.findall(
    r'python tools/forgetting\.py (.+?)(?=\n```)', text_of('forgetting').replace('\\\n', ' '), re.DOTALL
)


@pytest.mark.parametrize('command', _SHOWN)
def test_commands(command: str) -> None:
    first, *rest = shlex.split(command)
    parser = parser_of(first if first in COMMANDS else 'table')
    assert vars(parser.parse_args(rest if first in COMMANDS else [first, *rest]))['out'] is not False


def test_options() -> None:
    known = {option for name in ('table', *COMMANDS) for option in parser_of(name)._option_string_actions}
    mine = text_of('forgetting').partition('## Finished models')[2]
    # The last one is of the page's own benchmark.
    named = set(re.findall(r'(?<![\w-])--[a-z][\w-]*', mine)) - {'--weights'}
    assert len(_SHOWN) == 5
    assert named <= known
