"""What the tests of the pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ._reader import Reader
from ._shell import WarmPython


@pytest.fixture(scope='session')
def python() -> Iterator[WarmPython]:
    with WarmPython() as warm:
        yield warm


@pytest.fixture(scope='module')
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, python: WarmPython) -> Reader:
    """A reader of the page that the test module is about: its ``PAGE``."""
    page = request.module.PAGE
    return Reader(page, tmp_path_factory.mktemp(page), python)
