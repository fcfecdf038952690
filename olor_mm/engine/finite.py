"""NaN and infinity: noticed where they arise, and kept out of checkpoints."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from olor_mm.layers import canonical_name

from .integrity import last_complete

__all__ = ['LossWatch', 'NonFiniteError', 'check_resumed', 'check_weights', 'non_finite']

_REMEDY = (
    'resume from there (the same command with --resume) with gradient clipping (optim_wrapper.clip_grad) or without '
    "the data that cause it. A lower learning rate does not come with --resume, for the checkpoint's goes on: give the "
    'file as load_from, and with OLOR the pre-trained one as optim_wrapper.rollback.anchor'
)


class NonFiniteError(RuntimeError):
    """Weights have become NaN or infinite, or losses have been for too long."""


class LossWatch:
    """Watches the losses that MMEngine logs anyway.

    Args:
        patience: How many in a row may be NaN or infinite while the weights stay finite.

    Attributes:
        since: The iteration, counted from 1, of the first of the current row of such losses; None where there is none.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.since: int | None = None

    def look(self, runner: Runner, outputs: Mapping[str, Any] | None) -> None:
        """Look at the losses of the iteration that has just ended.

        Args:
            runner: The runner.
            outputs: What the model's ``train_step`` returned.

        Raises:
            NonFiniteError: If a loss is not finite, and the weights are not either, or ``patience`` is at its end.
        """
        wrong = _wrong_losses(runner, outputs or {})
        iteration = runner.iter + 1
        if not wrong:
            self.since = None
            return
        first = self.since is None
        self.since = iteration if self.since is None else self.since
        what = f'{", ".join(f"{name} is {value}" for name, value in wrong.items())} in iteration {iteration}'
        names = non_finite(runner.model.named_parameters())
        if names:
            raise NonFiniteError(f'{what}, and it has reached {_listed(names)}. {_saved(runner)}')
        if iteration - self.since >= self.patience:
            raise NonFiniteError(f'{what}, as in every iteration since {self.since}. {_saved(runner)}')
        if first:
            print_log(
                f'{what}; the weights are finite: the step was skipped, or its gradients are still being gathered. '
                f'Training goes on, and ends if this lasts for more than {self.patience} iterations',
                logger='current',
                level=logging.WARNING,
            )


def check_weights(runner: Runner, name: str, since: int | None = None) -> None:
    """See that the weights may be saved. All ranks must call this, and they come to one answer.

    Args:
        runner: The runner.
        name: What is about to be saved, for the message.
        since: The iteration whose loss was the first to be NaN or infinite, where that is known. Defaults to None.

    Raises:
        NonFiniteError: If a parameter is NaN or infinite, or a buffer that is saved NaN, on any rank. (Buffers may hold
            infinity, as attention masks do.)
    """
    bad = non_finite(runner.model.named_parameters())
    bad += non_finite(_saved_buffers(runner.model), infinity=True)
    count = torch.tensor(float(len(bad)))
    all_reduce(count, 'max')
    if not count:
        return
    where = _listed(bad) if bad else 'NaN or infinity in the weights of another process'
    came = f' The loss was the first time in iteration {since}.' if since is not None else ''
    raise NonFiniteError(
        f'{name} was not saved, so that no good checkpoint is replaced: {where}.{came} {_saved(runner)}'
    )


def check_resumed(file: str | None, state_dict: Mapping[str, Any]) -> None:
    """See that a checkpoint to go on from holds no NaN.

    Args:
        file: Its name, for the message.
        state_dict: Its weights.

    Raises:
        NonFiniteError: If it does.
    """
    bad = non_finite(((k, v) for k, v in state_dict.items() if isinstance(v, Tensor)), infinity=True)
    if bad:
        name = file or 'its checkpoint'
        raise NonFiniteError(
            f'the run cannot go on from {name}, which holds {_listed(bad)}: resume from an earlier one'
        )


def non_finite(named: Iterable[tuple[str, Tensor]], infinity: bool = False) -> list[str]:
    """Canonical names of the tensors that hold NaN or infinity; one wait for each device while all are finite.

    Args:
        named: Names and tensors.
        infinity: Whether infinity is allowed. Defaults to False.
    """
    numbers = [(name, t.detach()) for name, t in named if t.is_floating_point() or t.is_complex()]
    # Neither can be lost in a sum, which takes no memory and a tenth of the time. It may also be too large.
    suspect = _marked(numbers, lambda t: ~torch.isfinite(t.sum(dtype=torch.float32 if t.dtype.itemsize < 4 else None)))
    return [
        canonical_name(name)
        for name, _ in _marked(suspect, lambda t: (torch.isnan(t) if infinity else ~torch.isfinite(t)).any())
    ]


def _marked(named: Iterable[tuple[str, Tensor]], mark: Callable[[Tensor], Tensor]) -> list[tuple[str, Tensor]]:
    """Those for which ``mark`` gives True, by device."""
    found: dict[torch.device, list[tuple[str, Tensor, Tensor]]] = {}
    for name, tensor in named:
        found.setdefault(tensor.device, []).append((name, tensor, mark(tensor)))
    marked = []
    for rows in found.values():
        flags = torch.stack([flag for _, _, flag in rows]).tolist()
        marked += [(name, tensor) for (name, tensor, _), flag in zip(rows, flags, strict=True) if flag]
    return marked


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f'{path}.{name}' if path else name, buffer


def _wrong_losses(runner: Runner, outputs: Mapping[str, Any]) -> dict[str, float]:
    """Name to value of the losses of this iteration that are not finite."""
    logged = runner.message_hub.log_scalars
    wrong = {}
    for name, value in outputs.items():
        if 'loss' not in name:
            continue
        # MMEngine has copied them to the host already, for the log.
        value = float(logged[f'train/{name}'].current() if f'train/{name}' in logged else value)
        if not math.isfinite(value):
            wrong[name] = value
    return wrong


def _listed(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'NaN or infinity in {len(names)} tensors ({", ".join(names[:3])}{more})'


def _saved(runner: Runner) -> str:
    latest = last_complete(runner.work_dir) or (runner._load_from if runner._resume else None)
    if latest is None:
        return 'There is no checkpoint yet: lower the learning rate, or clip gradients (optim_wrapper.clip_grad)'
    return f'The last checkpoint is {latest}, from before: {_REMEDY}'
