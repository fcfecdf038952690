"""theta_0: when it is taken, where it lives, in which dtype, how it is saved and restored.

It lives in ``optimizer.state[p][ANCHOR_KEY]``, in the parameter's dtype and on its device, so that saving, loading,
moving between devices and the gathering of sharded states are the optimizer's own. It gets there only after the base
optimizer's first step on p: Adam and others initialise p when they find its state empty, and an early key would keep
them from it. Until then it waits in this object.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._files import BrokenCheckpointError, read_safetensors, read_torch
from ._shards import local, spread_like
from .checks import check_saved, check_theta_0

__all__ = [
    'ANCHOR_KEY',
    'INITIAL_LR_KEY',
    'AnchorFile',
    'AnchorStore',
    'Anchors',
    'MissingAnchorError',
    'anchors_from_file',
]

ANCHOR_KEY = 'rollback_anchor'
INITIAL_LR_KEY = 'rollback_initial_lr'

ON_MISSING = ('error', 'current')


class MissingAnchorError(RuntimeError):
    """A parameter has been trained already and its theta_0 is not in the checkpoint."""


@dataclass
class AnchorFile:
    """theta_0 as read from a checkpoint file.

    Attributes:
        anchors: Parameter to its value in the file, on the CPU, in the file's dtype.
        matched: Names of the parameters found with the same shape.
        missing: Names of the parameters that the file does not have.
        mismatched: Names of those that it has in another shape, with both shapes.
    """

    anchors: dict[Tensor, Tensor] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)


def anchors_from_state_dict(
    state_dict: Mapping[str, Any], named_parameters: Iterable[tuple[str, Tensor]], prefix: str = ''
) -> AnchorFile:
    """theta_0 from a state dict, by name.

    Args:
        state_dict: Name to tensor; a checkpoint that holds one under 'state_dict', 'model' or 'module' is opened.
        named_parameters: The parameters to find and their names.
        prefix: What the file's names begin with in front of ours. Defaults to ''.

    Returns:
        What was found; nothing is raised for what was not.
    """
    for key in ('state_dict', 'model', 'module'):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    names = {
        k.removeprefix('module.'): k for k, v in state_dict.items() if isinstance(k, str) and isinstance(v, Tensor)
    }
    found = AnchorFile()
    for name, param in named_parameters:
        if prefix + name not in names:
            found.missing.append(name)
            continue
        value = state_dict[names[prefix + name]].detach()
        if value.shape != param.shape:
            found.mismatched[name] = (tuple(value.shape), tuple(param.shape))
            continue
        found.matched.append(name)
        found.anchors[param] = value
    return found


def anchors_from_file(file: str | Path, named_parameters: Iterable[tuple[str, Tensor]], prefix: str = '') -> AnchorFile:
    """theta_0 from a checkpoint file, by name. No code in the file is run (``weights_only=True``).

    Args:
        file: A file of ``torch.save`` or, where safetensors is installed, a ``.safetensors`` file.
        named_parameters: The parameters to find and their names.
        prefix: What the file's names begin with in front of ours, such as 'backbone.'. Defaults to ''.

    Returns:
        What was found; see :class:`AnchorFile`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is a ``.safetensors`` file and safetensors is not installed.
        UnsafeCheckpointError: If the file holds more than tensors and plain data.
        BrokenCheckpointError: If it is no checkpoint, or an incomplete one.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f'anchor={str(file)!r}: no such file; give the checkpoint with the pre-trained weights')
    read = read_safetensors if file.suffix == '.safetensors' else read_torch
    state = read(str(file), f'anchor={str(file)!r}')
    if not isinstance(state, Mapping):
        raise BrokenCheckpointError(
            f'anchor={str(file)!r} holds a {type(state).__name__}, no weights by name; save {{name: tensor}}'
        )
    return anchors_from_state_dict(state, named_parameters, prefix)


def _fit(value: Tensor, param: Tensor) -> Tensor:
    """``value`` in the parameter's dtype, device and memory layout, which the kernels rely on."""
    value = spread_like(value, param).detach().to(device=param.device, dtype=param.dtype)
    if value.stride() != param.stride():
        value = torch.empty_like(param, memory_format=torch.preserve_format).copy_(value)
    return value


def _has_stepped(state: Mapping[str, Any] | None) -> bool:
    """Whether the base optimizer has updated the parameter of this state.

    Some fill it before their first step: Adagrad with a step count of 0, others with zeros alone.
    """
    if not state:
        return False
    step = state.get('step')
    if step is not None:
        return bool(step > 0)
    return any(bool(local(v).any()) if isinstance(v, Tensor) else bool(v) for v in state.values())


class Anchors(Protocol):
    """What keeps theta_0."""

    def __getitem__(self, param: Tensor) -> Tensor: ...

    def __contains__(self, param: Tensor) -> bool: ...


