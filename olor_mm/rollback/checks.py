"""What a Rollback refuses: arguments that cannot be right, and values that would spoil every step."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ._shards import is_spread, local
from .keeping import Keep
from .rules import check_amount, is_off

__all__ = [
    'check_anchor',
    'check_balls',
    'check_gradients',
    'check_keep',
    'check_levels',
    'check_names',
    'check_saved',
    'check_theta_0',
    'name_of',
]


def name_of(param: Tensor, names: Mapping[Tensor, str]) -> str:
    """What a parameter is called in messages."""
    return names[param] if param in names else f'tensor of shape {tuple(param.shape)}'


def _shown(value: object) -> str:
    """A value in a message: in one line, and not long."""
    return ' '.join(repr(value).split())[:60]


def check_names(names: Any) -> dict[Tensor, str]:
    """A copy of ``names`` if it maps parameters to names.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(names, Mapping):
        raise ValueError(
            f'names={_shown(names)} must map parameters to names: {{p: name for name, p in named_parameters}}'
        )
    wrong = next((key for key in names if not isinstance(key, Tensor)), None)
    if wrong is not None:
        raise ValueError(
            f'names: {_shown(wrong)} is no parameter: give parameter to name, '
            '{p: name for name, p in model.named_parameters()}'
        )
    return dict(names)


def check_levels(
    optimizer: Any, levels: Any, names: Mapping[Tensor, str], rule: str = 'olor', keep_off: bool = False
) -> dict[Tensor, float]:
    """The levels above 0, or the radii, if all of them can be used with this optimizer.

    Args:
        optimizer: The optimizer.
        levels: Parameter to level, or to radius with the rule 'projection'.
        names: Parameter to name, for messages.
        rule: One of ``RULES``. Defaults to 'olor'.
        keep_off: Whether those that are never pulled back stay in, for they need theta_0 all the same. Defaults to
            False.

    Raises:
        ValueError: If the optimizer is none, a level is outside [0, 1], or a parameter is not the optimizer's, is there
            twice, or can have no gradient.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f'optimizer={type(optimizer).__name__} must be a torch.optim.Optimizer; of a wrapper give its optimizer'
        )
    if not isinstance(levels, Mapping):
        raise ValueError(f'levels={_shown(levels)} must map parameters to levels, as layerwise_levels() gives them')
    if not levels:
        raise ValueError('levels is empty: give each parameter its level; with level 0 it is left alone')
    given = [p for group in optimizer.param_groups for p in group['params']]
    owned, counts = set(given), Counter(given)
    used = {}
    for param, level in levels.items():
        if not isinstance(param, Tensor):
            raise ValueError(
                f'levels: {_shown(param)} is no parameter: give the tensors themselves, as layerwise_levels() does'
            )
        _check_parameter(param, owned, names)
        name = name_of(param, names)
        amount = check_amount(rule, f'levels[{name}]', level)
        if is_off(rule, amount) and not keep_off:
            continue
        if counts[param] > 1:
            raise ValueError(f'levels: {name} is twice in the optimizer and would be pulled twice a step: give it once')
        used[param] = amount
    return used


def check_balls(balls: Any, rule: str, sharing: bool) -> dict[Tensor, Hashable]:
    """A copy of ``balls`` if it maps parameters to keys and the rule takes it.

    Args:
        balls: What was given.
        rule: One of ``RULES``.
        sharing: Whether ranks share the parameters out among them.

    Raises:
        ValueError: If it does not.
    """
    if balls is None:
        return {}
    if not isinstance(balls, Mapping) or not all(isinstance(key, Tensor) for key in balls):
        raise ValueError(f'balls={_shown(balls)} must map parameters to what their ball is called, such as a layer')
    if rule != 'projection':
        raise ValueError(f"balls is for rule='projection', and rule={rule!r}: leave it away")
    if sharing:
        raise ValueError(
            "balls (ball='layer' in a config) is not for a ZeroRedundancyOptimizer, whose ranks do not know the "
            'distances of each other: leave it away, so that each tensor has a ball of its own'
        )
    return dict(balls)


def _check_parameter(param: Tensor, owned: set[Tensor], names: Mapping[Tensor, str]) -> None:
    if is_lazy(param):
        name = names.get(param, 'a parameter of a lazy module')
        raise ValueError(f'levels: {name} has no shape yet: run one batch through the model before building this')
    name = name_of(param, names)
    if param not in owned:
        raise ValueError(f'levels: {name} is not a parameter of this optimizer: give it to the optimizer first')
    if not (param.is_floating_point() or param.is_complex()):
        raise ValueError(f'levels: {name} is of {param.dtype}, which no gradient can move: leave it out of levels')


def check_anchor(anchor: Any, owned: Iterable[Tensor], names: Mapping[Tensor, str]) -> Mapping[Tensor, Tensor]:
    """``anchor``, if it is a mapping of parameters to values of their shape.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(anchor, Mapping):
        raise ValueError(f"anchor={_shown(anchor)} must be a file, a mapping of parameter to tensor, 'current' or None")
    owned = set(owned)
    for param, value in anchor.items():
        if not isinstance(param, Tensor):
            raise ValueError(f'anchor: {_shown(param)} is no parameter: give the tensors themselves as keys, or a file')
        name = name_of(param, names)
        if param not in owned:
            raise ValueError(f"anchor: {name} is not a parameter of this optimizer: give this model's own parameters")
        if not isinstance(value, Tensor):
            raise ValueError(f'anchor: {name} has a {type(value).__name__} for its theta_0: give a tensor of its shape')
        if value.shape != param.shape:
            raise ValueError(
                f'anchor: {name} has shape {tuple(param.shape)}, its anchor {tuple(value.shape)}: give another'
            )
        _check_kind('anchor: ', value, param, name)
    return anchor


