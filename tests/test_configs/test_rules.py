"""The configs of the rollback's relatives: plain fine-tuning and one dict, which is what is built."""

import copy
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

import olor_mm
from olor_mm.rollback import L2SP

#: Config -> the one that it is a variant of, and its dict.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    'classification/l2-sp_vit-base-p16_8xb16_pacs': (
        'classification/full_vit-base-p16_8xb16_pacs',
        {'l2_sp': {'alpha': 0.01, 'beta': 0.01}},
    ),
    'classification/spd_vit-base-p16_8xb16_pacs': (
        'classification/full_vit-base-p16_8xb16_pacs',
        {'rule': 'spd', 'max_level': 1.0, 'min_level': 1.0},
    ),
    'classification/projection_vit-base-p16_8xb16_pacs': (
        'classification/full_vit-base-p16_8xb16_pacs',
        {'rule': 'projection', 'radius': 1.0},
    ),
    'l2-sp_upernet_vit': ('baseline_upernet_vit', {'l2_sp': {'alpha': 0.01, 'beta': 0.01}}),
}


class Model(nn.Module):
    """A backbone of two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.patch_embed = nn.Linear(3, 4)
        self.backbone.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize('name', CONFIGS)
def test_it_is_plain_fine_tuning_and_one_dict(name: str) -> None:
    other, rollback = CONFIGS[name]
    config, base = (Config.fromfile(olor_mm.cfg(f'{file}.py')).to_dict() for file in (name, other))
    wrapper = copy.deepcopy(config['optim_wrapper'])
    assert wrapper.pop('rollback') == rollback
    assert wrapper.pop('constructor') == 'olor_mm.OLOROptimWrapperConstructor'
    assert {**config, 'optim_wrapper': wrapper} == base

    built = build_optim_wrapper(Model(), config['optim_wrapper']).rollback_session.rollback
    assert built is not None
    assert built.rule == rollback.get('rule', 'olor')
    assert len(built.levels) == 6
    assert len(built.pulled) == (0 if 'l2_sp' in rollback else 6)
    assert set(built.levels.values()) == {0.0 if 'l2_sp' in rollback else 1.0}
    assert (built._penalty is not None) == ('l2_sp' in rollback)
    if built._penalty is not None:
        assert built._penalty.options == L2SP(0.01, 0.01, by_hand=True)
    assert all(isinstance(p, torch.Tensor) for p in built.levels)
