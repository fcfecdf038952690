"""What a change of the trained parameters asks of a run: another optimizer, another DistributedDataParallel."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ['build_optimizer_again', 'check_wrapper', 'not_optimized', 'unwrapped', 'wrap_again']


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself."""
    inner: Any = model
    while is_model_wrapper(inner):
        inner = inner.module
    return inner  # type: ignore[no-any-return]


def check_wrapper(model: nn.Module, who: str) -> None:
    """See that what is around a model can do with parameters that are trained later.

    Args:
        model: The model, wrapped or not.
        who: Who asks, for the message.

    Raises:
        ValueError: If it cannot.
    """
    kind = type(model).__name__
    sharded = any(hasattr(p, 'device_mesh') for p in model.parameters())
    known = not is_model_wrapper(model) or isinstance(model, DistributedDataParallel)
    if sharded or not known or kind == 'MMSeparateDistributedDataParallel':
        raise ValueError(
            f'{who}: the model is in {"shards (DTensors)" if sharded else kind}, which is made for the parameters that '
            'are trained at the start: use DistributedDataParallel (what Runner does), or make two runs, the second '
            'with more trained parameters and the first one as load_from'
        )


# ---------------------------------------------------------------- the optimizer


def _wrappers(optim_wrapper: Any) -> Iterator[OptimWrapper]:
    yield from optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def not_optimized(optim_wrapper: Any, params: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that no optimizer has."""
    groups = [group for wrapper in _wrappers(optim_wrapper) for group in wrapper.optimizer.param_groups]
    owned = {p for group in groups for p in group['params']}
    return [name for name, p in params.items() if p not in owned]


def build_optimizer_again(runner: Runner, params: Mapping[str, nn.Parameter], who: str) -> None:
    """Build a run's optimizer wrapper and schedulers from its config once more, as if parameters were trained.

    Args:
        runner: The runner, which has loaded no checkpoint yet.
        params: What its optimizer has to have, by name.
        who: Who asks, for the message.

    Raises:
        ValueError: If the optimizer was not built from a config, or does not have the parameters after all.
    """
    from olor_mm.models.unfreezing import held_open

    cfg = runner.cfg.get('optim_wrapper')
    lacking = not_optimized(runner.optim_wrapper, params)
    if hasattr(runner, 'strategy') or not cfg:
        raise ValueError(
            f'{who}: the optimizer has been built without {len(lacking)} parameters that are frozen now, such as '
            f'{lacking[0]}, and cannot be built again here. Give it all parameters; a config does so with '
            "optim_wrapper.constructor='olor_mm.OLOROptimWrapperConstructor' and optim_wrapper.rollback="
            'dict(max_level=0, inner=dict(type=...)), inner being the constructor that it has now'
        )
    print_log(
        f'{who}: {len(lacking)} parameters that will be unfrozen were left out of the optimizer: it is built again',
        logger='current',
    )
    for wrapper in _wrappers(runner.optim_wrapper):
        if hasattr(wrapper, 'rollback_session'):
            wrapper.rollback_session.ledger.close()
    with held_open(params.values()):
        runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(cfg))
    schedulers = runner.param_schedulers = copy.deepcopy(runner.cfg.get('param_scheduler'))
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(schedulers)
    lacking = not_optimized(runner.optim_wrapper, params)
    if lacking:
        raise ValueError(
            f'{who}: {len(lacking)} parameters, such as {lacking[0]}, are given to no optimizer by '
            'optim_wrapper.constructor: leave them out of train, or name another constructor'
        )


# ---------------------------------------------------------------- DistributedDataParallel


def wrap_again(runner: Runner) -> None:
    """Wrap a run's model anew, and compile it anew where it is compiled. Every rank must call it.

    DistributedDataParallel reduces the gradients of the parameters that were trained when it was built, and of no
    others.
    """
    old, strategy = runner.model, getattr(runner, 'strategy', None)
    if isinstance(old, DistributedDataParallel):
        if strategy is not None:
            new = strategy.model = strategy._wrap_model(old.module)
        else:
            new = runner.wrap_model(copy.deepcopy(runner.cfg.get('model_wrapper_cfg')), old.module)
        for hook, state in getattr(old, '_comm_hooks', ()):
            new.register_comm_hook(state, hook)
        for wrapper in _wrappers(runner.optim_wrapper):
            if hasattr(wrapper, 'rollback_session'):
                # It would keep the old one alive, with a copy of all gradients.
                wrapper.rollback_session.follow_model(new)
        runner.model = new
        new.train()
    _compile_again(runner, strategy, old is not runner.model)


def _compile_again(runner: Runner, strategy: Any, wrapped: bool) -> None:
    options = runner._compile if strategy is not None else runner.cfg.get('compile')
    if not options:
        return
    # What was compiled may take the parameters for constants.
    torch.compiler.reset()
    if wrapped and strategy is not None:
        strategy.compile_model(runner.model, compile={'target': 'train_step', **({} if options is True else options)})
    elif wrapped:
        runner._maybe_compile('train_step')
