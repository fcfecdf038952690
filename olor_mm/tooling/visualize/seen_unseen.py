"""``visualize.py ausuc``: accuracy on seen against unseen classes, as the unseen ones are given more and more."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import Tensor

from ...engine.loading import load_from_local
from ...engine.replacing import PART, put_in_place
from ...registry import type_name
from .. import launch
from ..data_checks import check_data
from ..errors import InputError, say
from ..figures import LineChart, Series
from .output import named_all, write
from .progress import Counted, Progress
from .quiet import quiet
from .weights import build_model, load_weights

__all__ = ['ausuc', 'read_logits', 'read_seen']

_MOST_POINTS = 400
_SAVED = 'a file of logits holds a dict with logits (N, C) and labels (N,): torch.save(..., FILE.pth), or np.savez'


def ausuc(args: argparse.Namespace) -> None:
    """Draw the curve of each checkpoint, or file of logits.

    Args:
        args: Of the command line.

    Raises:
        InputError: If the data, the config, a checkpoint or an option is the user's to mend.
    """
    if bool(args.config) == bool(args.logits):
        raise InputError(
            'there is nothing to draw' if not args.config else '--logits takes no config and checkpoints besides',
            'give a config and checkpoints, or: --logits NAME=FILE --seen 0-49',
        )
    if args.logits:
        found = [(name, *read_logits(file)) for name, file in named_all(args.logits, 'file of logits')]
        seen = read_seen(args.seen) if args.seen else None
    else:
        found, seen = _measured(args)
    if seen is None:
        raise InputError('it is not known which classes were seen', 'say it: --seen 0-49 60')
    write(args, [_chart(found, seen)], 'Seen and unseen classes')


def read_seen(given: Sequence[str]) -> list[int]:
    """Labels from numbers and ranges, such as '0-49' and '60'.

    Raises:
        InputError: If one is neither.
    """
    found: set[int] = set()
    for each in given:
        low, sign, high = each.partition('-')
        try:
            first, last = int(low), int(high if sign else low)
        except ValueError:
            raise InputError(f'--seen {each} is no label and no range of labels', 'as in: --seen 0-49 60') from None
        if last < first:
            raise InputError(f'--seen {each} is an empty range', f'turn it round: --seen {last}-{first}')
        found |= set(range(first, last + 1))
    return sorted(found)


def read_logits(file: Path) -> tuple[Tensor, Tensor]:
    """Logits and labels from a file.

    Args:
        file: A ``.npz`` file, or one of ``torch.save``; nothing in it is run.

    Raises:
        InputError: If it holds something else.
    """
    try:
        if file.suffix == '.npz':
            with np.load(file, allow_pickle=False) as arrays:
                content: Any = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            content = load_from_local(str(file), 'cpu')
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f'{file} cannot be read: {error}', _SAVED) from error
    absent = [key for key in ('logits', 'labels') if not isinstance(content, Mapping) or key not in content]
    if absent:
        raise InputError(f'{file} has no {" and no ".join(absent)}', _SAVED)
    logits, labels = (torch.as_tensor(content[key]) for key in ('logits', 'labels'))
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise InputError(f'{file}: logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}', _SAVED)
    return logits.float(), labels.long()


def _measured(args: argparse.Namespace) -> tuple[list[tuple[str, Tensor, Tensor]], list[int] | None]:
    from ...evaluation import extract_logits

    if not args.checkpoints:
        raise InputError('no checkpoint is given', 'as in: visualize.py ausuc CONFIG CHECKPOINT')
    checkpoints = named_all(args.checkpoints, 'checkpoint')
    cfg, _ = launch._configure(args)
    check_data(cfg, 'test')
    seen = read_seen(args.seen) if args.seen else _trained_classes(cfg)
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')):
        loader = Runner.build_dataloader({**cfg.test_dataloader, 'persistent_workers': False})
    model, found = build_model(cfg), []
    for name, file in checkpoints:
        with quiet():
            load_weights(model, file)
        with Progress(f'logits of {name}', len(loader)) as progress:
            logits, labels = extract_logits(model.to(args.device), Counted(loader, progress))
        found.append((name, logits.float(), labels))
        if args.save_logits:
            _save(Path(args.out).expanduser(), name, logits, labels)
    return found, seen


def _save(folder: Path, name: str, logits: Tensor, labels: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f'logits_{name.replace("/", "_")}.pth'
    part = file.with_name(f'.{file.name}{PART}')
    torch.save({'logits': logits, 'labels': labels}, part)
    put_in_place(part, file)
    say(f'{file}: logits {tuple(logits.shape)}')


def _trained_classes(cfg: Config) -> list[int] | None:
    """The classes of the training set, where the config takes some of them."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset')
    while isinstance(dataset, Mapping):
        if type_name(dataset.get('type')) == 'ClassSubset':
            return [int(label) for label in dataset['classes']]
        dataset = dataset.get('dataset')
    return None


def _chart(found: Sequence[tuple[str, Tensor, Tensor]], seen: Sequence[int]) -> LineChart:
    from ...evaluation import ausuc_curve

    series = []
    for name, logits, labels in found:
        try:
            curve = ausuc_curve(logits, labels, seen)
        except ValueError as error:
            raise InputError(f'{name}: {error}', 'the classes that were trained on are set with: --seen') from error
        say(f'{name}: AUSUC {curve.area:.4f}')
        start = int(curve.gammas.abs().argmin())
        number = len(curve.gammas)
        chosen = sorted({start, *(round(k * (number - 1) / (_MOST_POINTS - 1)) for k in range(_MOST_POINTS))})
        notes = [f'gamma {curve.gammas[i]:.3g}, over all classes {curve.overall[i]:.2f} %' for i in chosen]
        series.append(
            Series(
                f'{name}: AUSUC {curve.area:.3f}',
                curve.seen[chosen].tolist(),
                curve.unseen[chosen].tolist(),
                notes=notes,
                marks=[chosen.index(start)],
            )
        )
    counts = f'{len(seen)} seen classes, {found[0][1].shape[1] - len(seen)} unseen ones'
    return LineChart(
        'Seen against unseen classes',
        'accuracy on seen classes, over all (S/Y), %',
        'accuracy on unseen classes, over all (U/Y), %',
        series,
        caption=f'{counts}. Along a curve γ is added to the logits of unseen classes; the large mark is γ = 0.',
        compare=False,
    )
