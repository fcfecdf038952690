"""theta_0: when it is taken, where it lives, in which dtype, how it is saved and restored.

It lives in ``optimizer.state[p][ANCHOR_KEY]``, in the parameter's dtype and on its device unless a
:class:`~olor_mm.rollback.keeping.Keep` says otherwise, so that saving, loading, moving between devices and the
gathering of sharded states are the optimizer's own. It gets there only after the base optimizer's first step on p: Adam
and others initialise p when they find its state empty, and an early key would keep them from it. Until then it waits in
this object.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from ._files import BrokenCheckpointError, read_safetensors, read_torch
from ._references import REFERENCE_KEY, decoded
from ._shards import local
from ._state_hooks import ANCHOR_KEY, StateHooks
from .checks import check_saved, check_theta_0
from .keeping import Keep, Keeper

__all__ = [
    'ANCHOR_KEY',
    'INITIAL_LR_KEY',
    'AnchorFile',
    'AnchorStore',
    'Anchors',
    'MissingAnchorError',
    'anchors_from_file',
    'has_anchor',
]

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


def has_anchor(state: Mapping[str, Any] | None) -> bool:
    """Whether the state that an optimizer has of a parameter holds theta_0, or says where it is."""
    return state is not None and (ANCHOR_KEY in state or REFERENCE_KEY in state)


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
        keep: How to keep it. Defaults to None, which is as the parameter is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: Iterable[Tensor],
        given: Mapping[Tensor, Tensor],
        names: Mapping[Tensor, str],
        on_missing: str = 'error',
        keep: Keep | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.given = dict(given)
        self.names = names
        self.keeper = Keeper(Keep() if keep is None else keep, names, self.get)
        self.on_missing = on_missing
        self._params = list(params)
        self._known: dict[Tensor, Tensor] = {}
        self._pending: dict[Tensor, Tensor] = {}
        self._wanted: list[Tensor] = list(self._params)
        self._state = optimizer.state
        self._unfinished = False
        self._hooks = StateHooks(optimizer, self.keeper)
        for group in optimizer.param_groups:
            group.setdefault(INITIAL_LR_KEY, 0.0)

    def __getitem__(self, param: Tensor) -> Tensor:
        self.keeper.check()
        return self._known[param] if param in self._known else self._pending[param]

    def __contains__(self, param: Tensor) -> bool:
        return param in self._known or param in self._pending

    def get(self, param: Tensor) -> Tensor | None:
        """theta_0 of ``param`` as it is kept; None where it is not."""
        self.keeper.check()
        return self._known.get(param, self._pending.get(param))

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
        # Also after an attempt that ended in an error: a second one must not take what the first one refused.
        loaded = self._unfinished or self.optimizer.state is not self._state
        self._unfinished = loaded
        if again:
            self._pending.clear()
            self._wanted = list(self._params)
        if loaded:
            # load_state_dict puts a new dict in place of the old one: what it brought counts now.
            self._state = self.optimizer.state
            self._known.clear()
            self._wanted = list(self._params)
        if not self._wanted:
            self._unfinished = False
            return False
        if loaded or not (self._known or self._pending):
            self.keeper.forget()
        before = len(self._known) + len(self._pending)
        foreign = loaded and not all(INITIAL_LR_KEY in group for group in self.optimizer.param_groups)
        self._resolve()
        self._take_from_state()
        missing, wanted = self._take_others(loaded, trusted=not foreign and not self._stateless())
        self._raise_missing(missing)
        for group in self.optimizer.param_groups:
            group.setdefault(INITIAL_LR_KEY, 0.0)
        self._wanted = wanted
        self._unfinished = False
        return loaded or len(self._known) + len(self._pending) != before

    def _take_from_state(self) -> None:
        """What the optimizer's state holds."""
        found: dict[Tensor, Tensor] = {}
        for param in self._wanted:
            state = self._state.get(param)
            if not state or ANCHOR_KEY not in state:
                continue
            if param not in self._known:
                check_saved(state[ANCHOR_KEY], param, self._name(param))
            if param not in self._known or self.keeper.is_plain:
                found[param] = state[ANCHOR_KEY]
        for param, value in self.keeper.keep(found).items():
            self._known[param] = self._state[param][ANCHOR_KEY] = value
            self._pending.pop(param, None)
            self.given.pop(param, None)

    def _take_others(self, loaded: bool, trusted: bool) -> tuple[list[Tensor], list[Tensor]]:
        """What was given, or is what the parameters are now; returns those without theta_0, and those not trained."""
        missing, wanted = [], []
        taken: dict[Tensor, Tensor] = {}
        for param in self._wanted:
            if param in self._known:
                continue
            if not param.requires_grad:
                wanted.append(param)
            elif param not in self._pending or loaded:
                state = self._state.get(param)
                # A shard without elements has no history that could be lost.
                known_start = not param.numel() or (not _has_stepped(state) and (not loaded or trusted))
                value = self._value(param, known_start)
                if value is None:
                    missing.append(param)
                else:
                    taken[param] = value
        self._pending.update(self.keeper.keep(taken))
        for param in taken:
            self.given.pop(param, None)
        return missing, wanted

    def _resolve(self) -> None:
        """Put theta_0 in the place of what says where it is, in a state that was loaded."""
        named = {
            p: decoded(self._state[p][REFERENCE_KEY]) for p in self._params if REFERENCE_KEY in self._state.get(p, ())
        }
        for param, value in (self.keeper.origins.resolve(named) if named else {}).items():
            self._state[param][ANCHOR_KEY] = value
            del self._state[param][REFERENCE_KEY]

    def _stateless(self) -> bool:
        """Whether the loaded states hold theta_0 and nothing else: then an empty one is no proof of an unused one."""
        kept = [state for state in self._state.values() if ANCHOR_KEY in state]
        return bool(kept) and all(len(state) == 1 for state in kept)

    def _name(self, param: Tensor) -> str:
        return self.names.get(param, f'a tensor of shape {tuple(param.shape)}')

    def _value(self, param: Tensor, never_stepped: bool) -> Tensor | None:
        """theta_0 from where it is known, or the parameter's own memory; None where that is not theta_0 any more."""
        if param in self.given:
            check_theta_0(self.given[param], param, self._name(param))
            return self.given[param]
        if never_stepped or self.on_missing == 'current':
            check_theta_0(param, param, self._name(param))
            return param
        return None

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
            state.pop(REFERENCE_KEY, None)
        for group in self.optimizer.param_groups:
            group.pop(INITIAL_LR_KEY, None)
        self._known.clear()
        self._pending.clear()
        self._wanted = []
        self._hooks.remove()
        self.keeper.close()
