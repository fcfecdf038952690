"""--resume with a file that is no checkpoint of a run."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from olor_mm.tooling.errors import InputError
from olor_mm.tooling.run_checkpoint import check_run_checkpoint

OPTIMIZER = {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}
WHOLE = {
    'meta': {'epoch': 1, 'iter': 6},
    'message_hub': {},
    'state_dict': {'w': torch.ones(2)},
    'optimizer': OPTIMIZER,
}


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in WHOLE.items() if k != key}


def with_rate(rate: object) -> dict[str, Any]:
    checkpoint = copy.deepcopy(WHOLE)
    checkpoint['optimizer']['param_groups'][0]['lr'] = rate
    return checkpoint


def with_record(record: object) -> dict[str, Any]:
    return {**WHOLE, 'optimizer': {**OPTIMIZER, 'rollback': record}}


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (without('meta'), "no 'meta'"),
        (without('message_hub'), "no 'message_hub'"),
        (without('state_dict'), "no 'state_dict'"),
        (torch.ones(2), 'it holds a Tensor'),
        ({**WHOLE, 'meta': {'epoch': 'two', 'iter': 1}}, "meta.epoch is 'two'"),
        ({**WHOLE, 'meta': {'epoch': 1, 'iter': -1}}, 'meta.iter is -1'),
        ({**WHOLE, 'optimizer': 3}, "'optimizer' is a int"),
        ({**WHOLE, 'optimizer': {'param_groups': None}}, 'no list of parameter groups'),
        (with_rate('fast'), "a learning rate in it is 'fast'"),
        (with_record({'names': 3}), "'optimizer.rollback' is {'names': 3}, not the record"),
        (with_record({'names': ['a'], 'levels': ['high']}), 'not the record'),
        (with_record(['backbone']), 'not the record'),
        ({**WHOLE, 'optimizer': {'head': with_rate('fast')['optimizer']}}, 'a learning rate'),
    ],
)
def test_what_is_no_checkpoint_of_a_run(content: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / 'a file.pth'
    torch.save(content, file)
    with pytest.raises(InputError, match='is not the checkpoint of a run') as caught:
        check_run_checkpoint(str(file))
    assert says in str(caught.value)
    assert f'load_from={file}' in str(caught.value)


@pytest.mark.parametrize(
    'content',
    [
        WHOLE,
        without('optimizer'),
        with_rate(torch.tensor(0.1)),
        {**WHOLE, 'optimizer': {'a': OPTIMIZER}},
        with_record({'names': ['a']}),
        with_record({'names': ['a'], 'levels': [0.1], 'settings': {'power': 2}, 'world_size': 1}),
    ],
)
def test_what_is_one(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'epoch_1.pth')
    check_run_checkpoint(str(tmp_path / 'epoch_1.pth'))
    check_run_checkpoint(str(tmp_path))
