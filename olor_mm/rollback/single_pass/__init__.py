"""The optimizer's update and the pull towards theta_0 in one read and one write of each parameter.

A pull of its own reads theta and theta_0 and writes theta, 12 bytes a parameter on top of AdamW's 28; together they
are 32. The state that the optimizer keeps is the same, so checkpoints of either way go on in the other.
"""

import importlib
import logging
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer

from .._batches import Batch
from .cpu import BuildError
from .updates import adam_scalars, refusal, refusal_of_group, sgd_scalars, state_keys

__all__ = ['SinglePass']

_log = logging.getLogger(__name__)

#: The index of a tensor in its batch, and its a.
_Pull = tuple[int, float]


class SinglePass:
    """Makes the step of an optimizer and the pull together, for as many of its parameters as it can.

    It leaves to the optimizer and to a pull of its own what it cannot take: parameters without state yet (their first
    step), not dense, pulled by 0 or by 1/2 and more, or in a group with options that it does not know. It says so once.

    Args:
        optimizer: Whose steps are made.
        devices: The types of the devices that its parameters are on: their kernels are compiled now and not at the
            second step. Defaults to ().
    """

    def __init__(self, optimizer: Optimizer, devices: Sequence[str] = ()) -> None:
        self._optimizer = optimizer
        self._keys = state_keys(optimizer)
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._layout: list[Tensor] = []
        self._said: set[str] = set()
        #: Why no step is made in a single pass; None while they are.
        self.refusal = refusal(optimizer)
        for device in devices:
            self._kernels(device)
        self.say(self.refusal)

    @torch.no_grad()
    def step(self, batches: Sequence[Batch], ratios: Sequence[float | Tensor]) -> list[Batch]:
        """Update and pull what can be; its gradients are hidden from the optimizer's own step that follows.

        Args:
            batches: What is to be pulled.
            ratios: lr / initial_lr of each of the optimizer's groups.

        Returns:
            What is left to be pulled after that step.
        """
        if self.refusal is not None:
            return list(batches)
        found_inf = getattr(self._optimizer, 'found_inf', None)
        if found_inf is not None and found_inf.device.type == 'cpu':
            if found_inf.item():
                return list(batches)
            found_inf = None
        reasons = [refusal_of_group(group) for group in self._optimizer.param_groups]
        for reason in {*reasons} - {None}:
            self.say(reason)
        left = []
        for batch in batches:
            taken = self._pulls(batch, ratios, reasons)
            for nesterov, part in self._by_nesterov(batch, taken).items():
                chosen, strengths = batch.only([j for j, _ in part]), [a for _, a in part]
                for ready in chosen.ready():
                    self._take(ready, strengths[: len(ready.params)], found_inf, nesterov)
                    strengths = strengths[len(ready.params) :]
            done = {j for j, _ in taken}
            left.append(batch.only([j for j in range(len(batch.params)) if j not in done]) if done else batch)
        for param, _ in self._hidden:
            param.grad = None
        return left

    def restore(self) -> None:
        """Bring the hidden gradients back, after the optimizer's step."""
        for param, grad in self._hidden:
            param.grad = grad
        self._hidden = []

    def say(self, reason: str | None) -> None:
        """Log, once, why something is not done in a single pass."""
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            _log.warning("form='single_pass' is not possible here (%s): the pull is a pass of its own", reason)

    def _kernels(self, device: str) -> Any:
        """The kernels for a type of device; None, with ``refusal`` set, where they cannot be used."""
        if self.refusal is None and device in ('cpu', 'cuda'):
            try:
                kernels = importlib.import_module(f'.{device}', __name__)
                kernels.load()
            except (BuildError, ImportError) as error:
                self.refusal = f'its kernels cannot be used here: {error}'
            else:
                return kernels
        return None

    def _pulls(self, batch: Batch, ratios: Sequence[float | Tensor], reasons: Sequence[str | None]) -> list[_Pull]:
        """Which tensors of a batch can be taken, and the a of each."""
        pulls: list[_Pull] = []
        for j, (level, g) in enumerate(zip(batch.levels, batch.groups, strict=True)):
            ratio = ratios[g]
            if reasons[g] is None and not isinstance(ratio, Tensor) and 0.0 < ratio * level < 0.5:
                pulls.append((j, ratio * level))
        states = self._optimizer.state
        pulls = [(j, a) for j, a in pulls if states[batch.params[j]].get(self._keys[0]) is not None]
        if not pulls:
            return []
        reason = self._refusal_of(batch, [batch.params[j] for j, _ in pulls])
        if reason is None and self._kernels(batch.params[0].device.type) is None:
            reason = self.refusal
        self.say(reason)
        return [] if reason else pulls

    def _by_nesterov(self, batch: Batch, pulls: list[_Pull]) -> dict[bool, list[_Pull]]:
        parts: dict[bool, list[_Pull]] = {}
        for j, a in pulls:
            nesterov = bool(self._optimizer.param_groups[batch.groups[j]].get('nesterov'))
            parts.setdefault(nesterov, []).append((j, a))
        return parts

    def _refusal_of(self, batch: Batch, params: list[Tensor]) -> str | None:
        """Why the kernels cannot read these tensors; None if they can."""
        if not batch.dense or batch.spread or params[0].device.type not in ('cpu', 'cuda'):
            return 'parameters are sharded or not dense'
        if params[0].dtype not in (torch.float32, torch.float64):
            return f'parameters are {params[0].dtype}'
        moments = [self._optimizer.state[p][key] for key in self._keys for p in params]
        if len(moments) != len(self._layout) or not all(map(is_, moments, self._layout)):
            if not all(map(_alike, moments, params * len(self._keys))):
                return 'moments lie otherwise in memory than their parameters'
            self._layout = moments
        if not all(_alike(p.grad, p) for p in params):
            return 'gradients lie otherwise in memory than their parameters'
        return None

    def _take(self, batch: Batch, strengths: list[float], found_inf: Tensor | None, nesterov: bool) -> None:
        """Call the kernel for a batch, with the a of each tensor, and count the step."""
        params = batch.params
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        states = [self._optimizer.state[p] for p in params]
        lists = [params, grads, *([state[key] for state in states] for key in self._keys)]
        lists.append(batch.anchors)
        device, dtype = params[0].device, params[0].dtype
        groups = batch.groups
        kernels = self._kernels(device.type)
        skip = {}
        if found_inf is not None:
            skip['found_inf'] = found_inf.to(device, non_blocking=True)
        scale = getattr(self._optimizer, 'grad_scale', None)
        if scale is not None:
            skip['grad_scale'] = scale.to(device, non_blocking=True)
        if isinstance(self._optimizer, SGD):
            kernels.sgd(*lists, sgd_scalars(self._optimizer, groups, strengths, device).to(dtype), nesterov, **skip)
        else:
            steps = [state['step'] for state in states]
            count = torch.stack(steps)
            if count.device != device:
                # Else the host would wait for the copy.
                count = count.pin_memory()
            count = count.to(device, torch.float64, non_blocking=True) + 1
            kernels.adam(*lists, adam_scalars(self._optimizer, groups, strengths, count).to(dtype), **skip)
            torch._foreach_add_(steps, 1)
            if found_inf is not None:
                torch._foreach_sub_(steps, [found_inf.reshape(())] * len(steps))
        for param in params:
            # So that autograd sees that a graph of before this step is stale.
            increment_version(param)
        self._hidden += zip(params, grads, strict=True)


def _alike(tensor: Any, param: Tensor) -> bool:
    return bool(tensor.dtype == param.dtype and tensor.device == param.device and tensor.stride() == param.stride())
