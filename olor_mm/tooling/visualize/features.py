"""``visualize.py tsne``: the features of images in the plane, for one or several checkpoints."""

from __future__ import annotations

import argparse
import math
import os.path
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .. import launch
from ..data_checks import check_data
from ..errors import INSTALL_ANALYSIS, InputError, say
from ..figures import Chart, Points, Scatter
from ..loaders import retold, transforms_of_test
from .output import named_all, write
from .progress import Counted, Progress
from .quiet import quiet
from .weights import build_model, load_weights

__all__ = ['tsne']

_MOST_GROUPS = 20
_METRICS = {'euclidean': 'Euclidean', 'cosine': 'cosine'}


@dataclass
class Sample:
    """An image to be shown.

    Attributes:
        index: In the data set.
        group: What it is coloured by.
        file: Where it is.
    """

    index: int
    group: str
    file: str


def tsne(args: argparse.Namespace) -> None:
    """Draw the features of images under each checkpoint, side by side.

    Args:
        args: Of the command line.

    Raises:
        InputError: If the data, the config, a checkpoint or an option is the user's to mend.
    """
    _check(args)
    checkpoints = named_all(args.checkpoints, 'checkpoint')
    cfg, _ = launch._configure(args)
    loader_key = f'{args.split}_dataloader'
    if cfg.get(loader_key) is None or cfg.get('test_dataloader') is None:
        raise InputError(f'{loader_key} is not set in {args.config}', 'choose another: --split train, val or test')
    check_data(cfg, args.split)
    dataset = _dataset(cfg, args.split)
    samples = choose(_samples(dataset, args.by), args.max_samples, args.classes, args.seed)
    groups = sorted({sample.group for sample in samples}, key=[sample.group for sample in samples].index)
    if args.perplexity >= len(samples):
        raise InputError(
            f'--perplexity {args.perplexity:g} must be below the number of images, {len(samples)}',
            'give a smaller one, or more images: --max-samples N',
        )
    say(f'{len(samples)} of {len(dataset)} images, by {args.by}: {", ".join(groups)}')
    model = build_model(cfg)
    charts: list[Chart] = []
    for name, file in checkpoints:
        with quiet():
            load_weights(model, file, ignored=('head.',))
        features = _features(model, dataset, samples, args, name)
        charts.append(_chart(args, name, features, samples))
    write(args, charts, f't-SNE of features by {args.by}', columns=min(len(charts), 3))


def _check(args: argparse.Namespace) -> None:
    for option, least in (('max_samples', 3), ('batch_size', 1), ('num_workers', 0)):
        value = getattr(args, option)
        if value < least:
            raise InputError(f'--{option.replace("_", "-")} {value} must be {least} at least')
    if not math.isfinite(args.perplexity) or args.perplexity <= 0:
        raise InputError(f'--perplexity {args.perplexity:g} must be above 0; 5 to 50 are usual')
    _sklearn()


def _sklearn() -> Any:
    try:
        from sklearn.manifold import TSNE
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise InputError(
            f't-SNE is that of scikit-learn, which cannot be imported: {error}',
            INSTALL_ANALYSIS,
        ) from error
    return TSNE, silhouette_score


def _dataset(cfg: Config, split: str) -> Any:
    """A data set under the transforms of the test."""
    config = cfg[f'{split}_dataloader'].dataset
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        dataset = registry.build(retold(config, transforms_of_test(cfg)))
    dataset.full_init()
    return dataset


def _samples(dataset: Any, by: str) -> list[Sample]:
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    files = [str(info.get('img_path') or f'image {index}') for index, info in enumerate(infos)]
    if by == 'class':
        labels = [info.get('gt_label') for info in infos]
        if any(not isinstance(label, (int, np.integer)) for label in labels):
            raise InputError('the images have no labels, one each', 'colour them otherwise: --by domain')
        classes = (dataset.metainfo or {}).get('classes') or ()
        order = sorted({int(label) for label in labels})
        names = {label: str(classes[label]) if label < len(classes) else f'class {label}' for label in order}
        groups = [names[int(label)] for label in labels]
    else:
        groups = [str(info['domain']) for info in infos if info.get('domain') is not None]
        groups = groups if len(groups) == len(infos) else _folders(files)
    return [Sample(index, group, file) for index, (group, file) in enumerate(zip(groups, files, strict=True))]


