"""Stamps, what is read from the runs, and the report, without training anything."""

import importlib
import json
from pathlib import Path

import pytest
import torch

ROWS = {
    'pretrained': dict(mask_A=0.6, box_A=0.58, mask_B=0.1, box_B=0.1, seconds=0.3),
    'plain': dict(mask_A=0.1, box_A=0.12, mask_B=0.5, box_B=0.49, seconds=0.3, distance=0.1),
    'olor': dict(mask_A=0.2, box_A=0.22, mask_B=0.45, box_B=0.44, seconds=0.31, distance=0.05),
}


def stage(folder: Path, **inputs):
    return importlib.import_module('stages').Stage(folder, **inputs)


def test_a_stage_is_reused_only_for_the_same_inputs(tmp_path: Path) -> None:
    first = stage(tmp_path / 's', lr=1)
    assert not first.done
    first.begin()
    assert not first.done
    first.finish({'ap': 0.5})
    assert stage(tmp_path / 's', lr=1).done
    assert stage(tmp_path / 's', lr=1).result == {'ap': 0.5}
    assert not stage(tmp_path / 's', lr=2).done


@pytest.mark.parametrize(('lr', 'kept'), [(1, True), (2, False)])
def test_what_was_begun_is_kept_for_the_same_inputs_alone(tmp_path: Path, lr: int, kept: bool) -> None:
    stage(tmp_path / 's', lr=1).begin()
    checkpoint = tmp_path / 's' / 'iter_10.pth'
    checkpoint.touch()
    stage(tmp_path / 's', lr=lr).begin()
    assert checkpoint.exists() is kept


def scalars(folder: Path, *rows: object) -> None:
    file = folder / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def ap(step: int, value: float) -> dict[str, float]:
    names = ('A/coco/bbox_mAP', 'A/coco/segm_mAP', 'B/coco/bbox_mAP', 'B/coco/segm_mAP')
    return {'step': step, **dict.fromkeys(names, value)}


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    scalars(tmp_path / '20260101_000000', ap(5, 0.1), ap(10, 0.2), '{"step": 1')
    scalars(tmp_path / '20260101_000100', ap(10, 0.3), ap(15, 0.4))
    points = importlib.import_module('results').curve(tmp_path)
    assert [(point['iteration'], point['mask_B']) for point in points] == [(5, 0.1), (10, 0.3), (15, 0.4)]


def test_seconds_leave_out_the_warm_up(tmp_path: Path) -> None:
    scalars(tmp_path / 'run', *[{'loss': 1.0, 'time': time, 'step': 1} for time in (9.0, 0.3, 0.2, 0.4)], ap(1, 0.1))
    assert importlib.import_module('results').seconds_per_iteration(tmp_path) == pytest.approx(0.3)


def test_discrepancy_is_relative_and_of_what_is_asked(tmp_path: Path) -> None:
    theta_0 = {'backbone.w': torch.tensor([3.0, 4.0]), 'neck.w': torch.tensor([12.0])}
    theta = {'backbone.w': torch.tensor([3.0, 5.0]), 'neck.w': torch.tensor([12.0])}
    for name, state in (('0', theta_0), ('1', theta)):
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
    found = importlib.import_module('results').discrepancy(tmp_path / '1.pth', tmp_path / '0.pth')
    assert found == pytest.approx({'detector': 1 / 13, 'backbone': 1 / 5})


@pytest.mark.parametrize(
    ('mask_a', 'said'),
    [(0.2, 'OLOR forgot less (+0.100)'), (0.05, 'OLOR forgot more (-0.050)'), (0.1, 'no difference')],
)
def test_the_verdict_says_what_came_out(mask_a: float, said: str) -> None:
    verdict = importlib.import_module('report').verdict({**ROWS, 'olor': {**ROWS['olor'], 'mask_A': mask_a}})
    assert said in verdict
    assert 'OLOR learned less (-0.050)' in verdict


def test_the_table_is_markdown_with_lines_of_one_width() -> None:
    lines = importlib.import_module('report').markdown_table(ROWS).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert {line.count('|') for line in lines} == {8}
    assert '0.600' in lines[2]
    assert ' - ' in lines[2]
