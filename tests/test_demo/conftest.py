"""The demo is a script with modules beside it; its tests import them as it does."""

import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / 'tools' / 'demo'


@pytest.fixture(autouse=True)
def _demo_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DEMO))
    for name in ('process', 'report', 'results', 'shapes', 'stages'):
        # Their names are common ones: another test's module of that name must not be taken for ours, nor ours stay.
        monkeypatch.delitem(sys.modules, name, raising=False)
