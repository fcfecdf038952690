"""Links between our documents: the file is there, and so is the heading."""

from __future__ import annotations

import re

import pytest

from ._pages import DOCS, PAGES

_LINK = re.compile(r'\]\((?!https?:)([^)\s]*?)(?:#([^)\s]+))?\)')
_HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """The headings of a document as GitHub makes anchors of them."""
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in _HEADING.findall(text)}


@pytest.mark.parametrize('page', [*PAGES, 'calibrate', 'compare', 'scaling', 'performance', 'memory'])
def test_links(page: str) -> None:
    file = DOCS / f'{page}.md'
    links = _LINK.findall(file.read_text(encoding='utf-8'))
    assert links
    for path, anchor in links:
        target = (DOCS / path).resolve() if path else file
        assert target.is_file(), path
        assert not anchor or anchor in _anchors(target.read_text(encoding='utf-8')), f'{path}#{anchor}'
