"""What MMEngine says while weights are looked at, which is of no interest here."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from mmengine.logging import MMLogger

__all__ = ['quiet']


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it MMEngine's logger has warnings alone, and what it prints past it is dropped."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
