"""Data loaders of metrics and hooks: the training set under the transforms of the test, and labels without images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from ..registry import type_name
from .features import labels_of

__all__ = ['TRAIN', 'bank_loader', 'in_order', 'labels_in', 'pipeline_of', 'retold']

#: What stands for the config's own training set.
TRAIN = 'train_dataloader'
#: Data sets of MMEngine that show an image more often than once.
_REPEATING = ('RepeatDataset', 'ClassBalancedDataset')


def bank_loader(name: str, given: Any, cfg: Mapping[str, Any], split: str) -> Any:
    """The config of a loader that gives each sample once, without augmentation.

    Args:
        name: Of the option, for messages.
        given: The config of a loader, or 'train_dataloader': the training set of the run's config under the
            transforms of ``split``.
        cfg: The config of the run.
        split: 'val' or 'test': whose loader says the transforms, the batch size and the workers.

    Raises:
        ValueError: If it is neither, or the run's config lacks what is needed.
    """
    if isinstance(given, Mapping):
        return given
    if given != TRAIN:
        raise ValueError(f'{name}={given!r:.60} must be the config of a data loader, or {TRAIN!r}')
    train: Any = cfg.get(TRAIN)
    other: Any = cfg.get(f'{split}_dataloader')
    for key, value in ((TRAIN, train), (f'{split}_dataloader', other)):
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{name}={TRAIN!r}: the run's config has no {key}; give {name} the config of a data loader instead"
            )
    return in_order(other, retold(train['dataset'], pipeline_of(f'{split}_dataloader', other['dataset'])))


def in_order(template: Mapping[str, Any], dataset: Any) -> ConfigDict:
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


def pipeline_of(name: str, dataset: Mapping[str, Any]) -> Any:
    """The pipeline of a data set's config, or of the first inside of it.

    Raises:
        ValueError: If there is none.
    """
    while 'pipeline' not in dataset:
        inner = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if not isinstance(inner, Mapping):
            raise ValueError(f'{name}.dataset has no pipeline, whose transforms are needed: set it')
        dataset = inner
    return dataset['pipeline']


def retold(dataset: Any, pipeline: Any) -> Any:
    """The config of a data set with another pipeline, and nothing in it twice."""
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


def labels_in(loader: Mapping[str, Any]) -> list[int]:
    """The labels that occur in the data set of a loader's config, ascending; no image is read.

    Raises:
        ValueError: If a sample has none, or several.
    """
    dataset: Any = DATASETS.build(copy.deepcopy(loader['dataset']))
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    infos: Sequence[Any] = [dataset.get_data_info(index) for index in range(len(dataset))]
    return sorted(set(labels_of(infos).tolist()))
