"""What olor_mm.rollback has to say, which knows nothing of MMEngine, goes to MMEngine's logger and into its file."""

import logging

from mmengine.logging import print_log

__all__ = ['forward_messages']


class _ToMMEngine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_log(self.format(record), logger='current', level=record.levelno)


def forward_messages() -> None:
    """From now on."""
    logger = logging.getLogger('olor_mm.rollback')
    if not any(isinstance(handler, _ToMMEngine) for handler in logger.handlers):
        logger.addHandler(_ToMMEngine())
        logger.setLevel(logging.INFO)
