"""What a config or a model has that rollback cannot work with: said when the optimizer wrapper is built, or steps."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS, Registry
from torch import Tensor, nn
from torch.optim import Optimizer

from olor_mm.layers import canonical_name
from olor_mm.registry import type_name
from olor_mm.rollback import Rollback

from .settings import LOADED, RollbackSettings
from .zero import SHARING, ZeroRedundancyOptimizer

__all__ = [
    'check_effect',
    'check_first_step',
    'check_inner',
    'check_optimizer_cfg',
    'find',
    'trains_other_tensors',
]

_INNER = 'optim_wrapper.rollback.inner'
#: What the constructor itself hands to the inner one.
_HANDED_OVER = ('optim_wrapper_cfg', 'paramwise_cfg')


def find(registry: Registry, name: str) -> Any:
    """What a registry has under a name in the current scope, or None; MMEngine itself raises for some names."""
    try:
        with registry.switch_scope_and_registry(None) as scoped:
            return scoped.get(name)
    except RuntimeError:
        return None


def check_inner(inner: Mapping[str, Any], own: type) -> None:
    """See that ``rollback.inner`` is a constructor with these options.

    Args:
        inner: Its config.
        own: The constructor with rollback, which cannot be inside itself.

    Raises:
        ValueError: If it is not; the message names option, value and remedy.
    """
    named = inner['type']
    found = find(OPTIM_WRAPPER_CONSTRUCTORS, named) if isinstance(named, str) else named
    called = inspect.isclass(found) and any('__call__' in vars(base) for base in found.__mro__)
    if not called or issubclass(found, (OptimWrapper, Optimizer, nn.Module)):
        raise ValueError(
            f'{_INNER}.type={named!r:.80} is no constructor of optimizer wrappers: name a registered one, such as '
            'DefaultOptimWrapperConstructor or mmdet.LearningRateDecayOptimizerConstructor'
        )
    if issubclass(found, own):
        raise ValueError(
            f'{_INNER}.type={named!r:.80} cannot be inside itself: leave inner out, or name the constructor that the '
            'config had before'
        )
    _check_options(inner, found)


def _check_options(inner: Mapping[str, Any], found: Callable[..., Any]) -> None:
    takes = inspect.signature(found).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    for key in inner:
        if key in _HANDED_OVER:
            raise ValueError(
                f'{_INNER}.{key}={inner[key]!r:.80} does not belong there: put it into optim_wrapper.{key}'
            )
        if key != 'type' and key not in takes and not anything:
            name = getattr(found, '__name__', str(found))
            raise ValueError(
                f'{_INNER}.{key}={inner[key]!r:.80} is no option of {name}: leave it out; options of layers and rates '
                'go into optim_wrapper.paramwise_cfg'
            )


def check_optimizer_cfg(optimizer: Any) -> None:
    """See that ``optim_wrapper.optimizer`` names an optimizer and options of it; MMEngine's own errors name neither.

    Raises:
        ValueError: If it does not.
    """
    if optimizer is None:
        raise ValueError("optim_wrapper.optimizer is not set: give it, such as dict(type='AdamW', lr=1e-4)")
    if not isinstance(optimizer, Mapping) or 'type' not in optimizer:
        raise ValueError(
            f"optim_wrapper.optimizer={optimizer!r:.80} names none: give it, such as dict(type='AdamW', lr=1e-4)"
        )
    name = optimizer['type']
    kind = find(OPTIMIZERS, name) if isinstance(name, str) else name
    if kind is None:
        near = difflib.get_close_matches(name, OPTIMIZERS.module_dict, n=2)
        hint = f'did you mean {" or ".join(near)}?' if near else 'it has AdamW, SGD and those of torch.optim'
        raise ValueError(f'optim_wrapper.optimizer.type={name!r} is not in the registry of optimizers: {hint}')
    known = _options_of(kind, optimizer)
    for option in optimizer if known else ():
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f'did you mean {near[0]}?' if near else f'it has {", ".join(sorted(known - {"type"}))}'
            raise ValueError(
                f'optim_wrapper.optimizer.{option}={optimizer[option]!r:.80} is no option of {type_name(kind)}: {hint}'
            )


def _options_of(kind: Any, optimizer: Mapping[str, Any]) -> set[str]:
    """What may stand in the config of an optimizer; nothing where that cannot be told."""
    if not isinstance(kind, type):
        return set()
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    known = {'type', *parameters} - {'self', 'params', 'kwargs'}
    if issubclass(kind, ZeroRedundancyOptimizer):
        # It hands on what it does not know.
        return known | SHARING | _options_of(getattr(torch.optim, optimizer['optimizer_type']), {})
    takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return set() if takes_any else known


def check_effect(
    model: nn.Module,
    optimizer: Optimizer,
    covered: Mapping[str, Tensor],
    levels: Mapping[Tensor, float],
    settings: RollbackSettings,
) -> None:
    """See that the pull will have an effect on everything below the roots, and can have one.

    Args:
        model: The model.
        optimizer: Its optimizer.
        covered: Canonical name to parameter, of everything that has a layer index.
        levels: Parameter to lambda, of what the optimizer trains.
        settings: The settings.

    Raises:
        ValueError: If gradients will be sparse, a parameter has its name outside of the roots, or every level or every
            learning rate is 0.
    """
    where = f'optim_wrapper.rollback.roots={settings.roots!r}'
    _check_sparse(model, covered, where)
    if settings.roots != LOADED:
        _check_shared(model, tuple(settings.roots), where)
    trained = [level for p, level in levels.items() if p.requires_grad]
    if settings.rule != 'projection' and settings.penalty is None and not any(trained):
        raise ValueError(
            f'{where}: all {len(trained)} tensors there that are trained have level 0, for they are in the deepest '
            f'layer, which gets min_level={settings.min_level!r}: count layers from 0 in layer_map, give a higher '
            'min_level, or train more layers'
        )
    rolled = {p for p, level in levels.items() if (level > 0 or settings.is_on) and p.requires_grad}
    groups = [group for group in optimizer.param_groups if any(p in rolled for p in group['params'])]
    rates = [group.get('initial_lr', group.get('lr')) for group in groups]
    if rates and all(not isinstance(rate, Tensor) and rate == 0 for rate in rates):
        raise ValueError(
            f'the learning rate of everything below {where} is 0 (lr=0 or lr_mult=0), and the pull is in proportion to '
            'it: nothing is trained and nothing pulled back there; name other roots, or another lr or lr_mult'
        )


def _check_sparse(model: nn.Module, covered: Mapping[str, Tensor], where: str) -> None:
    for path, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad:
            name = canonical_name(f'{path}.weight')
            if name in covered:
                raise ValueError(
                    f'{name} below {where} has sparse gradients, which rollback does not take: set sparse=False there, '
                    'or name other roots'
                )


def _check_shared(model: nn.Module, roots: tuple[str, ...], where: str) -> None:
    def below(name: str) -> bool:
        return any(not root or name.startswith(f'{root}.') for root in roots)

    first: dict[Tensor, str] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        name = canonical_name(name)
        other = first.setdefault(param, name)
        if below(name) and not below(other) and param.requires_grad:
            raise ValueError(
                f'{name} is shared with {other}, its first name in the model, which is not below {where}: '
                "name that part as a root too, or the whole model: roots=''"
            )


def check_first_step(rollback: Rollback, settings: RollbackSettings, steps_before: int, skipped: bool) -> bool:
    """After a step: see that it pulled weights back.

    Args:
        rollback: The rollback.
        settings: The settings.
        steps_before: ``rollback.num_steps`` before the step.
        skipped: Whether a GradScaler may have skipped the optimizer's step.

    Returns:
        Whether it did, or this rank holds nothing that could be; else a later step has to tell.

    Raises:
        RuntimeError: If the optimizer stepped and nothing was pulled back.
    """
    if rollback.num_steps == steps_before:
        if not skipped:
            raise RuntimeError(
                f'{type(rollback.optimizer).__name__} made a step without calling its step hooks, so no weight was '
                'pulled back: weight rollback cannot work with this optimizer or strategy; use an optimizer whose '
                "step is torch.optim.Optimizer's, or take the rollback out of the config"
            )
        return False
    if not any(p in rollback.levels for group in rollback.optimizer.param_groups for p in group['params']):
        raise trains_other_tensors(rollback.optimizer)
    # A rank may hold nothing of what is pulled back.
    held = any(p.requires_grad and p.numel() for p in rollback.pulled)
    if rollback.num_rolled_back == 0 and held:
        raise RuntimeError(
            f'the first step pulled nothing back: none of the {len(rollback.levels)} tensors below '
            f'optim_wrapper.rollback.roots={settings.roots!r} had a gradient; name roots that the loss reaches'
        )
    return rollback.num_rolled_back > 0 or not held


def trains_other_tensors(optimizer: Optimizer) -> RuntimeError:
    """The error of an optimizer that has been given copies of the weights."""
    return RuntimeError(
        f'{type(optimizer).__name__} has been changed, or put in place of another, since the rollback was built, and '
        'trains other tensors than the parameters of the model, such as copies in another precision: weight rollback '
        'does not support this; use DistributedDataParallel, or FSDP with use_orig_params=True, and AmpOptimWrapper'
    )
