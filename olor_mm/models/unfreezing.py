"""Training more of a model from some point on, whoever froze it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from olor_mm.layers import canonical_name

from .freezing import FrozenParts
from .method import matches
from .tuned import CHILD, Tuning

__all__ = ['check_thaw', 'find_frozen', 'held_open', 'is_number', 'thaw']

#: How OpenMMLab's backbones say how far they are frozen; some freeze their parameters anew at every ``train()``.
_STAGES = 'frozen_stages'


def find_frozen(model: nn.Module, patterns: Sequence[re.Pattern[str]], option: str) -> dict[str, nn.Parameter]:
    """The frozen parameters in whose names one of some regular expressions is found.

    Args:
        model: The model; what wraps it is left out of the names.
        patterns: The expressions. Each has to be found.
        option: What an error says that they were given as.

    Raises:
        ValueError: If one is found nowhere, or nothing of what they find is frozen.
    """
    named = {canonical_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    for pattern in patterns:
        if not any(pattern.search(name) for name in named):
            raise ValueError(
                f'{option}={pattern.pattern!r} is found in no parameter of {type(model).__name__}; those have names '
                f'such as {", ".join([*named][:3])}'
            )
    found = {name: p for name, p in named.items() if matches(patterns, name)}
    frozen = {name: p for name, p in found.items() if not p.requires_grad and is_number(p)}
    if not frozen:
        raise ValueError(
            f'{option}={[pattern.pattern for pattern in patterns]!r} finds {len(found)} parameters, such as '
            f"{next(iter(found))}, all of which are trained from the start: freeze them, as model.method='Linear' "
            'does, or leave the hook out'
        )
    return frozen


def is_number(param: nn.Parameter) -> bool:
    """Whether a parameter can be trained: quantised ones cannot."""
    return param.is_floating_point() or param.is_complex()


@contextmanager
def held_open(params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are as if they were trained."""
    frozen = [p for p in params if not p.requires_grad]
    try:
        _open(frozen)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def thaw(model: nn.Module, params: Mapping[str, nn.Parameter]) -> None:
    """Let parameters be trained from now on, and put the model into train mode.

    Where a model freezes its first stages anew whenever it is put into train mode, ``frozen_stages`` is lowered as far
    as has to be. What stays frozen and was in eval mode stays in it.

    Args:
        model: The model, bare.
        params: Those to be trained, by name.

    Raises:
        ValueError: If the model freezes them again.
    """
    asleep = _thaw(model, params)
    if not isinstance(getattr(model, CHILD, None), Tuning):
        FrozenParts(model, among=asleep).settle()


def _thaw(model: nn.Module, params: Mapping[str, nn.Parameter]) -> list[nn.Module]:
    """Returns what was in eval mode before."""
    model.train()
    asleep = [module for module in model.modules() if not module.training]
    _open(params.values())
    for module in model.modules():
        _lower(module, params.values())
    model.train()
    again = [name for name, p in params.items() if not p.requires_grad]
    if again:
        raise ValueError(
            f'{type(model).__name__} freezes {len(again)} parameters anew whenever it is put into train mode: '
            f'{", ".join(again[:3])}; build it without that, and freeze them by '
            "model=dict(type='olor_mm.Tuned', ...) instead"
        )
    return asleep


def check_thaw(model: nn.Module, params: Mapping[str, nn.Parameter]) -> None:
    """See that :func:`thaw` can be done; all is as before then.

    Raises:
        ValueError: If the model freezes the parameters again.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    stages = [(module, getattr(module, _STAGES)) for module in model.modules() if hasattr(module, _STAGES)]
    try:
        _thaw(model, params)
    finally:
        for module, stage in stages:
            setattr(module, _STAGES, stage)
        for module, mode in modes:
            module.training = mode
        for p, flag in flags:
            p.requires_grad_(flag)


def _lower(module: nn.Module, params: Iterable[nn.Parameter]) -> None:
    own = set(module.parameters())
    wanted = [p for p in params if p in own]
    if not wanted or not _is_count(getattr(module, _STAGES, None)):
        return
    while True:
        module.train()
        if all(p.requires_grad for p in wanted) or getattr(module, _STAGES) < 0:
            return
        setattr(module, _STAGES, getattr(module, _STAGES) - 1)
        _open(wanted)


def _is_count(stages: object) -> bool:
    return isinstance(stages, int) and not isinstance(stages, bool)


def _open(params: Iterable[nn.Parameter]) -> None:
    for p in params:
        p.requires_grad_(True)
