"""tools/merge_lora.py: from a checkpoint with LoRA to one of the model without."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import save_checkpoint, weights_to_cpu

from ..engine.loading import load_from_local
from ..engine.trained_only import LEFT_OUT
from ..models import merge
from ..registry import type_name
from . import settings
from .errors import InputError
from .names import check_names
from .options import merge_parser
from .weights import check_file, check_weights

__all__ = ['merge_lora']


def merge_lora(argv: Sequence[str]) -> None:
    """Merge as ``tools/merge_lora.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If the config has no LoRA, or the checkpoint is not of its model.
    """
    args = merge_parser().parse_args(argv)
    cfg = _config(args)
    check_file(args.checkpoint, 'the checkpoint to merge')
    out = Path(args.out).expanduser()
    if out.exists():
        raise InputError(f'{out} exists', 'give a name that is free')
    checkpoint = load_from_local(args.checkpoint, 'cpu')
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get('state_dict'), Mapping):
        raise InputError(f"{args.checkpoint} is no checkpoint of a run: it has no 'state_dict'")
    model, plain = _models(cfg)
    if not any(name in checkpoint['state_dict'] for name in model.tuning.added):
        raise InputError(f'{args.checkpoint} has nothing of LoRA', 'it is a checkpoint of the model without, as it is')
    if LEFT_OUT in checkpoint['state_dict']:
        check_weights(Config({'model': cfg.model}))
        model.init_weights()
    try:
        model.load_state_dict(checkpoint['state_dict'], strict=True)
        merge(model)
        state = weights_to_cpu(model.state_dict())
        plain.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f'{args.checkpoint} does not fit the model of {args.config}', str(error)) from error
    meta = {'merged_from': str(args.checkpoint)}
    if 'dataset_meta' in (checkpoint.get('meta') or {}):
        meta['dataset_meta'] = checkpoint['meta']['dataset_meta']
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({'meta': meta, 'state_dict': state}, str(out))
    print(f'{out}: {len(state)} tensors of {type_name(cfg.model.of)} without LoRA')


def _models(cfg: Config) -> tuple[Any, Any]:
    """The model of the config, and the same without a method."""
    bare = {key: value for key, value in cfg.model.items() if key not in ('of', 'method')}
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        return registry.build(copy.deepcopy(cfg.model)), registry.build({**copy.deepcopy(bare), 'type': cfg.model.of})


def _config(args: argparse.Namespace) -> Config:
    args.launcher, args.work_dir = 'none', None
    cfg = settings.load_config(args)
    settings.register_scope(cfg)
    check_names(cfg)
    model = cfg.get('model') or {}
    methods = model.get('method') or []
    methods = methods if isinstance(methods, (list, tuple)) else [methods]
    kinds = [type_name(method.get('type') if isinstance(method, Mapping) else method) for method in methods]
    if type_name(model.get('type')) != 'Tuned' or set(kinds) - {'LoRA', 'Full', 'Linear', 'BitFit', 'TopK', 'Subset'}:
        raise InputError(
            f'the model of {args.config} is no model with LoRA alone: methods are {", ".join(kinds) or "none"}',
            "it takes the config that was trained, model=dict(type='olor_mm.Tuned', of=..., method=dict(type='LoRA'))",
        )
    return cfg
