"""The relative discrepancy in the log: computed when the logger reads it, and at no other step."""

from collections.abc import Callable
from typing import Any

from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.visualization import Visualizer

__all__ = ['DISCREPANCY', 'DiscrepancyScalar', 'install']

#: Name of the scalar, as the log shows it; layers follow it as ``rollback/discrepancy/<layer>``.
DISCREPANCY = 'rollback/discrepancy'


class DiscrepancyScalar(HistoryBuffer):
    """A log scalar that is computed when it is read.

    MMEngine's log processor reads the current value of every ``train/`` scalar when the logger is due, so the cost
    falls on those iterations alone. The overall value goes the way of every scalar, to the terminal and to all
    visualizer backends; the layers' go to the backends only, for a line of the terminal would not hold them.

    Args:
        measure: Returns the overall discrepancy and those of the layers by label.
    """

    def __init__(self, measure: Callable[[], tuple[float, dict[str, float]]]) -> None:
        super().__init__()
        self._measure = measure
        self._read: tuple[int, float] | None = None

    def current(self) -> float:  # type: ignore[override]
        """The overall relative discrepancy now; the layers' are handed to the visualizer once an iteration."""
        hub = MessageHub.get_current_instance()
        step = int(hub.get_info('iter')) + 1 if 'iter' in hub.runtime_info else 0
        if self._read is None or self._read[0] != step:
            overall, layers = self._measure()
            self._read = (step, overall)
            visualizer = _visualizer()
            if layers and visualizer is not None:
                values: dict[str, Any] = {f'{DISCREPANCY}/{label}': value for label, value in layers.items()}
                visualizer.add_scalars(values, step=step)
        return self._read[1]


def _visualizer() -> Visualizer | None:
    """The run's visualizer, whatever its name; None outside of a run."""
    try:
        return Visualizer.get_current_instance()
    except RuntimeError:
        return None


def install(measure: Callable[[], tuple[float, dict[str, float]]]) -> None:
    """Put the scalar into the current message hub. It is not saved in checkpoints: it can be computed anew."""
    MessageHub.get_current_instance().log_scalars[f'train/{DISCREPANCY}'] = DiscrepancyScalar(measure)
