"""theta_0 that is given and not taken: by a mapping, or by a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .anchor import ON_MISSING, anchors_from_file
from .checks import check_anchor

__all__ = ['read_anchor']


def read_anchor(
    anchor: Mapping[Tensor, Tensor] | str | Path | None,
    owned: Iterable[Tensor],
    wanted: Mapping[Tensor, float],
    names: Mapping[Tensor, str],
) -> Mapping[Tensor, Tensor]:
    """What the option ``anchor`` gives.

    Args:
        anchor: The option.
        owned: The optimizer's parameters.
        wanted: Those that a file must have.
        names: Parameter to its name in a file, and in messages.

    Raises:
        ValueError: If it is no anchor, or does not fit.
    """
    if anchor is None or (isinstance(anchor, str) and anchor == ON_MISSING[1]):
        return {}
    if not isinstance(anchor, (str, Path)) or not str(anchor).strip():
        return check_anchor(anchor, owned, names)
    if not names:
        raise ValueError(f'anchor={str(anchor)!r} is a file: give names=, parameter to its name in the file')
    found = anchors_from_file(anchor, [(name, p) for p, name in names.items() if p in wanted])
    absent = found.missing + list(found.mismatched)
    if absent:
        raise ValueError(
            f'anchor={str(anchor)!r} lacks {len(absent)} of {len(wanted)} parameters, or has them in '
            f'another shape: {", ".join(absent[:3])}; leave those out of levels, or give another file'
        )
    return found.anchors
