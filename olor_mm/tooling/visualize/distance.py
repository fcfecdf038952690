"""||theta - theta_0|| / ||theta_0|| of a checkpoint, for the theta_0 that it brings itself or that of a file."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from ...engine import OLOROptimWrapperConstructor
from ...engine.added import added_by_methods
from ...engine.settings import LOADED
from ...engine.sources import anchors_of_file, delivered_by_init_cfg
from ...layers import LayerTable, assign_layers, canonical_name
from ...models import merge
from ...models.low_rank import LowRank
from ...registry import type_name
from ...rollback.discrepancy import relative_discrepancy
from .. import launch
from ..errors import InputError
from ..forgetting.origin import plain_name
from ..weights import weight_files
from .weights import build_model, load_weights

__all__ = ['Distance', 'Subject']

_HINT = 'give the file of the weights that training started from: --theta-0 FILE'


@dataclass
class Distance:
    """What was found of one checkpoint.

    Attributes:
        labels: Of the layers, from the stem on.
        values: ||theta - theta_0|| / ||theta_0|| of each, dimensionless; NaN where a layer has no theta_0.
        overall: That of all of them together.
    """

    labels: list[str]
    values: list[float]
    overall: float


class Subject:
    """The model of a config, whose checkpoints are measured.

    Args:
        config: The config file.
        args: Of the command line: ``theta_0``, ``roots``, ``index``, ``cfg_options``.

    Attributes:
        origin: Where theta_0 was, in words; known after the first measurement.
    """

    def __init__(self, config: str, args: argparse.Namespace) -> None:
        given = copy.copy(args)
        given.config = config
        self.cfg: Config = launch._configure(given)[0]
        self._file = None if args.theta_0 is None else str(Path(args.theta_0).expanduser())
        self._roots = args.roots
        self._index = args.index
        self._theta_0: dict[str, Tensor] | None = None
        self.origin = ''

    def measure(self, file: Path) -> Distance:
        """The distance of a checkpoint.

        Args:
            file: The checkpoint.

        Raises:
            InputError: If it is none of this model, or theta_0 is not known.
        """
        model = build_model(self.cfg)
        content = load_weights(model, file)
        layers = self._layers(model)
        if self._theta_0 is None:
            self._theta_0 = self._find_theta_0(model, content, layers, file)
        return _measured(model, layers, self._theta_0)

    def _layers(self, model: Any) -> LayerTable:
        rollback = (self.cfg.get('optim_wrapper') or {}).get('rollback') or {}
        roots = self._roots or rollback.get('roots')
        if roots in (None, LOADED):
            roots = ('backbone',) if hasattr(model, 'backbone') else ('',)
        layer_map = rollback.get('layer_map') if self._index == 'layer' else None
        try:
            return assign_layers(model, roots, self._index, layer_map, skip=added_by_methods(model))
        except ValueError as error:
            raise InputError(str(error), 'name the parts that are pre-trained: --roots backbone neck') from error

    def _find_theta_0(
        self, model: Any, content: Mapping[str, Any], layers: LayerTable, file: Path
    ) -> dict[str, Tensor]:
        """By the names that parameters have without LoRA."""
        params = {canonical_name(name): p for name, p in model.named_parameters()}
        wanted = {name: params[name] for name in layers.index}
        if self._file is not None:
            self.origin = Path(self._file).name
            return _from_file(self._file, model, wanted)
        record = _recorded(self.cfg, model, content, params)
        if record:
            self.origin = 'as the checkpoint has it'
            return {plain_name(name): value for name, value in record.items()}
        if self.cfg.get('load_from') and not self.cfg.get('resume'):
            # A run loads it over what init_cfg delivers.
            self.origin = Path(self.cfg.load_from).name
            return _from_file(self.cfg.load_from, model, wanted)
        found = {name: value for name, value in delivered_by_init_cfg(model).items() if name in wanted}
        if found:
            files = dict(weight_files(self.cfg))
            self.origin = ', '.join(dict.fromkeys(Path(source).name for source in files.values()))
            return {plain_name(name): value for name, value in found.items()}
        raise InputError(f'{file} does not hold theta_0, and its config names no file of pre-trained weights', _HINT)


def _from_file(file: str, model: Any, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        found = anchors_of_file(file, model, wanted)
    except (FileNotFoundError, ValueError) as error:
        text = str(error).replace(f'optim_wrapper.rollback.anchor={file!r}', f'theta_0 from {file}')
        raise InputError(text, _HINT) from error
    names = {p: name for name, p in wanted.items()}
    return {plain_name(names[p]): value for p, value in found.items()}


def _recorded(cfg: Config, model: Any, content: Mapping[str, Any], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """theta_0 from the optimizer's state, read by the rollback itself; nothing where the run had none."""
    state = content.get('optimizer')
    wrapper = copy.deepcopy(dict(cfg.get('optim_wrapper') or {}))
    if not isinstance(state, Mapping) or 'rollback' not in state:
        return {}
    if type_name(wrapper.pop('constructor', None)) != 'OLOROptimWrapperConstructor':
        raise InputError(
            'the checkpoint was saved by a run with rollback, but its config has none',
            'give the config of that run: --config CONFIG',
        )
    for key in ('type', 'loss_scale', 'dtype', 'use_fp64'):
        # Mixed precision needs an accelerator, and nothing is trained here.
        wrapper.pop(key, None)
    rollback_cfg = {**wrapper['rollback'], 'log': False, 'anchor_memory': 'param'}
    if rollback_cfg.get('roots') == LOADED:
        rollback_cfg['roots'] = sorted({name.split('.')[0] for name in state['rollback']['names']})
    built: Any = OLOROptimWrapperConstructor({**wrapper, 'rollback': rollback_cfg}, wrapper.pop('paramwise_cfg', None))(
        model
    )
    built.load_state_dict(dict(state))
    rollback = built.rollback_session.rollback
    rollback.capture(again=True)
    found = {name: rollback.anchor(p) for name, p in params.items()}
    return {name: value.detach().clone() for name, value in found.items() if value is not None}


def _measured(model: Any, layers: LayerTable, theta_0: Mapping[str, Tensor]) -> Distance:
    index = {plain_name(name): i for name, i in layers.index.items()}
    if any(isinstance(module, LowRank) for module in model.modules()):
        # What LoRA adds to a weight is a change of the weight.
        merge(model)
    params = {name: p for name, p in model.named_parameters() if name in theta_0 and name in index}
    anchors: dict[Tensor, Tensor] = {p: theta_0[name].to(p.device) for name, p in params.items()}
    parts: dict[int, list[Tensor]] = {i: [] for i in range(layers.num_layers + 1)}
    for name, p in params.items():
        parts[index[name]].append(p)
    found = relative_discrepancy(anchors, {-1: list(params.values()), **parts}, None)
    labels = [layers.labels.get(i, '') for i in parts]
    return Distance(labels, [found.get(i, float('nan')) for i in parts], found[-1])
