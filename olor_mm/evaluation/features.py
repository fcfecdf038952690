"""Features and logits of a data set, from all processes, each sample once."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather, all_gather_object, get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ._checks import is_count

__all__ = ['evaluating', 'extract_features', 'extract_logits', 'unwrapped']

#: Rows that are gathered at a time.
_ROWS = 1 << 14
#: Between two lines of the log.
_SECONDS = 30.0
#: Samplers that deal samples out to ranks one after the other, and repeat the first at the end where these are uneven.
_SAMPLERS = ('DefaultSampler', 'DistributedSampler')
_SAMPLERS_ALONE = ('SequentialSampler', 'RandomSampler')


def extract_features(
    model: nn.Module,
    loader: Any,
    stage: str = 'neck',
    dtype: torch.dtype | None = None,
    what: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The features in front of a classifier's head, of all samples of a loader, on every rank.

    Nothing of the model changes, its modes, gradients and batch norms included, nor do the random numbers that come
    next.

    Args:
        model: A classifier of mmpretrain's, alone or within DistributedDataParallel.
        loader: A data loader, or its config. Its sampler must be ``DefaultSampler``, in the order of the data or
            shuffled; with several processes each takes its share, and what the sampler adds to even them out is left
            out.
        stage: 'neck', what the head is given, or 'pre_logits', what the head's last layer is given. Defaults to
            'neck'.
        dtype: Of the features. Defaults to None: as the model gives them.
        what: Who says in the log how far it is, every half minute. Defaults to None: nobody.

    Returns:
        Features (N, d) and labels (N,), on the CPU, in the order of the sampler: that of the data where it does not
        shuffle.

    Raises:
        ValueError: If the loader leaves samples out or has no labels, or the features are no vectors.
    """
    if stage not in _STAGES:
        raise ValueError(f"stage={stage!r} must be 'neck', what the head is given, or 'pre_logits'")
    return _extract(model, loader, _STAGES[stage], dtype, what)


def extract_logits(
    model: nn.Module, loader: Any, head: nn.Module | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The logits of a classifier on all samples of a loader, on every rank; see :func:`extract_features`.

    Args:
        model: A classifier of mmpretrain's.
        loader: A data loader, or its config.
        head: Another head, on the model's features; on the model's device. Defaults to None: the model's own.
        dtype: Of the logits. Defaults to None: as the head gives them.

    Returns:
        Logits (N, C) and labels (N,), on the CPU.
    """

    def logits(classifier: Any, inputs: Any) -> Any:
        return (classifier.head if head is None else head)(classifier.extract_feat(inputs))

    return _extract(model, loader, logits, dtype)


def unwrapped(model: nn.Module) -> Any:
    """The model inside of wrappers, such as those of several processes."""
    while not hasattr(model, 'extract_feat') and isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Within it models are in the mode of evaluation, without gradients; at its end all is as it was.

    That is the mode of every module, what needs a gradient, and the random numbers of Python, numpy and torch.
    """
    modules = [module for model in models for module in model.modules()]
    params = [param for model in models for param in model.parameters()]
    modes, trained = [each.training for each in modules], [each.requires_grad for each in params]
    top = [model.training for model in models]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for model, mode in zip(models, top, strict=True):
            # A module may do more than to set a flag, which this takes back.
            model.train(mode)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for param, flag in zip(params, trained, strict=True):
            param.requires_grad_(flag)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _neck(model: Any, inputs: Any) -> Any:
    return model.extract_feat(inputs)


def _pre_logits(model: Any, inputs: Any) -> Any:
    return model.head.pre_logits(model.extract_feat(inputs))


_STAGES = {'neck': _neck, 'pre_logits': _pre_logits}


def vectors(values: Any) -> Tensor:
    """(N, d) from what a stage gives: the last of several, the class token of a list, as mmpretrain's heads take it.

    Raises:
        ValueError: If they are maps or tokens.
    """
    while isinstance(values, (tuple, list)) and values:
        values = values[-1]
    if not isinstance(values, Tensor) or values.dim() != 2:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f'features (N, d) are needed, but the model gives {shape}: set a neck such as GlobalAveragePooling, or '
            "out_type='cls_token' of the backbone"
        )
    return values


