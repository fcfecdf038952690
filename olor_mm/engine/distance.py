"""DiscrepancyHook: how far the weights are from a file's, at each validation, with a rollback or without."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from olor_mm.registry import HOOKS
from olor_mm.rollback.anchor import anchors_from_state_dict
from olor_mm.rollback.discrepancy import relative_discrepancy

from .loading import load_from_local
from .rebuilding import unwrapped

__all__ = ['DiscrepancyHook']


@HOOKS.register_module()
class DiscrepancyHook(Hook):
    """Logs ||theta - theta_0|| / ||theta_0|| as the metric 'discrepancy' of each validation.

    A rollback logs its own; this is for runs without one, to compare with. theta_0 stays on the CPU.

    Args:
        anchor: The file with theta_0, under the names of the model, or of its backbone.

    Raises:
        ValueError: If ``anchor`` is no file's name; when training begins, if the file has none of the parameters, or
            the model is cut into shards.
        FileNotFoundError: If there is no such file.

    Example:
        >>> custom_hooks = [dict(type='olor_mm.DiscrepancyHook', anchor='deit_tiny.pth')]
    """

    def __init__(self, anchor: str) -> None:
        if not anchor or not isinstance(anchor, str):
            raise ValueError(f'DiscrepancyHook.anchor={anchor!r} must be the file with the pre-trained weights')
        self.anchor = anchor
        self._theta_0: dict[Tensor, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Read theta_0."""
        model = unwrapped(runner.model)
        params = dict(model.named_parameters())
        if any(hasattr(p, 'device_mesh') for p in params.values()):
            raise ValueError(
                'DiscrepancyHook: the model is cut into shards (DTensors); take the hook out of custom_hooks'
            )
        state = load_from_local(self.anchor, 'cpu')
        found = anchors_from_state_dict(state, params.items())
        backbone = getattr(model, 'backbone', None)
        if not found.matched and isinstance(backbone, nn.Module):
            found = anchors_from_state_dict(state, backbone.named_parameters())
        if not found.matched:
            raise ValueError(f'DiscrepancyHook.anchor={self.anchor!r} has no parameter of the model under its name')
        self._theta_0 = found.anchors
        left = len(found.missing) + len(found.mismatched)
        print_log(
            f'DiscrepancyHook: {len(found.matched)} tensors from {self.anchor}, {left} others have none there',
            logger='current',
        )

    @torch.no_grad()
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log it beside the metrics of the validation."""
        if self._theta_0:
            found = relative_discrepancy(self._theta_0, {'': list(self._theta_0)}, None)
            runner.message_hub.update_scalar('val/discrepancy', found[''])
