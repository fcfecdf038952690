"""The optimizer's update and the pull towards theta_0 in one read and one write of each parameter.

A pull of its own reads theta and theta_0 and writes theta, 12 bytes a parameter on top of AdamW's 28; together they
are 32. The state that the optimizer keeps is the same, so checkpoints of either way go on in the other.
"""

import importlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer

from .._batches import Batch
from ._plan import Part, Plan, wants
from .cpu import BuildError
from .updates import adam_scalars, refusal, refusal_of_group, sgd_scalars, state_keys

__all__ = ['SinglePass', 'tell_refusal']

_CAPTURED = 'a CUDA graph is being captured'
_log = logging.getLogger(__name__)


class SinglePass:
    """Makes the step of an optimizer and the pull together, for as many of its parameters as it can.

    It leaves to the optimizer and to a pull of its own what it cannot take: parameters without state yet (their first
    step), pulled by 0 or by 1/2 and more, or with tensors or options that its kernels do not know. It says why, once.

    Args:
        optimizer: Whose steps are made.
        devices: The devices that its parameters are on: their kernels are compiled now and not at the second step.
            Defaults to ().
    """

    def __init__(self, optimizer: Optimizer, devices: Iterable[torch.device] = ()) -> None:
        self._optimizer = optimizer
        self._keys = state_keys(optimizer)
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._said: set[str] = set()
        self._plans: WeakKeyDictionary[Batch, Plan] = WeakKeyDictionary()
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
            if _is_captured(batch):
                self.say(_CAPTURED)
                left.append(batch)
                continue
            plan = self._plans.get(batch)
            if plan is None or not plan.holds(self._optimizer, batch, ratios, reasons):
                plan = self._plans[batch] = self._plan(batch, ratios, reasons)
            for part in plan.parts:
                self._take_all(part, ratios, found_inf)
            left.append(batch if plan.left is None else plan.left)
        return left

    def restore(self) -> None:
        """Bring the hidden gradients back, after the optimizer's step."""
        for param, grad in self._hidden:
            param.grad = grad
        self._hidden = []

    def forget(self) -> None:
        """Give up gradients that are still hidden, because the optimizer's step ended in an error: they are used up."""
        self._hidden = []

    def say(self, reason: str | None) -> None:
        """Log, once, why something is not done in a single pass."""
        if reason is not None and reason not in self._said:
            self._said.add(reason)
            tell_refusal(reason)

    def _kernels(self, device: torch.device) -> Any:
        """The kernels for a device; None, with ``refusal`` set, where they cannot be used."""
        if self.refusal is None and device.type in ('cpu', 'cuda'):
            try:
                kernels = importlib.import_module(f'.{device.type}', __name__)
                kernels.load(device)
            except (BuildError, ImportError) as error:
                self.refusal = f'its kernels cannot be used here: {error}'
            else:
                return kernels
        return None

    def _plan(self, batch: Batch, ratios: Sequence[float | Tensor], reasons: Sequence[str | None]) -> Plan:
        """Which tensors can be taken, and which of them together."""
        wanted = wants(batch, ratios, reasons)
        taken = []
        refused: Counter[str] = Counter()
        whole = _refusal_of(batch)
        for j in (j for j, want in enumerate(wanted) if want):
            state = self._optimizer.state.get(batch.params[j], {})
            if not batch.params[j].numel() or state.get(self._keys[0]) is None:
                continue
            reason = whole or self._refusal_of_tensor(batch.params[j], state)
            if reason is None:
                taken.append(j)
            else:
                refused[reason] += 1
        for reason, count in refused.items():
            self.say(reason if reason == whole else f'{reason}, of {count} tensors')
        if taken and self._kernels(batch.params[0].device) is None:
            self.say(self.refusal)
            taken = []
        return Plan(self._optimizer, batch, wanted, taken, self._keys)

    def _refusal_of_tensor(self, param: Tensor, state: Mapping[str, Any]) -> str | None:
        if not all(_alike(state.get(key), param) for key in self._keys):
            return 'the moments lie otherwise in memory than the parameters'
        if not _alike(param.grad, param):
            return 'the gradients lie otherwise in memory than the parameters'
        count = state.get('step')
        if not isinstance(self._optimizer, SGD) and (
            not isinstance(count, Tensor) or count.dim() or count.device.type not in ('cpu', param.device.type)
        ):
            return 'the counts of steps are not as torch makes them'
        return None

    def _take_all(self, part: Part, ratios: Sequence[float | Tensor], found_inf: Tensor | None) -> None:
        """Those that a kernel takes together, as far as their theta_0 is there at once."""
        batch, start = part.batch, 0
        pulls = [float(ratios[g]) * level for g, level in zip(batch.groups, batch.levels, strict=True)]
        for ready in batch.ready():
            self._take(ready, pulls[start : start + len(ready.params)], found_inf, part.nesterov)
            start += len(ready.params)

    def _take(self, batch: Batch, strengths: list[float], found_inf: Tensor | None, nesterov: bool) -> None:
        """Call the kernel for a batch, with the a of each tensor, and hide the gradients."""
        params = batch.params
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        states = [self._optimizer.state[p] for p in params]
        lists = [params, grads, *([state[key] for state in states] for key in self._keys), batch.anchors]
        device, dtype = params[0].device, params[0].dtype
        kernels = self._kernels(device)
        given = {'found_inf': found_inf, 'grad_scale': getattr(self._optimizer, 'grad_scale', None)}
        skip = {name: value.to(device, non_blocking=True) for name, value in given.items() if value is not None}
        if isinstance(self._optimizer, SGD):
            scalars = sgd_scalars(self._optimizer, batch.groups, strengths, device)
            kernels.sgd(*lists, scalars.to(dtype), nesterov, **skip)
        else:
            steps = [state['step'] for state in states]
            scalars = adam_scalars(self._optimizer, batch.groups, strengths, _next(steps, device))
            kernels.adam(*lists, scalars.to(dtype), **skip)
            torch._foreach_add_(steps, 1)
            if found_inf is not None:
                torch._foreach_sub_(steps, [found_inf.reshape(()).to(steps[0].device)] * len(steps))
        # So that autograd sees that a graph of before this step is stale.
        _increment_versions(params)
        self._hidden += zip(params, grads, strict=True)
        for param in params:
            param.grad = None


