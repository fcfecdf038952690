"""Engines that rollback does not support are refused when the wrapper is built, with what to use instead."""

import mmengine._strategy  # noqa: F401 - registers the wrappers of DeepSpeed and ColossalAI
import pytest
import torch.distributed as dist
from mmengine.optim import build_optim_wrapper

from olor_mm.engine import FSDPStrategy

from ._ranks import on_ranks
from ._toy import ToyModel

CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'


@pytest.mark.parametrize(
    ('kind', 'name'), [('DeepSpeedOptimWrapper', 'DeepSpeed'), ('ColossalAIOptimWrapper', 'ColossalAI')]
)
def test_deepspeed_and_colossalai(kind, name):
    config = {'type': kind, 'constructor': CONSTRUCTOR, 'optimizer': {'type': 'SGD', 'lr': 0.1}}
    with pytest.raises(ValueError, match=rf'does not support {name}, .*DistributedDataParallel.*olor_mm.FSDPStrategy'):
        build_optim_wrapper(ToyModel(), {**config, 'rollback': {'max_level': 0.1}})


def zero(rank, rollback):
    dist.init_process_group('gloo')
    optimizer = {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'AdamW', 'lr': 0.1}
    config = {'constructor': CONSTRUCTOR, 'optimizer': optimizer, 'rollback': rollback}
    try:
        build_optim_wrapper(ToyModel(), config)
    except ValueError as error:
        return str(error)
    return ''


@pytest.mark.parametrize('roots', [('backbone',), 'loaded'])
def test_zero(roots):
    (text,) = on_ranks(1, zero, {'max_level': 0.1, 'roots': roots})
    assert 'MMEngine saves on one of them' in text
    assert 'olor_mm.FSDPStrategy' in text


def test_zero_without_the_optimizer_that_it_wraps():
    config = {'constructor': CONSTRUCTOR, 'optimizer': {'type': 'ZeroRedundancyOptimizer', 'lr': 0.1}}
    with pytest.raises(ValueError, match='type=ZeroRedundancyOptimizer is not supported'):
        build_optim_wrapper(ToyModel(), {**config, 'rollback': {'max_level': 0.1}})


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


def test_zero_at_level_0():
    assert on_ranks(1, zero, {'max_level': 0.0}) == ['']
