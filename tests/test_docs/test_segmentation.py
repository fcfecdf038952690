"""docs/segmentation.md: every command, config, quoted output and mistake."""

from __future__ import annotations

import pytest

from ._pages import Mistake, blocks, is_in, mistakes_first_told
from ._reader import Reader

pytestmark = pytest.mark.slow

PAGE = 'segmentation'


def test_from_top_to_bottom(reader: Reader) -> None:
    for block in blocks(PAGE):
        reader.read(block)


@pytest.mark.parametrize('mistake', mistakes_first_told(PAGE), ids=lambda mistake: mistake.done)
def test_mistakes(reader: Reader, mistake: Mistake) -> None:
    """After the page itself, whose files and checkpoints some of them need."""
    done = reader.err(mistake)
    assert is_in(mistake.message, done.text), done.text[-3000:]
    assert (done.code == 0) == mistake.is_warning, done.text[-3000:]