def tell_refusal(reason: str) -> None:
    """Log why something is not done in a single pass."""
    _log.warning("form='single_pass' is not possible here (%s): the pull is a pass of its own", reason)


def _next(steps: list[Tensor], device: torch.device) -> Tensor:
    """The counts of steps after this one, in float64 on a device."""
    count = torch.stack(steps)
    if count.device != device:
        # Else the host would wait for the copy.
        count = count.pin_memory()
    return count.to(device, torch.float64, non_blocking=True) + 1


def _refusal_of(batch: Batch) -> str | None:
    """Why nothing of a batch can be taken; None if it can."""
    param = batch.params[0]
    if not batch.dense or batch.spread or param.device.type not in ('cpu', 'cuda'):
        return 'parameters are sharded or not dense'
    if param.dtype not in (torch.float32, torch.float64):
        return f'parameters are {param.dtype}'
    return None


def _is_captured(batch: Batch) -> bool:
    """Whether what is done now would be done again with the numbers of this step."""
    return batch.params[0].device.type == 'cuda' and torch.cuda.is_current_stream_capturing()


def _increment_versions(params: list[Tensor]) -> None:
    if _INCREMENTS_LISTS:
        increment_version(params)
        return
    for param in params:
        increment_version(param)


def _increments_lists() -> bool:
    """Whether torch takes many tensors at once."""
    try:
        increment_version([])
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


_INCREMENTS_LISTS = _increments_lists()


def _alike(tensor: Any, param: Tensor) -> bool:
    # All of it: the kernels walk over memory and do not ask.
    return (
        isinstance(tensor, Tensor)
        and tensor.shape == param.shape
        and tensor.stride() == param.stride()
        and tensor.dtype == param.dtype
        and tensor.device == param.device
    )
