"""The relative discrepancy in the log: computed when the logger reads it, and at no other step."""

import math
from collections.abc import Callable
from inspect import ismethod
from typing import Any
from weakref import WeakMethod, ref

from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.visualization import Visualizer

__all__ = ['DISCREPANCY', 'LEVEL', 'DiscrepancyScalar', 'LevelScalar', 'install', 'install_level']

Measure = Callable[[], tuple[float, dict[str, float]]]

#: Name of the scalar, as the log shows it; layers follow it as ``rollback/discrepancy/<layer>``.
DISCREPANCY = 'rollback/discrepancy'


#: The level of the shallowest layer, where it has a schedule of its own.
LEVEL = 'rollback/level'


class LevelScalar(HistoryBuffer):
    """A log scalar that is computed when it is read: the level in the present iteration.

    Args:
        read: Returns it.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        super().__init__()
        # As for the discrepancy: the hub outlives the run.
        self._method = WeakMethod(read) if ismethod(read) else ref(read)
        self._last = math.nan

    @property
    def read(self) -> Callable[[], float] | None:
        """What reads it; None when the run that it belonged to is no more."""
        return self._method()

    def current(self) -> float:  # type: ignore[override]
        """The level now, or as it was last read in a run that is no more."""
        read = self.read
        if read is not None:
            self._last = read()
        return self._last


class DiscrepancyScalar(HistoryBuffer):
    """A log scalar that is computed when it is read.

    MMEngine's log processor reads the current value of every ``train/`` scalar when the logger is due, so the cost
    falls on those iterations alone. The overall value goes the way of every scalar, to the terminal and to all
    visualizer backends; the layers' go to the backends only, for a line of the terminal would not hold them.

    Args:
        measure: Returns the overall discrepancy and those of the layers by label.
        name: What it is called in the log. Defaults to ``DISCREPANCY``.
    """

    def __init__(self, measure: Measure, name: str = DISCREPANCY) -> None:
        super().__init__()
        # MMEngine keeps message hubs for as long as the process lives: weights and theta_0 must not be kept with them.
        self._measure = WeakMethod(measure) if ismethod(measure) else ref(measure)
        self._name = name
        self._read: tuple[int, float] | None = None

    @property
    def measure(self) -> Measure | None:
        """What measures; None when the run that it belonged to is no more."""
        return self._measure()

    def current(self) -> float:  # type: ignore[override]
        """The overall relative discrepancy now; the layers' are handed to the visualizer once an iteration."""
        measure = self.measure
        if measure is None:
            return math.nan if self._read is None else self._read[1]
        hub = MessageHub.get_current_instance()
        step = int(hub.get_info('iter')) + 1 if 'iter' in hub.runtime_info else 0
        if self._read is None or self._read[0] != step:
            overall, layers = measure()
            self._read = (step, overall)
            visualizer = _visualizer()
            if layers and visualizer is not None:
                values: dict[str, Any] = {f'{self._name}/{label}': value for label, value in layers.items()}
                visualizer.add_scalars(values, step=step)
        return self._read[1]


def _visualizer() -> Visualizer | None:
    """The run's visualizer, whatever its name; None outside of a run."""
    try:
        return Visualizer.get_current_instance()
    except RuntimeError:
        return None


def install(measure: Measure) -> None:
    """Put the scalar into the current message hub. It is not saved in checkpoints: it can be computed anew.

    Where a run has several wrappers with rollback, as an ``OptimWrapperDict`` has, the second to start logs
    ``rollback/discrepancy_2``, and so on.
    """
    scalars = MessageHub.get_current_instance().log_scalars
    name, number = DISCREPANCY, 1
    while isinstance(held := scalars.get(f'train/{name}'), DiscrepancyScalar) and held.measure not in (None, measure):
        number += 1
        name = f'{DISCREPANCY}_{number}'
    scalars[f'train/{name}'] = DiscrepancyScalar(measure, name)


def install_level(read: Callable[[], float]) -> None:
    """Put the level into the current message hub; of a second wrapper as ``rollback/level_2``, and so on."""
    scalars = MessageHub.get_current_instance().log_scalars
    name, number = LEVEL, 1
    while isinstance(held := scalars.get(f'train/{name}'), LevelScalar) and held.read not in (None, read):
        number += 1
        name = f'{LEVEL}_{number}'
    scalars[f'train/{name}'] = LevelScalar(read)
