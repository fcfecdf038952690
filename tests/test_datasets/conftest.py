"""What the tests of the data sets share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What MMEngine's logger says during the test; it hands nothing on to pytest's own ``caplog``."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
