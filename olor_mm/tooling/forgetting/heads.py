"""The original head: whether it can be had, and whether the backbone is the one that it was trained behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...evaluation.heads import OriginalHead, original_head
from .origin import Origin, plain_name

__all__ = ['NoHeadError', 'check_backbone', 'head_of']


class NoHeadError(Exception):
    """The accuracy of the original head cannot be had; the text says why."""


def head_of(weights: Mapping[str, Tensor], cfg: Mapping[str, Any] | None) -> OriginalHead:
    """The head that a file of pre-trained weights has.

    Args:
        weights: All tensors of the file.
        cfg: Of the head, where a config says what it is; None for a linear one.

    Raises:
        NoHeadError: If the file has none.
    """
    try:
        return original_head(weights, cfg)
    except ValueError as error:
        if cfg is not None:
            raise NoHeadError(str(error)) from None
        raise NoHeadError('the pre-trained file has no head: name a file that has one with --head FILE') from None


def check_backbone(weights: Mapping[str, Tensor], origin: Origin, part: str) -> None:
    """See that the backbone gives features of the kind that the original head was made for.

    Args:
        weights: All tensors of the pre-trained file.
        origin: theta_0 of the model.
        part: Path of the backbone in the model.

    Raises:
        NoHeadError: If the file has weights of the backbone that the model left out, such as its last norm.
    """
    start = f'{part}.'
    own = {plain_name(name) for name in origin.state}
    given = [name for name in weights if name.startswith(start)]
    left = [name for name in given if name not in own]
    if left and len(left) < len(given) / 2:
        raise NoHeadError(
            f'the backbone leaves out {len(left)} tensors that the original head was trained behind, such as {left[0]}'
        )
