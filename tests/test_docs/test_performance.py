"""The pages' blocks are what `benchmarks/pages.py` makes of benchmarks/results."""

import importlib
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def _pages():
    sys.path.insert(0, str(REPO / 'benchmarks'))
    try:
        return importlib.import_module('pages')
    finally:
        sys.path.remove(str(REPO / 'benchmarks'))


def test_figures_on_the_pages_are_those_of_the_results() -> None:
    pages = _pages()
    made = pages.pages()
    assert {page.name for page in made} >= {'README.md', 'performance.md'}
    for page in made:
        text = page.read_text()
        assert pages.rendered(text) == text, f'{page} is behind: python benchmarks/pages.py'
