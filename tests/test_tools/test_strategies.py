"""What cannot work of a strategy is refused before a model is built, with the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config

from olor_mm.tooling.errors import InputError
from olor_mm.tooling.launch import _check_rollback
from olor_mm.tooling.strategies import check_strategy

OURS = 'olor_mm.OLOROptimWrapperConstructor'
WRAPPER = {'constructor': OURS, 'rollback': {'max_level': 0.1}, 'optimizer': {'type': 'SGD', 'lr': 0.1}}


def _config(strategy: Any = None, **changes: Any) -> Config:
    given = {'runner_type': 'FlexibleRunner', 'launcher': 'pytorch', 'optim_wrapper': WRAPPER, **changes}
    return Config({'strategy': strategy or {'type': 'olor_mm.FSDPStrategy'}, **given})


@pytest.mark.parametrize(
    ('config', 'said'),
    [
        (_config(runner_type=None), r'Runner does not read it: .*\n  set runner_type=FlexibleRunner'),
        (_config(runner_type='mmengine.Runner'), r'Runner does not read it'),
        (_config(launcher='none'), r'was started alone\n  start it with tools/dist_train\.sh'),
        (_config({'type': 'FSDPStrateg'}), r"'FSDPStrateg' does not exist\n  set strategy\.type="),
        (_config({'state_dict_cfg': 'full'}), r'strategy\.type is not set'),
        (_config({'type': 'FSDPStrategy'}), r'type=FSDPStrategy: .*not support it.*\n  set .*=olor_mm\.FSDPStrategy'),
        (_config({'type': 'DeepSpeedStrategy'}, launcher='none'), r'=DeepSpeedStrategy: weight rollback does not'),
        (_config({'type': 'mmengine.ColossalAIStrategy'}), r'=ColossalAIStrategy: weight rollback does not support'),
        (_config({'type': 'DeepSpeedStrategy'}, optim_wrapper={'head': WRAPPER}), r'does not support it'),
        (_config({'type': 'olor_mm.FSDPStrategy', 'state_dict_cfg': 'ful'}), r"='ful' must be one of 'full'"),
        (_config({'type': 'olor_mm.FSDPStrategy', 'state_dict_cf': 'full'}), r'did you mean state_dict_cfg\?'),
    ],
)
def test_refused(config: Config, said: str) -> None:
    with pytest.raises((InputError, ValueError), match=said):
        check_strategy(config)


@pytest.mark.parametrize(
    'config',
    [
        Config({}),
        _config({'type': 'DDPStrategy'}),
        _config({'type': 'SingleDeviceStrategy'}, launcher='none'),
        _config({'type': 'FSDPStrategy'}, optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}}),
        _config({'type': 'DeepSpeedStrategy'}, optim_wrapper=None),
        _config({'type': 'olor_mm.FSDPStrategy', 'state_dict_cfg': {'state_dict_type': 'FULL_STATE_DICT'}}),
        _config({'type': 'olor_mm.FSDPStrategy', 'model_wrapper': {}, 'skip_init_weights': True, 'work_dir': 'x'}),
    ],
)
def test_let_by(config: Config) -> None:
    check_strategy(config)


def test_zero_needs_the_hook_that_gathers_its_state() -> None:
    wrapper = {**WRAPPER, 'optimizer': {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'SGD', 'lr': 0.1}}
    with pytest.raises(ValueError, match=r"set default_hooks\.checkpoint\.type='olor_mm\.DurableCheckpointHook'"):
        _check_rollback(Config({'optim_wrapper': wrapper}))
    hooks = {'checkpoint': {'type': 'olor_mm.DurableCheckpointHook'}}
    assert _check_rollback(Config({'optim_wrapper': wrapper, 'default_hooks': hooks})) is None