class AnchorStore:
    """Keeps theta_0 of some parameters of an optimizer.

    Args:
        optimizer: The optimizer in whose state theta_0 is kept.
        params: The parameters to keep it for.
        given: theta_0 where it is known already; taken from the parameter itself elsewhere.
        names: Parameter to name, for messages.
        on_missing: What to do for a parameter that has been trained already (its optimizer state says so, or the
            optimizer's state was loaded from a run without rollback) and that has no theta_0: 'error', or 'current' to
            take its present value.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: Iterable[Tensor],
        given: Mapping[Tensor, Tensor],
        names: Mapping[Tensor, str],
        on_missing: str = 'error',
    ) -> None:
        self.optimizer = optimizer
        self.given = dict(given)
        self.names = names
        self.on_missing = on_missing
        self._params = list(params)
        self._known: dict[Tensor, Tensor] = {}
        self._pending: dict[Tensor, Tensor] = {}
        self._wanted: list[Tensor] = list(self._params)
        self._state = optimizer.state
        for group in optimizer.param_groups:
            group.setdefault(INITIAL_LR_KEY, 0.0)

    def __getitem__(self, param: Tensor) -> Tensor:
        return self._known[param] if param in self._known else self._pending[param]

    def __contains__(self, param: Tensor) -> bool:
        return param in self._known or param in self._pending

    def take(self, again: bool = False) -> bool:
        """Make sure that every parameter that can be trained now has its theta_0; before a step of the optimizer.

        Args:
            again: Take anew what was taken and has not been used yet. Defaults to False.

        Returns:
            Whether anything changed.

        Raises:
            MissingAnchorError: If one has been trained, has none, and ``on_missing`` is 'error'.
            ValueError: If theta_0 would have no values, or some that are not finite.
        """
        loaded = self.optimizer.state is not self._state
        if again:
            self._pending.clear()
            self._wanted = list(self._params)
        if loaded:
            # load_state_dict puts a new dict in place of the old one: what it brought counts now.
            self._state = self.optimizer.state
            self._known.clear()
            self._wanted = list(self._params)
        if not self._wanted:
            return False
        before = len(self._known) + len(self._pending)
        missing, wanted = [], []
        foreign = loaded and not all(INITIAL_LR_KEY in group for group in self.optimizer.param_groups)
        trusted = not foreign and not self._stateless()
        for param in self._wanted:
            state = self._state.get(param)
            if state and ANCHOR_KEY in state:
                if param not in self._known:
                    check_saved(
                        state[ANCHOR_KEY], param, self.names.get(param, f'a tensor of shape {tuple(param.shape)}')
                    )
                self._known[param] = state[ANCHOR_KEY] = _fit(state[ANCHOR_KEY], param)
                self._pending.pop(param, None)
                self.given.pop(param, None)
            elif not param.requires_grad:
                wanted.append(param)
            elif param not in self._pending or loaded:
                # A shard without elements has no history that could be lost.
                known_start = not param.numel() or (not _has_stepped(state) and (not loaded or trusted))
                if not self._take_one(param, known_start):
                    missing.append(param)
        self._raise_missing(missing)
        for group in self.optimizer.param_groups:
            group.setdefault(INITIAL_LR_KEY, 0.0)
        self._wanted = wanted
        return loaded or len(self._known) + len(self._pending) != before

    def _stateless(self) -> bool:
        """Whether the loaded states hold theta_0 and nothing else: then an empty one is no proof of an unused one."""
        kept = [state for state in self._state.values() if ANCHOR_KEY in state]
        return bool(kept) and all(len(state) == 1 for state in kept)

    def _take_one(self, param: Tensor, never_stepped: bool) -> bool:
        name = self.names.get(param, f'a tensor of shape {tuple(param.shape)}')
        if param in self.given:
            value = self.given[param]
            check_theta_0(value, param, name)
            self.given.pop(param)
            if local(value).data_ptr() == local(param).data_ptr():
                value = value.clone()
            self._pending[param] = _fit(value, param)
        elif never_stepped or self.on_missing == 'current':
            check_theta_0(param, param, name)
            self._pending[param] = param.detach().clone(memory_format=torch.preserve_format)
        else:
            return False
        return True

    def _raise_missing(self, missing: list[Tensor]) -> None:
        if not missing:
            return
        shown = ', '.join(self.names.get(p, f'a tensor of shape {tuple(p.shape)}') for p in missing[:3])
        raise MissingAnchorError(
            f'{len(missing)} of {len(self._params)} parameters have been trained already, but their pre-trained values '
            f'(theta_0) were not saved with the optimizer: {shown}{", ..." if len(missing) > 3 else ""}. Pulling them '
            'back to what they are now would keep the fine-tuned weights, not the pre-trained ones. Give the file with '
            "the pre-trained weights as anchor='FILE', or say anchor='current' to keep the present weights"
        )

    def commit(self) -> None:
        """Move theta_0 into the optimizer's state where the base optimizer has set that up; after a step."""
        for param in [p for p in self._pending if p.grad is not None or self._state.get(p)]:
            value = self._pending.pop(param)
            self._state[param][ANCHOR_KEY] = value
            self._known[param] = value

    def clear(self) -> None:
        """Forget every theta_0, here and in the optimizer."""
        for state in self.optimizer.state.values():
            state.pop(ANCHOR_KEY, None)
        for group in self.optimizer.param_groups:
            group.pop(INITIAL_LR_KEY, None)
        self._known.clear()
        self._pending.clear()
        self._wanted = []
