"""Engines that rollback does not support are refused when the wrapper is built, with what to use instead."""

import mmengine._strategy  # noqa: F401 - registers the wrappers of DeepSpeed and ColossalAI
import pytest
from mmengine.optim import build_optim_wrapper

from olor_mm.engine import FSDPStrategy

from ._toy import ToyModel

CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'


@pytest.mark.parametrize(
    ('kind', 'name'), [('DeepSpeedOptimWrapper', 'DeepSpeed'), ('ColossalAIOptimWrapper', 'ColossalAI')]
)
def test_deepspeed_and_colossalai(kind, name):
    config = {'type': kind, 'constructor': CONSTRUCTOR, 'optimizer': {'type': 'SGD', 'lr': 0.1}}
    with pytest.raises(ValueError, match=rf'does not support {name}, .*DistributedDataParallel.*olor_mm.FSDPStrategy'):
        build_optim_wrapper(ToyModel(), {**config, 'rollback': {'max_level': 0.1}})


@pytest.mark.parametrize('roots', [('backbone',), 'loaded'])
def test_zero_without_the_optimizer_that_it_wraps(roots):
    config = {'constructor': CONSTRUCTOR, 'optimizer': {'type': 'ZeroRedundancyOptimizer', 'lr': 0.1}}
    with pytest.raises(ValueError, match=r"optimizer_type=None must be the name .* such as 'AdamW'"):
        build_optim_wrapper(ToyModel(), {**config, 'rollback': {'max_level': 0.1, 'roots': roots}})


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'state_dict_cfg': 'ful'}, r"strategy\.state_dict_cfg='ful' must be one of 'full', 'local', 'sharded'"),
        ({'state_dict_cfg': 3}, r'strategy\.state_dict_cfg=3 must be one of'),
        ({'state_dict_cfg': {'state_dict_typ': 'FULL_STATE_DICT'}}, r'state_dict_typ=.*did you mean state_dict_type\?'),
        ({'state_dict_cf': 'full'}, r"strategy\.state_dict_cf='full' is no option: did you mean state_dict_cfg\?"),
    ],
)
def test_options_of_the_strategy(options, said):
    with pytest.raises(ValueError, match=said):
        FSDPStrategy(**options)
