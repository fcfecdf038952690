"""Step hooks that stay: torch 2.1 and 2.2 take them off every optimizer class when something is compiled.

There, the first use of ``torch.compile`` in a process puts the bare ``step`` in the place of the one that calls the
hooks, in torch's own optimizer classes and for good, and nothing is said. A ``step`` that the instance holds itself,
as a learning rate scheduler's does, stays as it is.
"""

import functools
import sys
from types import MethodType
from typing import Any

from torch.optim import Optimizer

__all__ = ['hold_step', 'is_innermost', 'release_step']


def hold_step(optimizer: Optimizer) -> Any:
    """Make sure that the steps of ``optimizer`` call its hooks, whatever is compiled before or after.

    Nothing is done where torch leaves the hooks alone.

    Returns:
        What was put on the optimizer as its ``step``, for :func:`release_step`; None where nothing was.
    """
    if not _compiling_takes_hooks_off():
        return None
    if _calls_hooks(optimizer.step):
        if 'step' in vars(optimizer):
            return None
        held = optimizer.step
    elif getattr(type(optimizer).step, 'hooked', False) and not _calls_hooks(type(optimizer).step):
        held = _with_hooks(optimizer)
    else:
        return None
    optimizer.step = held  # type: ignore[method-assign]
    return held


def release_step(optimizer: Optimizer, held: Any) -> None:
    """Take away what :func:`hold_step` put there, unless something else has come in its place."""
    if held is not None and vars(optimizer).get('step') is held:
        del optimizer.step


def is_innermost(optimizer: Optimizer, before: Any, after: Any) -> bool:
    """Whether no other hook runs between these two and the step, where gradients are hidden.

    Args:
        optimizer: The optimizer.
        before: The handle of a pre-hook of its step.
        after: That of a post-hook.
    """
    return (
        next(reversed(optimizer._optimizer_step_pre_hooks)) == before.id
        and next(iter(optimizer._optimizer_step_post_hooks)) == after.id
    )


def _with_hooks(optimizer: Optimizer) -> Any:
    bare = optimizer.step

    @functools.wraps(bare)
    def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return bare(*args, **kwargs)

    return MethodType(Optimizer.profile_hook_step(step), optimizer)


def _calls_hooks(step: Any) -> bool:
    """Whether ``step`` or a function that it wraps is torch's wrapper that calls the hooks."""
    while step is not None:
        # A method hands on the attributes of its function.
        if getattr(step, '__code__', None) is _wrapper_code():
            return True
        step = getattr(step, '__wrapped__', None)
    return False


@functools.cache
def _wrapper_code() -> Any:
    return Optimizer.profile_hook_step(_calls_hooks).__code__


def _compiling_takes_hooks_off() -> bool:
    """Whether this torch does; one that does has loaded its compiler by the time that an optimizer is built."""
    patcher = getattr(sys.modules.get('torch._dynamo.eval_frame'), 'TorchPatcher', None)
    patch = getattr(patcher, 'patch', None)
    patch = getattr(patch, '__wrapped__', patch)
    return 'hooked' in getattr(getattr(patch, '__code__', None), 'co_names', ())
