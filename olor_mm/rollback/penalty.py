"""The layer-wise penalty lambda_i: how strongly layer i is pulled back (paper, equations 8 and 9)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from torch import Tensor

from olor_mm.layers import canonical_name

__all__ = ['check_level', 'check_radii', 'check_radius', 'layerwise_levels', 'layerwise_penalty', 'layerwise_radii']


def check_level(option: str, value: float) -> float:
    """Return ``value`` as a float if it is a level, a number in [0, 1].

    Args:
        option: Name of the option, for the message.
        value: The level, dimensionless: the share of the distance to theta_0 that one step at the peak learning
            rate takes back.

    Raises:
        ValueError: If ``value`` is no number, not finite or outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value <= 1.0:
        raise ValueError(
            f'{option}={value!r} is not a rollback level: give a number from 0 (never pulled back) to 1 '
            '(back at the pre-trained value after every step); the paper searches 1e-4 to 1'
        )
    return float(value)


def check_radius(option: str, value: float) -> float:
    """Return ``value`` as a float if it is the radius of a ball around theta_0.

    Args:
        option: Name of the option, for the message.
        value: The radius, in the unit of the weights: the largest ||theta - theta_0||. Infinity is no bound.

    Raises:
        ValueError: If ``value`` is no number, NaN or below 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise ValueError(
            f'{option}={value!r} is not a radius: give a number from 0 (the pre-trained value) up, the largest '
            'distance from the pre-trained weights'
        )
    return float(value)


def _check_penalty(max_level: float, min_level: float, power: float) -> None:
    check_level('max_level', max_level)
    check_level('min_level', min_level)
    if min_level > max_level:
        raise ValueError(
            f'min_level={min_level!r} is above max_level={max_level!r}: shallow layers take max_level and deep ones '
            'min_level, so give min_level <= max_level'
        )
    number = isinstance(power, Real) and not isinstance(power, bool)
    if not number or not math.isfinite(power) or power <= 0:
        raise ValueError(f'power={power!r} must be a finite number above 0: the paper searches 1, 2 and 4')


def layerwise_penalty(i: int, n: int, max_level: float, min_level: float = 0.0, power: float = 1.0) -> float:
    """lambda_i = iota_2 + (1 - i/n)**gamma (iota_1 - iota_2), equations 8 and 9 of the paper.

    Args:
        i: Layer index, 0 (shallowest, the stem) to n (deepest).
        n: Index of the deepest layer. 0 means one layer alone, which gets ``max_level``.
        max_level: iota_1, the level of layer 0, in [0, 1]. It is the share of the distance to theta_0 that is taken
            back by one step at the peak learning rate; it is not multiplied by the learning rate itself.
        min_level: iota_2, the level of layer n, in [0, max_level]. Defaults to 0.
        power: gamma > 0; larger means that the level falls faster with depth. Defaults to 1.

    Returns:
        The level lambda_i in [min_level, max_level].

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> [layerwise_penalty(i, 2, 0.01, power=2) for i in range(3)]
        [0.01, 0.0025, 0.0]
    """
    _check_penalty(max_level, min_level, power)
    if n < 0 or not 0 <= i <= n:
        raise ValueError(
            f'layer index i={i} is not in 0..n with n={n}: count from the stem, 0, to the deepest layer, n'
        )
    # At its ends the level is exactly what was asked for; min + (max - min) need not be max in floating point.
    if i == 0:
        return float(max_level)
    level = min_level + (1.0 - i / n) ** power * (max_level - min_level)
    return float(min(max(level, min_level), max_level))


def layerwise_levels(
    named_parameters: Iterable[tuple[str, Tensor]],
    index: Mapping[str, int],
    n: int,
    max_level: float,
    min_level: float = 0.0,
    power: float = 1.0,
) -> dict[Tensor, float]:
    """Levels for :class:`~olor_mm.rollback.Rollback` from a table of layer indices.

    Args:
        named_parameters: As ``model.named_parameters()`` gives them, of the model bare or wrapped.
        index: Parameter name to layer index, as ``olor_mm.layers.assign_layers(model).index``. Parameters that it does
            not name get no level: they are left alone.
        n: Index of the deepest layer.
        max_level: See :func:`layerwise_penalty`.
        min_level: See :func:`layerwise_penalty`. Defaults to 0.
        power: See :func:`layerwise_penalty`. Defaults to 1.

    Returns:
        Parameter to level.

    Raises:
        ValueError: If no parameter is named by ``index``, or an argument is outside its range.
    """
    _check_penalty(max_level, min_level, power)
    # The table has canonical names; those of a compiled or otherwise wrapped model are not.
    canonical = [(canonical_name(name), p) for name, p in named_parameters]
    levels = {p: layerwise_penalty(index[k], n, max_level, min_level, power) for k, p in canonical if k in index}
    if not levels:
        raise ValueError('no parameter has a layer index: named_parameters and index have no name in common')
    return levels


def layerwise_radii(
    named_parameters: Iterable[tuple[str, Tensor]],
    index: Mapping[str, int],
    n: int,
    radius: float | Sequence[float],
    power: float = 1.0,
) -> dict[Tensor, float]:
    """Radii for ``Rollback(..., rule='projection')`` from a table of layer indices.

    rho_i = rho_n + (1 - i/n)**gamma (rho_0 - rho_n): the radius goes with depth as the level does.

    Args:
        named_parameters: As for :func:`layerwise_levels`.
        index: As for :func:`layerwise_levels`.
        n: Index of the deepest layer.
        radius: The radius of every layer, or (rho_0, rho_n): of the shallowest and of the deepest.
        power: gamma > 0. Defaults to 1.

    Returns:
        Parameter to radius.

    Raises:
        ValueError: If no parameter is named by ``index``, or an argument is outside its range.
    """
    shallow, deep = check_radii('radius', radius)
    canonical = [(canonical_name(name), p) for name, p in named_parameters]
    shares = {p: layerwise_penalty(index[k], n, 1.0, 0.0, power) for k, p in canonical if k in index}
    if not shares:
        raise ValueError('no parameter has a layer index: named_parameters and index have no name in common')
    if shallow == deep:
        return dict.fromkeys(shares, shallow)
    return {p: deep + share * (shallow - deep) for p, share in shares.items()}


def check_radii(option: str, radius: object) -> tuple[float, float]:
    """The radii of the shallowest and of the deepest layer.

    Raises:
        ValueError: If ``radius`` is neither a radius nor a pair of finite ones.
    """
    pair = tuple(radius) if isinstance(radius, (list, tuple)) else (radius, radius)
    if len(pair) != 2 or (pair[0] != pair[1] and any(value == math.inf for value in pair)):
        raise ValueError(f'{option}={radius!r} must be a number, or two: of the shallowest and of the deepest layer')
    return check_radius(option, pair[0]), check_radius(option, pair[1])  # type: ignore[arg-type]
