"""MetricsHook: hands features and logits to the metrics of this package."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from olor_mm.registry import HOOKS

from .capture import HeadOutputs
from .features import check_loader, evaluating
from .head_metric import HeadMetric

__all__ = ['AFTER_EMA', 'MetricsHook', 'refuse_shards']

#: Between EMAHook, which puts its weights in before an evaluation, and LoggerHook.
AFTER_EMA = 55


def refuse_shards(name: str, model: Any) -> None:
    """See that the model is whole on each rank.

    Raises:
        ValueError: If it is cut into shards.
    """
    kind = type(model).__name__
    if any(part in kind for part in ('FullySharded', 'FSDP', 'DeepSpeed', 'ColossalAI')):
        raise ValueError(
            f'{name} reads the model on each rank, and {kind} cuts it into shards: evaluate a saved checkpoint instead'
        )


@HOOKS.register_module()
class MetricsHook(Hook):
    """Hands ``olor_mm.KNNMetric``, ``NCMMetric`` and ``SeenUnseenMetric`` what they need of an evaluation.

    MMEngine gives metrics the predictions alone. While such a metric is evaluated this hook reads what the model's head
    is given and gives, and before that it lets the metric extract its bank. Without such a metric it does nothing.
    ``tools/train.py`` and ``tools/test.py`` add it by themselves.

    Example:
        >>> custom_hooks = [dict(type='olor_mm.MetricsHook')]
    """

    priority = AFTER_EMA  # type: ignore[assignment]

    def __init__(self) -> None:
        self.outputs = HeadOutputs()

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin."""
        self._begin(runner, runner.val_loop, 'val')

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin."""
        self._begin(runner, runner.test_loop, 'test')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """End."""
        self.outputs.detach()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """End."""
        self.outputs.detach()

    def _begin(self, runner: Runner, loop: Any, split: str) -> None:
        metrics = [each for each in getattr(loop.evaluator, 'metrics', ()) if isinstance(each, HeadMetric)]
        if not metrics:
            return
        refuse_shards(type(metrics[0]).__name__, runner.model)
        if get_world_size() > 1:
            check_loader(loop.dataloader)
        self.outputs.detach()
        with evaluating():
            for metric in metrics:
                metric.begin(runner.model, self.outputs, runner.cfg, split)
        self.outputs.attach(runner.model)
