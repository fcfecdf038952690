"""gamma in a checkpoint: it goes into the biases of the head's last layer, which every program that loads it reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from torch import Tensor, nn

from ...engine.replacing import PART, put_in_place
from ...evaluation.features import evaluating
from ..errors import InputError

__all__ = ['RECORD', 'check_uncalibrated', 'find_biases', 'uncalibrated', 'with_gamma', 'write_checkpoint']

#: Where a checkpoint says what was done to it.
RECORD = 'calibration'


def check_uncalibrated(content: Mapping[str, Any], file: str) -> None:
    """See that a checkpoint has no gamma yet.

    Raises:
        InputError: If it has one.
    """
    if RECORD in content:
        raise InputError(
            f'{file} is calibrated already: gamma {content[RECORD]["gamma"]:.4g} by {content[RECORD]["method"]}',
            'give the checkpoint of the training, or take gamma out of this one with --remove FILE',
        )


def find_biases(model: Any, inputs: Any, absent: Sequence[int]) -> dict[str, float]:
    """The biases that the logits of absent classes are shifted by, tried out.

    Args:
        model: A classifier of mmpretrain's.
        inputs: A batch of it, as its preprocessor gives it.
        absent: Labels.

    Returns:
        Names in the model's state dict, and what is to be added to each for a shift of the logits by 1: less than 1
        where logits are the sum of several layers'.

    Raises:
        InputError: If the head has no such biases, or they do not shift the logits alike.
    """
    with evaluating(model):
        feats = model.extract_feat(inputs)
        found = _candidates(model, model.head(feats).size(1))
        # A hidden layer may be as wide as there are classes.
        for biases in (found, *({name: bias} for name, bias in found.items())):
            shift = _shift(model.head, feats, list(biases.values()), list(absent))
            if shift is not None:
                return {name: 1 / round(shift, 4) for name in biases}
    raise InputError(
        f'gamma cannot be put into {type(model.head).__name__}: its logits are not the sum of something and the biases '
        'of a layer with an output for each class',
        f'biases tried: {", ".join(found) or "there are none"}',
        'take a head with biases, such as LinearClsHead',
    )


def _shift(head: nn.Module, feats: Any, biases: Sequence[Tensor], absent: list[int]) -> float | None:
    """By how much logits of absent classes grow when 1 is added to their biases; None unless that is all that does."""
    kept = [bias.clone() for bias in biases]
    before = head(feats).double()
    try:
        for bias in biases:
            bias[absent] += 1
        moved = head(feats).double() - before
    finally:
        for bias, value in zip(biases, kept, strict=True):
            bias.copy_(value)
    shift = float(moved[:, absent].mean())
    wanted = torch.zeros_like(moved[0])
    wanted[absent] = shift
    alike = shift > 0 and torch.allclose(moved, wanted.expand_as(moved), rtol=0, atol=1e-2 * shift)
    return shift if biases and alike else None


def _candidates(model: Any, classes: int) -> dict[str, Tensor]:
    """Biases of the head's layers that have an output for each class."""
    names = {id(param): name for name, param in model.named_parameters()}
    found = {}
    for module in model.head.modules():
        weight, bias = getattr(module, 'weight', None), getattr(module, 'bias', None)
        if not (isinstance(weight, Tensor) and isinstance(bias, nn.Parameter)):
            continue
        if id(bias) in names and weight.dim() > 1 and weight.size(0) == classes == bias.numel():
            found[names[id(bias)]] = bias.data
    return found


def with_gamma(
    content: Mapping[str, Any],
    model: nn.Module,
    biases: Mapping[str, float],
    absent: Sequence[int],
    gamma: float,
    method: str,
) -> dict[str, Any]:
    """A checkpoint to test and to infer with, gamma in it.

    Args:
        content: That of the fine-tuned model.
        model: It, with the checkpoint's weights.
        biases: Of :func:`find_biases`.
        absent: Labels of the classes whose logits are shifted.
        gamma: In the unit of the logits.
        method: What it was chosen by.

    Returns:
        Weights, ``meta``, and under 'calibration' what was done, with the biases as they were.
    """
    state: dict[str, Any] = dict(content['state_dict'])
    if not biases.keys() <= state.keys():
        # What was left out of the checkpoint is in the model.
        state = dict(weights_to_cpu(get_state_dict(model)))
    before = {name: state[name].clone() for name in biases}
    for name, scale in biases.items():
        moved = state[name].clone()
        moved[list(absent)] += gamma * scale
        state[name] = moved
    record = dict(gamma=float(gamma), method=method, absent=[int(label) for label in absent], biases=before)
    return {'meta': dict(content.get('meta') or {}), 'state_dict': state, RECORD: record}


def uncalibrated(content: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A calibrated checkpoint with the biases that it had before, bit by bit.

    Raises:
        InputError: If it is not calibrated.
    """
    if RECORD not in content:
        raise InputError(f'--remove: {file} is not calibrated', 'there is nothing to take out')
    state = {**content['state_dict'], **content[RECORD]['biases']}
    return {'meta': dict(content.get('meta') or {}), 'state_dict': state}


def write_checkpoint(content: Mapping[str, Any], file: Path) -> None:
    """Write a checkpoint that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'.{file.name}.{os.getpid()}{PART}')
    torch.save(dict(content), part)
    put_in_place(part, file)
