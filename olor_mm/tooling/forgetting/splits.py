"""Images that choose and images that judge: never the same ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from ..errors import InputError
from .bench import Bench

__all__ = ['different_images', 'share_out']

_REMEDY = (
    'give validation images of their own: --cfg-options val_dataloader.dataset.<key>=<value>',
    'or choose on a share of the test images, and test on the others: --val-share 0.5',
)


def different_images(bench: Bench) -> None:
    """See that the validation reads no image of the test.

    Raises:
        InputError: If it does, or there is no validation.
    """
    if not bench.has_val:
        raise InputError(
            'the config has no validation, which chooses alpha: val_dataloader, val_evaluator, val_cfg', *_REMEDY
        )
    if bench.cfg.val_dataloader.dataset == bench.cfg.test_dataloader.dataset:
        raise InputError('val_dataloader reads the test set: alpha would be chosen on what it is judged by', *_REMEDY)
    ours, theirs = (_images(loop.dataloader.dataset) for loop in (bench.runner.val_loop, bench.runner.test_loop))
    both = ours & theirs
    if both:
        raise InputError(
            f'{len(both)} of the {len(ours)} validation images are test images too, such as {min(map(str, both))}',
            *_REMEDY,
        )


def share_out(cfg: Config, share: float, seed: int) -> None:
    """Make a share of the test images the validation, and the others the test; evaluator and transforms are the test's.

    Args:
        cfg: The config; it is changed.
        share: In (0, 1).
        seed: Of what is drawn.

    Raises:
        InputError: If the share leaves one of the two empty, or the data set cannot be divided.
    """
    if not 0 < share < 1:
        raise InputError(f'--val-share {share:g} must be between 0 and 1, such as 0.5')
    loader = cfg.get('test_dataloader') or {}
    dataset = loader.get('dataset') or {}
    if cfg.get('default_scope') != 'mmpretrain' or 'dataset' in dataset or 'datasets' in dataset:
        raise InputError(
            f'--val-share divides plain test sets of mmpretrain, not {dataset.get("type")} of '
            f'{cfg.get("default_scope")}',
            _REMEDY[0],
        )
    with DATASETS.switch_scope_and_registry('mmpretrain') as registry:
        total = len(registry.build(copy.deepcopy({**dataset, 'indices': None})))
    own = _own(dataset.get('indices'), total)
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(share * len(own))
    if not 0 < count < len(own):
        raise InputError(f'--val-share {share:g} of {len(own)} test images leaves nothing to choose on, or to test')
    for part, drawn in (('val', order[:count]), ('test', order[count:])):
        cfg[f'{part}_dataloader'] = copy.deepcopy(loader)
        cfg[f'{part}_dataloader'].dataset.indices = sorted(own[i] for i in drawn)
    cfg.val_evaluator, cfg.val_cfg = copy.deepcopy(cfg.test_evaluator), dict()


def _own(indices: Any, total: int) -> list[int]:
    """The samples that a data set has of all that there are, as MMEngine reads ``indices``."""
    if indices is None:
        return list(range(total))
    if isinstance(indices, int):
        return list(range(total))[:indices] if indices >= 0 else list(range(total))[indices:]
    return list(indices)


def _images(dataset: Any) -> set[Any]:
    """What tells images apart: their files; nothing where they have none."""
    found = set()
    for number in range(len(dataset)):
        info = dataset.get_data_info(number) if hasattr(dataset, 'get_data_info') else {}
        name = (info.get('img_path') or info.get('img_id')) if isinstance(info, Mapping) else None
        if name is not None:
            found.add(name)
    return found
