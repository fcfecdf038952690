"""How the config wants the model distributed: what cannot work is refused before a model is built."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS, STRATEGIES
from mmengine.runner import Runner

from ..engine import FSDPStrategy
from ..engine.checks import find
from ..engine.strategy_options import check_strategy_options
from ..registry import type_name
from .errors import InputError

__all__ = ['check_strategy']

_OURS = 'olor_mm.FSDPStrategy'
_CONSTRUCTOR = 'OLOROptimWrapperConstructor'
#: Of MMEngine, and what the optimizer wrapper with rollback would say of them once the model is built.
_REFUSED = {
    'FSDPStrategy': 'it wraps the model before the rollback sees its weights',
    'DeepSpeedStrategy': 'DeepSpeed trains copies of the weights, which would overwrite what is pulled back',
    'ColossalAIStrategy': 'ColossalAI trains copies of the weights, which would overwrite what is pulled back',
}


def check_strategy(cfg: Config | Mapping[str, Any]) -> None:
    """See that the strategy of a config is one, that something reads it, and that rollback works with it.

    Args:
        cfg: The config of a run, ``launcher`` included.

    Raises:
        InputError: If it cannot work so.
        ValueError: If an option of ``olor_mm.FSDPStrategy`` does not exist or cannot have its value.
    """
    strategy = cfg.get('strategy')
    if strategy is None:
        return
    kind = strategy.get('type') if isinstance(strategy, Mapping) else type(strategy)
    if kind is None:
        raise InputError('strategy.type is not set', f'set it, such as strategy.type={_OURS}')
    runner = cfg.get('runner_type') or Runner
    runner = find(RUNNERS, runner) if isinstance(runner, str) else runner
    if isinstance(runner, type) and issubclass(runner, Runner):
        raise InputError(
            f'strategy.type={type_name(kind)} is set, but Runner does not read it: the model would not be sharded',
            'set runner_type=FlexibleRunner, or leave strategy away',
        )
    found = find(STRATEGIES, kind) if isinstance(kind, str) else kind
    if found is None:
        near = difflib.get_close_matches(kind, [_OURS, *STRATEGIES.module_dict], n=1) or [_OURS]
        raise InputError(f'strategy.type={kind!r} does not exist', f'set strategy.type={near[0]}')
    _check_support(found, cfg.get('optim_wrapper'))
    if isinstance(found, type) and issubclass(found, FSDPStrategy):
        if isinstance(strategy, Mapping):
            check_strategy_options(found, strategy)
        if cfg.get('launcher', 'none') == 'none':
            raise InputError(
                f'strategy.type={type_name(kind)} shards the model over processes, and this one was started alone',
                'start it with tools/dist_train.sh, tools/dist_test.sh or tools/slurm_train.sh (1 process will do)',
            )


def _check_support(found: Any, wrapper: Any) -> None:
    name = type_name(found)
    if name in _REFUSED and str(getattr(found, '__module__', '')).startswith('mmengine.') and _has_rollback(wrapper):
        raise InputError(
            f'strategy.type={name}: weight rollback does not support it: {_REFUSED[name]}',
            f'set strategy.type={_OURS}, or leave runner_type and strategy away',
        )


def _has_rollback(wrapper: Any) -> bool:
    if not isinstance(wrapper, Mapping):
        return False
    # Of an OptimWrapperDict each entry has a constructor of its own.
    return type_name(wrapper.get('constructor')) == _CONSTRUCTOR or any(map(_has_rollback, wrapper.values()))
