"""docs/inherit.md: no code that is not run."""

from __future__ import annotations

import re
from pathlib import Path

from ._docs import PAGE, blocks


def test_every_block_of_code_is_run_by_a_test() -> None:
    tests = ''.join(path.read_text() for path in Path(__file__).parent.glob('test_*.py') if path != Path(__file__))
    assert [name for name in blocks() if f"'{name}'" not in tests] == []
    fences = re.findall(r'^```\w+$', PAGE.read_text(encoding='utf-8'), re.MULTILINE)
    assert len(fences) == len(blocks()), 'a block without <!-- tested: name --> in front of it'


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r'\]\(([\w./-]+)\)', PAGE.read_text(encoding='utf-8'))
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
