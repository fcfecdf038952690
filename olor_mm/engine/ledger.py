"""Which parameters did a checkpoint deliver, and from which file? Watched, not guessed.

Loading goes through ``Module._load_from_state_dict`` whoever starts it (``init_cfg``, ``load_from``, a user's own
``load_state_dict``), after every renaming and resizing that the model does. Pre-hooks see it there.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from olor_mm.layers import canonical_name

from . import loading

__all__ = ['LoadLedger']


class LoadLedger:
    """Records every parameter of a model that a checkpoint delivers with matching shape.

    Args:
        model: The model to watch, from now until :meth:`close`.

    Attributes:
        delivered: Parameter to where it came from: a file, or 'a state dict' where that is not known.
        mismatched: Parameter to the shape that a checkpoint had for it.
        reached: Where everything came from that was loaded into the model as a whole, whether any of it fitted or not.
            What was loaded into a sub-module alone, as its ``init_cfg`` does, is not in it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.delivered: dict[Tensor, str] = {}
        self.mismatched: dict[Tensor, tuple[int, ...]] = {}
        self.reached: set[str] = set()
        #: Grows with every module that a checkpoint reaches.
        self.version = 0
        self._own = set(model.parameters())
        self._handles = [
            _register(module, _make_hook(weakref.ref(self), frozenset(paths)))
            for module, paths in _paths(model).items()
            if next(module.parameters(recurse=False), None) is not None
        ]

    def close(self) -> None:
        """Watch no more; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def adopt(self, other: 'LoadLedger') -> None:
        """Take over what another ledger of the same model has recorded."""
        self.delivered.update(other.delivered)
        self.mismatched.update(other.mismatched)
        self.reached |= other.reached
        self.version += other.version

    def see(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, paths: frozenset[str]) -> None:
        """Record what ``state_dict`` holds for the parameters that ``module``, found at ``paths``, itself owns."""
        source = loading.last_loaded() or 'a state dict'
        whole = _path(prefix.removesuffix('.')) in paths
        for name, param in module.named_parameters(recurse=False):
            # A deep copy of the model, such as EMAHook's, carries this hook too.
            if param not in self._own:
                continue
            if whole:
                self.reached.add(source)
            value = state_dict.get(prefix + name)
            if not isinstance(value, Tensor):
                continue
            self.version += 1
            if value.shape == param.shape:
                self.delivered[param] = source
                self.mismatched.pop(param, None)
            else:
                self.mismatched[param] = tuple(value.shape)

    def sources(self, params: Iterable[Tensor]) -> dict[str, int]:
        """Source to the number of tensors among ``params`` that it delivered."""
        counts: dict[str, int] = {}
        for param in params:
            if param in self.delivered:
                counts[self.delivered[param]] = counts.get(self.delivered[param], 0) + 1
        return counts


def _path(name: str) -> str:
    # canonical_name never touches the last component.
    return canonical_name(f'{name}._' if name else '_')


def _paths(model: nn.Module) -> dict[nn.Module, set[str]]:
    found: dict[nn.Module, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, set()).add(_path(name))
    return found


def _make_hook(ledger: 'weakref.ref[LoadLedger]', paths: frozenset[str]) -> Callable[..., None]:
    # A plain function with a weak reference: EMAHook deep-copies the model with its hooks, and must not copy the
    # ledger, and with it every parameter, too.
    def hook(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        alive = ledger()
        if alive is not None:
            alive.see(module, state_dict, prefix, paths)

    return hook


def _register(module: nn.Module, hook: Callable[..., None]) -> torch.utils.hooks.RemovableHandle:
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        return module.register_load_state_dict_pre_hook(hook)
    return module._register_load_state_dict_pre_hook(hook, with_module=True)