def check_keep(keep: Any, params: Iterable[Tensor], sharing: bool) -> Keep:
    """How theta_0 is to be kept, if that can be done with these parameters.

    Args:
        keep: What was given.
        params: What is pulled back.
        sharing: Whether ranks share the parameters out among them.

    Raises:
        ValueError: If it is no :class:`Keep`, or one that sharded parameters cannot have.
    """
    if keep is None:
        return Keep()
    if not isinstance(keep, Keep):
        raise ValueError(f"keep={_shown(keep)} must be a Keep, such as Keep(dtype='lossless'), or None")
    if keep.told and (sharing or any(map(is_spread, params))):
        raise ValueError(
            f'{keep.told} is not for sharded parameters: each rank would decide for itself how its part of theta_0 is '
            'kept; leave it away there, for a rank keeps its share alone'
        )
    return keep


def check_theta_0(value: Tensor, param: Tensor, name: str) -> None:
    """See that theta_0 is a place to go back to.

    Raises:
        ValueError: If it has no values, as on the meta device, or some that are not finite.
    """
    if param.is_meta:
        raise ValueError(
            f'{name} is on the meta device and has no values to go back to: move the model to a device (to_empty) and '
            'load its weights before the first step'
        )
    _check_kind('', value, param, name)
    if not _all_finite(local(value.detach())):
        raise ValueError(
            f'theta_0 of {name} has NaN or infinite values, which every step would spread: load whole weights before '
            'the first step, give another anchor, or leave this part out'
        )


def _all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; takes no memory, as isfinite would."""
    if not values.numel():
        return True
    # Neither can be lost in a sum, and adding is several times faster than comparing magnitudes.
    wide = torch.float32 if values.dtype.itemsize < 4 else None
    if bool(torch.isfinite(torch.sum(values, dtype=wide))):
        return True
    # A sum may also be too large. The largest magnitude is NaN where one value is.
    return math.isfinite(float(torch.linalg.vector_norm(values, ord=math.inf)))


def check_saved(value: Any, param: Tensor, name: str) -> None:
    """See that what an optimizer's loaded state has for theta_0 is one of this parameter.

    Raises:
        ValueError: If it is not.
    """
    fits = (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and (value.shape == param.shape or not param.numel())
    )
    if not fits:
        shape = f'of shape {tuple(value.shape)}' if isinstance(value, Tensor) else f'a {type(value).__name__}'
        raise ValueError(
            f'theta_0 of {name} in the loaded optimizer state is {shape}, not a dense tensor of shape '
            f'{tuple(param.shape)}: load the checkpoint of this model'
        )
    check_theta_0(value, param, name)


def _check_kind(option: str, value: Tensor, param: Tensor, name: str) -> None:
    if value.is_complex() and not param.is_complex():
        raise ValueError(f'{option}theta_0 of {name} is complex and the weight is not: give an anchor of real numbers')
    if value.is_meta and not param.is_meta:
        raise ValueError(f'{option}theta_0 of {name} is on the meta device and has no values: give an anchor with some')


def check_gradients(params: Iterable[Tensor], names: Mapping[Tensor, str]) -> None:
    """See that the gradients are dense, before a step uses them.

    Raises:
        ValueError: If one is sparse.
    """
    for param in params:
        if param.grad is not None and param.grad.is_sparse:
            raise ValueError(
                f'{name_of(param, names)} has a sparse gradient, which rollback does not take: use sparse=False in its '
                'embedding, or leave it out'
            )
