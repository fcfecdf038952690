"""theta_0 from where the settings say: a file, or the files that the model's ``init_cfg`` names.

The weights are loaded into a copy of the model, by the model's own code, so that every renaming and resizing that the
toolboxes do on loading is done here too; the copy is dropped at once.
"""

import copy
import os.path as osp
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from .ledger import LoadLedger
from .loading import local_file
from .vit_checkpoints import plain_address

__all__ = ['anchors_of_file', 'anchors_of_init_cfg', 'delivered_by_init_cfg', 'pretrained_files']


def anchors_of_file(file: str, model: nn.Module, wanted: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
    """theta_0 from a checkpoint of the whole model, or of one of its children, such as the backbone.

    Args:
        file: What MMEngine's checkpoint loader takes: a path or an address.
        model: The model, not wrapped.
        wanted: Name in the model to parameter.

    Returns:
        Parameter to theta_0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks a wanted parameter, or has it in another shape.
    """
    option = f'optim_wrapper.rollback.anchor={file!r}'
    try:
        checkpoint = CheckpointLoader.load_checkpoint(file, map_location='cpu', logger='silent')
    except FileNotFoundError as error:
        if osp.isdir(osp.expanduser(file)):
            raise FileNotFoundError(f'{option} is a folder; give a checkpoint file in it') from None
        if '://' in file:
            raise FileNotFoundError(f'{option}: {error}') from None
        raise FileNotFoundError(f"{option}: no such file; give a checkpoint file, 'init_cfg' or 'current'") from None
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'{option} holds a {type(checkpoint).__name__}, no weights by name; give a checkpoint file')
    state = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    if not isinstance(state, Mapping):
        raise ValueError(f'{option} has a {type(state).__name__} where weights by name belong; give a checkpoint file')
    state = {key.removeprefix('module.'): value for key, value in state.items() if isinstance(key, str)}
    odd = [key for key, value in state.items() if isinstance(value, Tensor) and value.is_complex()]
    if odd and not any(param.is_complex() for param in wanted.values()):
        # Loading would keep the real parts and say no word.
        raise ValueError(f'{option}: {odd[0]} is complex there and the weight is not; give a file of real numbers')

    def load(module: nn.Module) -> None:
        load_state_dict(module, state, strict=False, logger='silent')

    found = _deliver(model, load)
    for name, child in model.named_children():
        below = {key for key in wanted if key.startswith(f'{name}.')}
        if below and not below & found.keys():
            found.update(_below(name, _deliver(child, load)))
        if below & found.keys() and not below <= found.keys() and isinstance(child, BaseModule):
            # mmseg's VisionTransformer resizes its position embeddings in init_weights alone.
            resized = _deliver(child, lambda module: _initialise_from(module, file))
            found = {**_below(name, resized), **found}
    return _select(found, wanted, option)


def anchors_of_init_cfg(model: nn.Module, wanted: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
    """theta_0 from the checkpoints that ``init_cfg=dict(type='Pretrained', ...)`` in the model names.

    Args:
        model: The model, not wrapped.
        wanted: Name in the model to parameter.

    Returns:
        Parameter to theta_0.

    Raises:
        ValueError: If they do not have every wanted parameter.
    """
    option = "optim_wrapper.rollback.anchor='init_cfg'"
    found = delivered_by_init_cfg(model)
    if not found:
        raise ValueError(f"{option}: no init_cfg of the model is of type 'Pretrained'; give a checkpoint file instead")
    return _select(found, wanted, option)


def delivered_by_init_cfg(model: nn.Module) -> dict[str, Tensor]:
    """Name to value of the parameters that the checkpoints of ``init_cfg`` deliver; the model is not touched."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseModule) and _is_pretrained(module.init_cfg):
            prefix = f'{name}.' if name else ''
            found.update({prefix + key: value for key, value in _deliver(module, _initialise).items()})
    return found


def pretrained_files(model: nn.Module, anchor: str | None, loaded: Iterable[str]) -> list[str]:
    """Files on this machine that theta_0 may be in; whether it is shows in its values.

    Args:
        model: The model, not wrapped, whose ``init_cfg`` may name some.
        anchor: ``optim_wrapper.rollback.anchor``.
        loaded: Where weights were loaded from.
    """
    modules = [module for module in model.modules() if isinstance(module, BaseModule)]
    sources: list[Any] = [] if anchor in (None, 'current', 'init_cfg') else [anchor]
    sources += [cfg.get('checkpoint') for module in modules for cfg in _pretrained(module.init_cfg)]
    files = [local_file(plain_address(source)) for source in [*sources, *loaded] if isinstance(source, str)]
    return list(dict.fromkeys(file for file in files if file is not None))


def _pretrained(init_cfg: object) -> list[dict]:
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [cfg for cfg in configs if isinstance(cfg, dict) and cfg.get('type') == 'Pretrained']


def _is_pretrained(init_cfg: object) -> bool:
    return bool(_pretrained(init_cfg))


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, BaseModule):
            part.is_init = False
    # The run's own random numbers must not depend on whether theta_0 was read again.
    with torch.random.fork_rng(devices=[]):
        cast(BaseModule, module).init_weights()


def _below(child: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f'{child}.{key}': value for key, value in found.items()}


def _initialise_from(module: nn.Module, file: str) -> None:
    module.init_cfg = dict(type='Pretrained', checkpoint=file)  # type: ignore[assignment]
    _initialise(module)


def _deliver(module: nn.Module, load: Callable[[nn.Module], None]) -> dict[str, Tensor]:
    """Name to value of what ``load`` delivers to a copy of ``module``."""
    trial = copy.deepcopy(module).cpu()
    ledger = LoadLedger(trial)
    load(trial)
    ledger.close()
    return {name: p.detach() for name, p in trial.named_parameters() if p in ledger.delivered}


def _select(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], option: str) -> dict[Tensor, Tensor]:
    absent = [name for name in wanted if name not in found]
    if absent:
        raise ValueError(
            f'{option} has no value of the right shape for {len(absent)} of {len(wanted)} tensors that are to be '
            f'pulled back: {", ".join(absent[:3])}{", ..." if len(absent) > 3 else ""}; give the file that the run '
            'started from, or name roots that it covers'
        )
    return {p: found[name] for name, p in wanted.items()}