def _folders(files: Sequence[str]) -> list[str]:
    """The domain of each image by its folder: ``<domain>/<class>/<image>`` below the folder of all."""
    root = os.path.commonpath([str(Path(file).parent) for file in files]) if files else ''
    parts = [Path(file).relative_to(root).parts if root else () for file in files]
    if any(len(part) < 3 for part in parts):
        raise InputError(
            'the data set does not say of which domain an image is, and folders are not <domain>/<class>/<image>',
            'give several domains, a data set such as olor_mm.PACS, or: --by class',
        )
    return [part[0] for part in parts]


def choose(samples: Sequence[Sample], most: int, wanted: Sequence[str] | None, seed: int) -> list[Sample]:
    """At most so many images, as many of each group as can be; those of a group one after the other.

    Args:
        samples: All of them.
        most: How many to show.
        wanted: The groups to show. Defaults to None: all, or 20 of them, drawn by the seed.
        seed: Another one draws others.

    Raises:
        InputError: If a group does not exist.
    """
    rng = np.random.default_rng(seed)
    by_group: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_group[sample.group].append(sample)
    names = list(by_group)
    if wanted:
        unknown = [name for name in wanted if name not in by_group]
        if unknown:
            shown = ', '.join(names[:12]) + (', ...' if len(names) > 12 else '')
            raise InputError(f'--classes {unknown[0]}: there is none of that name', f'these are: {shown}')
        names = [name for name in names if name in wanted]
    elif len(names) > _MOST_GROUPS:
        names = [names[i] for i in sorted(rng.choice(len(names), _MOST_GROUPS, replace=False))]
        say(f'{len(by_group)} groups are more than colours: {_MOST_GROUPS} of them are shown; choose with --classes')
    drawn = {name: [by_group[name][i] for i in rng.permutation(len(by_group[name]))] for name in names}
    counts = _shares([len(drawn[name]) for name in names], most)
    return [sample for name, count in zip(names, counts, strict=True) for sample in drawn[name][:count]]


def _shares(sizes: Sequence[int], most: int) -> list[int]:
    """How many of each group, as evenly as their sizes let."""
    counts, left = [0] * len(sizes), most
    while left and any(count < size for count, size in zip(counts, sizes, strict=True)):
        open_groups = [i for i, size in enumerate(sizes) if counts[i] < size]
        for i in open_groups[:left]:
            more = min(max(left // len(open_groups), 1), sizes[i] - counts[i])
            counts[i] += more
        left = most - sum(counts)
    return counts


def _features(model: Any, dataset: Any, samples: Sequence[Sample], args: argparse.Namespace, name: str) -> Tensor:
    """(N, d), on the CPU."""
    from ...evaluation import extract_features

    images = Subset(dataset, [sample.index for sample in samples])
    loader: Any = DataLoader(
        images, args.batch_size, num_workers=args.num_workers, collate_fn=pseudo_collate, shuffle=False
    )
    try:
        with Progress(f'features of {name}', len(loader)) as progress:
            features, _ = extract_features(model.to(args.device), Counted(loader, progress), stage=args.stage)
    except ValueError as error:
        raise InputError(f'the features of {args.config} cannot be drawn: {error}') from error
    if not bool(torch.isfinite(features).all()):
        raise InputError(f'{name}: the features are not finite, so the run has diverged', 'give an earlier checkpoint')
    return features.float()


def _chart(args: argparse.Namespace, name: str, features: Tensor, samples: Sequence[Sample]) -> Scatter:
    TSNE, silhouette_score = _sklearn()  # noqa: N806
    say(f't-SNE of {len(samples)} images under {name}')
    method = TSNE(
        2, perplexity=args.perplexity, init='pca', metric=args.metric, random_state=args.seed, learning_rate='auto'
    )
    placed = method.fit_transform(features.numpy())
    groups = [sample.group for sample in samples]
    caption = f't-SNE of {len(samples)} images, {_METRICS[args.metric]} distance, perplexity {args.perplexity:g}.'
    if 1 < len(set(groups)) < len(groups):
        score = silhouette_score(features.numpy(), groups, metric=args.metric)
        caption += f' Silhouette of the features by {args.by}: {score:.2f} (1: apart, 0: mixed).'
    points = []
    for group in dict.fromkeys(groups):
        rows = [row for row, sample in enumerate(samples) if sample.group == group]
        files = ['/'.join(Path(samples[row].file).parts[-3:]) for row in rows]
        points.append(Points(group, placed[rows, 0], placed[rows, 1], notes=files))
    return Scatter(name, points, caption=caption, legend_title=args.by)
