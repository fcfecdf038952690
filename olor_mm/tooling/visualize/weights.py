"""Checkpoints into the model of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

from ...engine.added import added_by_methods
from ...engine.ledger import LoadLedger
from ...engine.loading import load_from_local
from ...engine.trained_only import LEFT_OUT, check_left_out
from ...layers import canonical_name
from ..errors import InputError
from ..settings import model_of
from ..weights import check_file

__all__ = ['build_model', 'load_weights', 'read_checkpoint']


def build_model(cfg: Config) -> Any:
    """The model of a config, without weights from a file."""
    if cfg.get('model') is None:
        raise InputError(f'the config {cfg.filename} has no model', 'give the config of the training')
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        return registry.build(model_of(cfg))


def read_checkpoint(file: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """What a checkpoint file holds, and the weights in it by name; no code of it is run.

    Raises:
        InputError: If it is missing, cut off, or holds no weights by name.
    """
    if file.is_dir():
        raise InputError(
            f'the checkpoint {file} is a folder, of shards as FSDP saves them',
            'gather it first: train, or resume, with state_dict_cfg=full',
        )
    check_file(str(file), 'the checkpoint')
    content = load_from_local(str(file), 'cpu')
    state = content
    for key in ('state_dict', 'model', 'module'):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = state.items() if isinstance(state, Mapping) else ()
    weights = {canonical_name(name): value for name, value in tensors if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f'{file} holds no weights by name', 'give a checkpoint of a run')
    return content, weights


def load_weights(model: Any, file: Path, ignored: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Put a checkpoint into a model; that of a backbone alone goes into the backbone.

    Args:
        model: The model, not wrapped.
        file: The checkpoint.
        ignored: What names of parameters begin with that need not be in it. Defaults to ().

    Returns:
        All that the file holds.

    Raises:
        InputError: If it is none of this model.
    """
    content, state = read_checkpoint(file)
    if LEFT_OUT in state:
        # Its frozen weights are in the pre-trained file alone.
        model.init_weights()
        own = check_left_out(model, state.pop(LEFT_OUT))
        state.update({name: value for name, value in own.items() if name not in state})
    ledger = LoadLedger(model)
    load_state_dict(model, state, strict=False, logger='silent')
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, nn.Module) and not any(p in ledger.delivered for p in backbone.parameters()):
        load_state_dict(backbone, state, strict=False, logger='silent')
    ledger.close()
    own_names = {name: p for name, p in model.named_parameters() if not name.startswith(ignored or ('\0',))}
    new = added_by_methods(model)
    absent = [name for name, p in own_names.items() if p not in ledger.delivered and name not in new]
    if absent:
        shapes = [f'{name}: {ledger.mismatched[p]} there' for name, p in own_names.items() if p in ledger.mismatched]
        raise InputError(
            f'{file} does not fit the model of the config: it lacks {len(absent)} of {len(own_names)} tensors, such as '
            f'{", ".join(absent[:3])}',
            *(['in another shape: ' + ', '.join(shapes[:3])] if shapes else []),
            f'it has: {", ".join(list(state)[:3])}',
            'give the config that it was trained with',
        )
    return content
