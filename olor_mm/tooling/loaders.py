"""Loaders of images as a test sees them: each once, in order, under the transforms of the test."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from ..registry import type_name
from .errors import InputError

__all__ = ['in_order', 'retold', 'transforms_of_test']

#: Data sets of MMEngine that show an image more often than once.
_REPEATING = ('RepeatDataset', 'ClassBalancedDataset')


def in_order(template: Mapping[str, Any], dataset: Mapping[str, Any]) -> ConfigDict:
    """The config of a loader that gives each sample once, shared out to the ranks.

    Args:
        template: A loader's config, for the size of batches, workers and the like.
        dataset: The config of the data set.
    """
    loader = ConfigDict(copy.deepcopy(dict(template)))
    loader.dataset = dataset
    loader.sampler = ConfigDict(type='DefaultSampler', shuffle=False, round_up=False)
    loader.drop_last = False
    loader.pop('batch_sampler', None)
    return loader


def transforms_of_test(cfg: Mapping[str, Any]) -> Any:
    """The transforms of the test.

    Raises:
        InputError: If ``test_dataloader`` has none.
    """
    dataset = cfg['test_dataloader']['dataset']
    while 'pipeline' not in dataset:
        inner = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if not isinstance(inner, Mapping):
            raise InputError(
                'test_dataloader.dataset has no pipeline, whose transforms training images are looked at with',
                'set test_dataloader.dataset.pipeline',
            )
        dataset = inner
    return dataset['pipeline']


def retold(dataset: Any, pipeline: Any) -> Any:
    """The config of a data set, with another pipeline, and nothing in it twice."""
    if not isinstance(dataset, Mapping):
        return dataset
    if type_name(dataset.get('type')) in _REPEATING:
        return retold(dataset['dataset'], pipeline)
    changed = ConfigDict(copy.deepcopy(dict(dataset)))
    if 'dataset' in changed:
        changed['dataset'] = retold(changed['dataset'], pipeline)
    elif 'datasets' in changed:
        changed['datasets'] = [retold(each, pipeline) for each in changed['datasets']]
    else:
        changed['pipeline'] = copy.deepcopy(pipeline)
    return changed
