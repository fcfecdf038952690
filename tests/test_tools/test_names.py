"""A misspelt name of olor_mm's is found before anything is built, with the one that was meant."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config

from olor_mm.tooling.errors import InputError
from olor_mm.tooling.names import check_names

OURS = 'olor_mm.OLOROptimWrapperConstructor'


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (
            {'optim_wrapper': {'constructor': OURS, 'rolback': {'max_level': 0.1}}},
            r"optim_wrapper\.rolback=\{'max_level': 0\.1\} is no option .*\n  did you mean optim_wrapper\.rollback\?",
        ),
        (
            {'optim_wrapper': {'optimizer': {'type': 'SGD'}, 'constuctor': OURS}},
            r'optim_wrapper\.constuctor=.*\n  did you mean optim_wrapper\.constructor\?',
        ),
        (
            {'optim_wrapper': {'constructor': OURS, 'head': {'optimizer': {'type': 'SGD'}, 'rollbak': {}}}},
            r'did you mean optim_wrapper\.head\.rollback\?',
        ),
        (
            {'optim_wrapper': {'constructor': 'olor_mm.OLOROptimWraperConstructor'}},
            rf'does not exist\n  set optim_wrapper\.constructor={OURS}',
        ),
        (
            {'default_hooks': {'checkpoint': {'type': 'olor_mm.DurableCheckpontHook'}}},
            r'default_hooks\.checkpoint\.type=.* does not exist\n  set .*=olor_mm\.DurableCheckpointHook',
        ),
        (
            {'custom_hooks': [{'type': 'EMAHook'}, {'type': 'olor_mm.ResumableRandomnesHook'}]},
            r'custom_hooks\.1\.type=.*\n  set .*=olor_mm\.ResumableRandomnessHook',
        ),
        ({'model': {'type': 'olor_mm.Tunde'}}, r'model\.type=.*\n  set model\.type=olor_mm\.Tuned$'),
        (
            {'model': {'method': {'type': 'olor_mm.TopKK'}}},
            r'method\.type=.*\n  set model\.method\.type=olor_mm\.TopK$',
        ),
        ({'strategy': {'type': 'olor_mm.FSDPStrategyy'}}, r'strategy\.type=.*\n  set .*=olor_mm\.FSDPStrategy$'),
        ({'runner_type': 'FlexibleRunnr'}, r"runner_type='FlexibleRunnr' does not exist\n  set .*=FlexibleRunner$"),
    ],
)
def test_misspelt(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_names(Config(given))


@pytest.mark.slow  # imports mmpretrain
@pytest.mark.parametrize(
    ('name', 'said'),
    [('olor_mm.PACSS', r'set train_dataloader\.dataset\.type=olor_mm\.PACS$'), ('olor_mm.Zzz', 'does not exist$')],
)
def test_misspelt_data_set(name: str, said: str) -> None:
    pytest.importorskip('mmpretrain')
    # The method Subset has a name like that of the second.
    check_names({'train_dataloader': {'dataset': {'type': 'olor_mm.ClassSubset', 'dataset': {'type': 'olor_mm.PACS'}}}})
    with pytest.raises(InputError, match=said):
        check_names({'train_dataloader': {'dataset': {'type': name}}})


def test_what_exists_is_let_by() -> None:
    check_names(
        Config(
            {
                'runner_type': 'FlexibleRunner',
                'strategy': {'type': 'olor_mm.FSDPStrategy'},
                'default_hooks': {'checkpoint': {'type': 'olor_mm.DurableCheckpointHook'}},
                'custom_hooks': [{'type': 'olor_mm.ResumableRandomnessHook'}, {'type': 'olor_mm.engine.FSDPStrategy'}],
                'optim_wrapper': {'type': 'olor_mm.AmpOLOROptimWrapper', 'constructor': OURS, 'rollback': {}},
                'model': {'type': 'Anything', 'dictionary': {'type': 'mmdet.Whatever'}},
                'models': [{'type': 'olor_mm.Tuned', 'method': {'type': 'olor_mm.Linear'}}],
            }
        )
    )
    check_names(Config({'optim_wrapper': None}))
