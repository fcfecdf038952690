"""The code of docs/inherit.md: what a user reads there is what the tests run."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'inherit.md'
_BLOCK = re.compile(r'<!-- tested: ([\w-]+) -->\n```(\w+)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks() -> dict[str, str]:
    """Name to text of the page's code blocks that carry a name."""
    found = {name: text for name, _, text in _BLOCK.findall(PAGE.read_text(encoding='utf-8'))}
    assert found, f'{PAGE} has no named code blocks'
    return found


def block(name: str) -> str:
    """The text of one code block."""
    return blocks()[name]
