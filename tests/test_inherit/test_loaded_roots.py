"""``roots='loaded'`` on a detector that is fine-tuned to other classes: what its checkpoint gave is pulled back."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from olor_mm.engine.report import format_left_alone
from tests._data import CLASSES, make_coco

from ._docs import block
from ._small import detection
from ._steps import Step, check_step, load, one_step

#: What depends on the number of classes: both detectors have them, in different shapes.
REPLACED = {
    f'roi_head.{layer}.{part}'
    for layer in ('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits')
    for part in ('weight', 'bias')
}
#: What the checkpoint lacks.
ABSENT = 'neck.fpn_convs.0.conv.bias'


def pretrain(cfg: Config, file: Path) -> dict[str, torch.Tensor]:
    """Saves the detector of ``cfg`` with COCO's 80 classes as a run of MMEngine's would; returns its weights."""
    from mmdet.registry import MODELS

    model = copy.deepcopy(cfg.model)
    model.backbone.init_cfg = None
    model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = 80
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(1)
        detector = MODELS.build(model)
        detector.init_weights()
    state = detector.state_dict()
    torch.save({'state_dict': {k: v for k, v in state.items() if k != ABSENT}, 'meta': {}}, file)
    return state


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Step, dict[str, torch.Tensor], str]:
    """The documented config after one step, the weights of its checkpoint, and what the log said."""
    tmp_path = tmp_path_factory.mktemp('loaded')
    (tmp_path / 'user.py').write_text(block('fine-tuned-detector'))
    data = make_coco(tmp_path / 'coco', train=2, val=1)
    cfg = load(tmp_path / 'user.py', {**detection(data), 'load_from': str(tmp_path / 'coco_detector.pth')})
    state = pretrain(cfg, tmp_path / 'coco_detector.pth')
    step = one_step(cfg, tmp_path / 'work')
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    return cfg, step, state, log


def test_the_replaced_layers_are_new_and_all_else_is_anchored(run) -> None:
    cfg, step, state, _ = run
    assert cfg.model.roi_head.bbox_head.num_classes == len(CLASSES)
    anchored = step.anchored
    assert {name.split('.')[0] for name in anchored} == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    levels = check_step(step, cfg.optim_wrapper.rollback.max_level, cfg.optim_wrapper.rollback.power)
    assert all(torch.equal(theta_0, state[name]) for name, theta_0 in anchored.items())
    # The deepest layer has level 0: what of it is left alone is left alone for that reason, not for its shape.
    layers = step.runner.optim_wrapper.rollback_session.layers
    assert set(step.names) - layers.index.keys() == {*REPLACED, ABSENT}
    assert {name for name, i in layers.index.items() if i < layers.num_layers} == levels.keys()


def test_the_report_names_what_was_left_out_and_says_why(run) -> None:
    _, step, state, log = run
    said = re.search(r'theta_0: (\d+) tensors have another shape in the checkpoint and are left alone: (.+)', log)
    assert said
    assert int(said[1]) == len(REPLACED)
    for name in REPLACED:
        theirs, ours = tuple(state[name].shape), tuple(step.names[name].shape)
        assert f'{name} {theirs} -> {ours}' in said[2]
    assert f'theta_0: 1 tensors are in no checkpoint and are left alone: {ABSENT}\n' in log


def test_a_long_list_is_cut() -> None:
    names = {f'layer{number}': torch.zeros(1) for number in range(5)}
    shapes = dict.fromkeys(list(names.values())[:3], (2,))
    assert format_left_alone(names, shapes, most=2) == [
        'theta_0: 3 tensors have another shape in the checkpoint and are left alone: '
        'layer0 (2,) -> (1,), layer1 (2,) -> (1,) and 1 more',
        'theta_0: 2 tensors are in no checkpoint and are left alone: layer3, layer4',
    ]
    assert format_left_alone({}, {}) == []
