"""theta_0 in an optimizer's state dict, where it is kept otherwise than the optimizer keeps its own state.

Through torch's hooks for state dicts, so that whatever saves and loads optimizers meets it.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ._references import REFERENCE_KEY
from .keeping import Keeper

__all__ = ['ANCHOR_KEY', 'StateHooks']

ANCHOR_KEY = 'rollback_anchor'


class StateHooks:
    """Hooks on one optimizer, for as long as they are not removed; none where theta_0 is kept as everything else.

    Args:
        optimizer: The optimizer.
        keeper: What keeps theta_0.
    """

    def __init__(self, optimizer: Optimizer, keeper: Keeper) -> None:
        self._keeper = keeper
        self._aside: dict[Any, Any] = {}
        self._handles: list[Any] = []
        if not keeper.is_plain:
            self._handles += [
                optimizer.register_load_state_dict_pre_hook(self._before_load),
                optimizer.register_load_state_dict_post_hook(self._after_load),
            ]
        if keeper.options.memory == 'mapped':
            self._handles.append(optimizer.register_state_dict_pre_hook(lambda _: keeper.check()))
        if keeper.options.saved == 'reference':
            self._handles.append(optimizer.register_state_dict_post_hook(self._after_save))
        if keeper.options.dtype == 'lossless':
            self._handles.append(optimizer.register_state_dict_post_hook(self._widen))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        # torch would bring all of it to the device and the dtype of the parameters.
        saved = [index for group in state_dict['param_groups'] for index in group['params']]
        here = [param for group in optimizer.param_groups for param in group['params']]
        params = dict(zip(saved, here, strict=False))
        states = dict(state_dict['state'])
        self._aside = {}
        for index, state in states.items():
            if index in params and ANCHOR_KEY in state:
                states[index] = {key: value for key, value in state.items() if key != ANCHOR_KEY}
                self._aside[params[index]] = state[ANCHOR_KEY]
        return {**state_dict, 'state': states}

    def _after_load(self, optimizer: Optimizer) -> None:
        for param, value in self._aside.items():
            optimizer.state[param][ANCHOR_KEY] = value
        self._aside = {}

    def _widen(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        # Who reads a checkpoint into the tensors of a state dict, as torch's distributed checkpoints do, rounds else.
        params = [param for group in optimizer.param_groups for param in group['params']]
        states = dict(state_dict['state'])
        for index, state in states.items():
            if isinstance(index, int) and ANCHOR_KEY in state:
                states[index] = {**state, ANCHOR_KEY: state[ANCHOR_KEY].to(params[index].dtype)}
        return {**state_dict, 'state': states}

    def _after_save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        params: list[Tensor] = [param for group in optimizer.param_groups for param in group['params']]
        states = dict(state_dict['state'])
        anchors = {
            params[index]: state[ANCHOR_KEY]
            for index, state in states.items()
            if isinstance(index, int) and ANCHOR_KEY in state
        }
        references = self._keeper.origins.references(anchors)
        for index, state in states.items():
            reference = references.get(params[index]) if isinstance(index, int) else None
            if reference is not None and ANCHOR_KEY in state:
                # The state is the optimizer's own: it is not to be changed.
                rest = {key: value for key, value in state.items() if key != ANCHOR_KEY}
                states[index] = {**rest, REFERENCE_KEY: reference.encoded()}
        return {**state_dict, 'state': states}
