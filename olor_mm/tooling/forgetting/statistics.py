"""What becomes of buffers on the way to theta_0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError
from .bench import Bench
from .origin import Origin
from .weights import estimate_statistics

__all__ = ['Statistics', 'names_of']


def names_of(origin: Origin, buffers: str) -> list[str]:
    """The parameters and buffers that go back.

    Args:
        origin: theta_0.
        buffers: ``--buffers``.
    """
    return [*origin.params, *(origin.buffers if buffers == 'interpolate' else [])]


class Statistics:
    """Estimates batch norms' statistics of weights that are in a model, where ``--buffers estimate`` says so.

    Args:
        how: ``--buffers``.
        batches: Of training images, at most.
        bench: Of the config.

    Raises:
        InputError: If there are no training images.
    """

    def __init__(self, how: str, batches: int, bench: Bench) -> None:
        self.on, self._batches, self._bench = how == 'estimate', batches, bench
        #: What results depend on.
        self.record: Any = None
        self._loader: Any = None
        if self.on:
            if bench.train_loader is None:
                raise InputError('--buffers estimate needs training images', 'set train_dataloader in the config')
            self.record = [batches, bench.train_loader]

    def later(self, of: bool) -> Callable[[], None]:
        """What is to be called before the model is measured; it estimates once.

        Args:
            of: Whether these weights need it: those that were trained have their own.
        """
        wanted = self.on and of

        def ready() -> None:
            nonlocal wanted
            if wanted:
                wanted = False
                if self._loader is None:
                    self._loader = self._bench.runner.build_dataloader(self._bench.train_loader, seed=0)
                estimate_statistics(self._bench.model, self._loader, self._batches)

        return ready
