"""Loaders of images as a test sees them: each once, in order, under the transforms of the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.loaders import in_order, pipeline_of, retold
from .errors import InputError

__all__ = ['in_order', 'retold', 'transforms_of_test']


def transforms_of_test(cfg: Mapping[str, Any]) -> Any:
    """The transforms of the test.

    Raises:
        InputError: If ``test_dataloader`` has none.
    """
    try:
        return pipeline_of('test_dataloader', cfg['test_dataloader']['dataset'])
    except ValueError as error:
        raise InputError(str(error), 'training images are looked at with these transforms') from None
