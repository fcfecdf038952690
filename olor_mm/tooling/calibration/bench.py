"""One model, as it was pre-trained and as it was fine-tuned, and what it says of images."""

from __future__ import annotations

import copy
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast
from mmengine.runner import Runner
from torch import Tensor, nn

from ...engine.loading import load_from_local
from ...engine.rebuilding import unwrapped
from ...engine.trained_only import SaveTrainedHook
from ...evaluation.features import extract_logits
from ...registry import type_name
from .. import launch
from ..errors import InputError, speaks
from .plan import model_config

__all__ = ['Bench', 'logits_of', 'put_in', 'read_checkpoint', 'run_name']

_numbers = itertools.count()
#: Hooks that load or save other weights than those of the model.
_SWAPPING = ('EMAHook', 'SWAHook')


class Bench:
    """A model without anything to run.

    Args:
        cfg: The config of the run, with or without its evaluation.
        root: The work dir.
        notes: Lines for the log.

    Attributes:
        runner: The Runner.
        model: Its model, not wrapped.
    """

    def __init__(self, cfg: Config, root: Path, notes: Sequence[str]) -> None:
        self._start: dict[str, Tensor] | None = None
        bare = model_config(cfg, root, cfg.get('load_from'))
        bare.pop('runner_type', None)
        bare.pop('strategy', None)
        bare.custom_hooks = [h for h in bare.get('custom_hooks') or [] if type_name(h.get('type')) not in _SWAPPING]
        bare.default_hooks = {**(bare.get('default_hooks') or {}), 'checkpoint': None}
        # What matters is said by the tool itself.
        bare.log_level = 'WARNING'
        bare.experiment_name = run_name(cfg, 'model')
        self.runner: Runner = launch._build_runner(bare, ())
        for note in notes:
            self.runner.logger.log(logging.INFO, note)
        self.model: Any = unwrapped(self.runner.model)

    def to_pretrained(self) -> None:
        """Give the model the weights that a run of the config starts from."""
        if self._start is None:
            self.model.init_weights()
            for value in self.model.state_dict().values():
                broadcast(value)
            self.runner.load_or_resume()
            self._start = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self._start)

    def to_checkpoint(self, content: Mapping[str, Any], file: str) -> None:
        """Give the model the weights of a checkpoint.

        Args:
            content: Of :func:`read_checkpoint`.
            file: Its name, for the message.

        Raises:
            InputError: If it is none of this model.
        """
        put_in(self.runner, content, file)

    def logits(self, loader: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and labels (N,) of all images of a loader's config."""
        return logits_of(self.runner, loader)

    def both(self, loader: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, d) as the last layer of the head is given them, logits (N, C) and labels (N,)."""
        head = _Both(self.model.head)
        rows, labels = extract_logits(self.runner.model, _built(self.runner, loader), head)
        return rows[:, : head.width], rows[:, head.width :], labels


class _Both(nn.Module):
    """Features and logits in one pass."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        # In a list, so that the head is no part of it.
        self._head: list[Any] = [head]
        self.width = 0

    def forward(self, feats: Any) -> Tensor:
        head = self._head[0]
        features = head.pre_logits(feats)
        self.width = features.size(1)
        return torch.cat([features, head(feats)], dim=1)


def put_in(runner: Runner, content: Mapping[str, Any], file: str) -> None:
    """Give a Runner's model the weights of a checkpoint, those that it left out included.

    Raises:
        InputError: If it is none of this model.
    """
    given = {**content, 'state_dict': dict(content['state_dict'])}
    try:
        SaveTrainedHook().after_load_checkpoint(runner, given)
        unwrapped(runner.model).load_state_dict(given['state_dict'], strict=True)
    except RuntimeError as error:
        raise InputError(
            f'{file} does not fit the model of the config', str(error), 'give the config that it was trained with'
        ) from error


def logits_of(runner: Runner, loader: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) that a Runner's model gives all images of a loader's config; on every rank."""
    return extract_logits(runner.model, _built(runner, loader))


def _built(runner: Runner, loader: Mapping[str, Any]) -> Any:
    built = runner.build_dataloader(copy.deepcopy(dict(loader)), seed=runner.seed)
    return _Shown(built) if speaks() and sys.stderr.isatty() else built


class _Shown:
    """A data loader that shows how far it is."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(self._loader, 'batches of images', len(self._loader), console=console, transient=True)


def read_checkpoint(file: str) -> dict[str, Any]:
    """What is in a checkpoint, with the weights under 'state_dict'.

    Raises:
        InputError: If it holds no weights by name.
    """
    content = load_from_local(file, 'cpu')
    state = content.get('state_dict', content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f'{file} is no checkpoint of a run: it holds no weights by name')
    rest = dict(content) if state is not content else {}
    return {**rest, 'state_dict': {str(name).removeprefix('module.'): value for name, value in state.items()}}


def run_name(cfg: Config, what: str) -> str:
    """A name of its own in this process: MMEngine keeps message hubs and visualizers by name."""
    return f'{Path(cfg.filename or "run").stem}_{what}_{next(_numbers)}'