def labels_of(samples: Sequence[Any]) -> Tensor:
    """The labels of data samples, or of what they are as dicts; (N,) on the CPU.

    Raises:
        ValueError: If one has none, or several.
    """
    found = []
    for sample in samples:
        label = sample.get('gt_label')
        if isinstance(label, Tensor) and label.numel() == 1:
            label = int(label)
        if not is_count(label, 0):
            raise ValueError(
                f'a sample has gt_label={label!r:.60}, where one label is needed: take a data set with labels '
                '(with_label=True), and one label for each image'
            )
        found.append(label)
    return torch.tensor(found, dtype=torch.int64)


def _extract(
    model: nn.Module, loader: Any, read: Any, dtype: torch.dtype | None, what: str | None = None
) -> tuple[Tensor, Tensor]:
    classifier = unwrapped(model)
    for part in ('data_preprocessor', 'extract_feat'):
        if not hasattr(classifier, part):
            raise ValueError(f'model={type(classifier).__name__} has no {part}: a classifier of mmpretrain is needed')
    rows, labels = [], []
    with evaluating(classifier):
        loader = built(loader)
        check_loader(loader)
        for batch in loader if what is None else _told(what, loader):
            data = classifier.data_preprocessor(batch, False)
            values = vectors(read(classifier, data['inputs']))
            rows.append((values if dtype is None else values.to(dtype)).cpu())
            labels.append(labels_of(data['data_samples']))
        return gathered(rows, len(loader.dataset)), gathered(labels, len(loader.dataset))


def _told(what: str, loader: Any) -> Iterator[Any]:
    """The batches; now and then the log says how many there were."""
    last = time.monotonic()
    for done, batch in enumerate(loader):
        if time.monotonic() - last > _SECONDS:
            print_log(f'{what}: features of batch {done} of {len(loader)}', logger='current')
            last = time.monotonic()
        yield batch


def built(loader: Any) -> Any:
    """A data loader, from its config where it is one."""
    return Runner.build_dataloader(copy.deepcopy(loader)) if isinstance(loader, Mapping) else loader


def check_loader(loader: Any) -> None:
    """See that a loader gives each sample once, but for what its sampler adds to even the processes out.

    Raises:
        ValueError: If it may not.
    """
    if getattr(getattr(loader, 'batch_sampler', None), 'drop_last', False):
        raise ValueError('the loader leaves samples out: set drop_last=False')
    name = type(getattr(loader, 'sampler', None)).__name__
    if name not in _SAMPLERS and not (get_world_size() == 1 and name in _SAMPLERS_ALONE):
        raise ValueError(
            f'the sampler {name} may give a sample twice or not at all: set '
            "sampler=dict(type='DefaultSampler', shuffle=False)"
        )


def gathered(parts: list[Tensor], total: int) -> Tensor:
    """The rows of all ranks, on every rank, in the order of the sampler and without what it added.

    Sample i is the (i // world)-th of rank i % world, as those of ``_SAMPLERS`` share a data set out.

    Args:
        parts: The batches of this rank, on the CPU.
        total: How many samples there are.

    Raises:
        ValueError: If there are fewer.
    """
    own = torch.cat(parts) if parts else torch.zeros(0)
    world = get_world_size()
    if world > 1:
        shapes: Any = all_gather_object((tuple(own.shape), own.dtype))
        most, (shape, dtype) = max(each[0][0] for each in shapes), max(shapes, key=lambda each: each[0][0])
        padded = torch.zeros(most, *shape[1:], dtype=dtype)
        if len(own):
            padded[: len(own)] = own
        # (rows, world, ...): row after row of all ranks.
        joint = torch.cat([torch.stack(all_gather(piece), dim=1) for piece in padded.split(_ROWS)])
        there = torch.tensor([each[0][0] for each in shapes]) > torch.arange(most)[:, None]
        own = joint[there]
    if len(own) < total or not total:
        raise ValueError(f'the loader gave {len(own)} of {total} samples: see that its sampler gives each of them')
    return own[:total]
