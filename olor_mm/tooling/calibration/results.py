"""What a calibration writes down: what it was of, the gammas, and the table on the data of the test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...evaluation.ausuc import ausuc_curve
from ...evaluation.ncm import class_means, ncm_scores
from ...evaluation.seen_unseen import seen_unseen_accuracies
from ..errors import InputError
from ..incremental.results import write_json
from .plan import Plan

__all__ = ['Row', 'Seen', 'begin', 'markdown', 'rows_of', 'write_results']

_PARTS = ('Y/Y', 'S/Y', 'U/Y', 'S/S', 'U/U')


@dataclass
class Row:
    """A line of the table.

    Attributes:
        name: Of the model, and of how gamma was chosen.
        gamma: What is added to the logits of absent classes.
        accuracies: 'Y/Y', 'S/Y', 'U/Y', 'S/S' and 'U/U', %.
        ausuc: The area under (Acc S/Y, Acc U/Y), from 0 to 1; gamma does not change it.
        ncm: 'Y/Y', 'S/Y' and 'U/Y' of the nearest class mean, %; None where it was not measured. Nor this.
    """

    name: str
    gamma: float
    accuracies: dict[str, float]
    ausuc: float
    ncm: dict[str, float] | None = None


@dataclass
class Seen:
    """What a model says of the images of the test, and of the bank of the class means.

    Attributes:
        logits: (N, C).
        labels: (N,).
        features: (N, d), None where there is no bank.
        bank: Features and labels.
    """

    logits: Tensor
    labels: Tensor
    features: Tensor | None = None
    bank: tuple[Tensor, Tensor] | None = None


def rows_of(pretrained: Seen, tuned: Seen, seen: Sequence[int], gammas: Mapping[str, float]) -> list[Row]:
    """The table.

    Args:
        pretrained: What the pre-trained model says.
        tuned: What the fine-tuned one says.
        seen: Labels of S.
        gammas: By method.
    """
    before = ausuc_curve(pretrained.logits, pretrained.labels, seen).area
    rows = [Row('pre-trained', 0.0, _accuracies(pretrained, seen, 0.0), before, _ncm(pretrained, seen))]
    curve, ncm = ausuc_curve(tuned.logits, tuned.labels, seen), _ncm(tuned, seen)
    oracle, _ = curve.best
    chosen = {'fine-tuned': 0.0, **{f'fine-tuned, {name}': gamma for name, gamma in gammas.items()}}
    chosen['fine-tuned, oracle (looks at the labels of the test)'] = oracle
    return [*rows, *(Row(name, g, _accuracies(tuned, seen, g), curve.area, ncm) for name, g in chosen.items())]


def _accuracies(said: Seen, seen: Sequence[int], gamma: float) -> dict[str, float]:
    return seen_unseen_accuracies(said.logits, said.labels, seen, gamma)


def _ncm(said: Seen, seen: Sequence[int]) -> dict[str, float] | None:
    if said.bank is None or said.features is None:
        return None
    classes = said.logits.size(1)
    scores = ncm_scores(said.features, class_means(*said.bank, classes))
    found = seen_unseen_accuracies(scores, said.labels, seen)
    return {part: found[part] for part in _PARTS[:3]}


def markdown(rows: Sequence[Row]) -> str:
    """The table, in %."""
    ncm = any(row.ncm for row in rows)
    header = ['', 'gamma', *(f'Acc {part}' for part in _PARTS), 'AUSUC', *(f'NCM {p}' for p in _PARTS[:3] if ncm)]
    lines = [f'| {" | ".join(header)} |', '|---' * len(header) + '|']
    for row in rows:
        cells = [row.name, f'{row.gamma:.2f}', *(f'{row.accuracies[part]:.2f}' for part in _PARTS), f'{row.ausuc:.3f}']
        cells += [f'{row.ncm[part]:.2f}' if row.ncm else '-' for part in _PARTS[:3] if ncm]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def begin(root: Path, plan: Plan, checkpoint: str, resume: bool) -> None:
    """Write down what a new calibration is of, or see that it is the one that goes on.

    Raises:
        InputError: If the work dir holds one and this is no resume, or it is another one.
    """
    if int(os.environ.get('RANK', 0)) > 0:
        return
    file, record = root / 'plan.json', {'checkpoint': str(Path(checkpoint).expanduser().absolute()), **plan.record()}
    if not file.exists():
        write_json(file, record)
        return
    if not resume:
        raise InputError(f'{root} holds a calibration already', 'to go on: --resume; to start anew: another --work-dir')
    try:
        saved = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'--resume: {file} cannot be read: {error}', 'start anew with another --work-dir') from error
    # Another checkpoint of the same classes has the same folds; --methods alg alone has none.
    names = [key for key in ('seen', 'share', 'seed') if saved.get(key) != record[key]]
    if record['folds'] and saved.get('folds') and record['folds'] != saved['folds'][: len(record['folds'])]:
        names.append('folds')
    if names:
        told = [f'{name}: there {str(saved.get(name))[:80]}, here {str(record[name])[:80]}' for name in names]
        raise InputError(
            f'--resume: the calibration in {root} is another one',
            *told,
            'take the options that it was started with, or another --work-dir',
        )
    if len(record['folds']) > len(saved['folds']):
        write_json(file, record)


def write_results(root: Path, plan: Plan, gammas: Mapping[str, float], folds: Any, rows: Sequence[Row]) -> str:
    """Write results.json, and results.md where there is a table.

    Returns:
        The table.
    """
    content = {'gammas': dict(gammas), 'folds': folds, 'seen': plan.seen, 'table': [asdict(row) for row in rows]}
    write_json(root / 'results.json', content)
    if not rows:
        return ''
    table = markdown(rows)
    (root / 'results.md').write_text(f'{table}\n', encoding='utf-8')
    return table
