"""Wrong options of the checkpoint hook are refused when it is built."""

import re

import pytest

from olor_mm.engine import DurableCheckpointHook
from olor_mm.engine.hook_options import check_metrics


@pytest.mark.parametrize(
    ('option', 'value', 'says'),
    [
        ('chek_finite', False, 'did you mean check_finite'),
        ('intervall', 1, 'did you mean interval'),
        ('zzz', 1, 'there are .*save_best'),
        ('check_finite', 'maybe', 'True or False'),
        ('save_last', 'no', 'True or False'),
        ('max_invalid_losses', 'ten', '0 or more'),
        ('max_invalid_losses', -1, '0 or more: 0 stops at the first one'),
        ('max_keep_ckpts', 'two', 'or -1 for all'),
        ('save_begin', -1, '0 or more'),
        ('interval', 'abc', '1 or more, or -1 for never'),
        ('interval', 0, '1 or more, or -1 for never'),
        ('interval', 1.5, '1 or more, or -1 for never'),
        ('interval', True, '1 or more, or -1 for never'),
        ('save_best', 3, 'a metric, or a list'),
    ],
)
def test_a_wrong_option_names_itself(option, value, says):
    with pytest.raises(ValueError, match=rf'default_hooks\.checkpoint\.{option}={re.escape(repr(value))} .*{says}'):
        DurableCheckpointHook(**{option: value})


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        ({'save_best': ['acc', 'auto']}, 'Only support one "auto"'),
        ({'save_best': 'acc', 'rule': 'bigger'}, 'rule must be greater, less or None, but got bigger'),
        ({'published_keys': 3}, 'should be a str'),
        ({'save_best': 'strange'}, 'a specific rule must be'),
    ],
)
def test_what_mmengine_refuses_names_the_option(options, says):
    with pytest.raises(ValueError, match=f'default_hooks.checkpoint cannot be built from .*{says}'):
        DurableCheckpointHook(**options)


def test_a_wrong_option_by_position():
    with pytest.raises(ValueError, match=r'checkpoint\.interval=0 must'):
        DurableCheckpointHook(0)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'interval': 1, 'max_keep_ckpts': 2, 'save_best': 'auto', 'rule': 'greater'},
        {'interval': 8e3, 'by_epoch': False},
        {'interval': -1, 'max_keep_ckpts': -1, 'save_begin': 0, 'check_finite': False, 'max_invalid_losses': 0},
        {'save_best': ['acc', 'mIoU'], 'published_keys': ['meta'], 'filename_tmpl': 'a_{}.pth', 'backend_args': None},
    ],
)
def test_right_ones_are_taken(options):
    DurableCheckpointHook(**options)


def test_a_metric_that_validation_does_not_give():
    metrics = {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.2}
    check_metrics(['auto', 'coco/bbox_mAP'], metrics)
    with pytest.raises(ValueError, match=r"save_best='coco/bbox_mAPP'.*did you mean coco/bbox_mAP\?.*bbox_mAP_50"):
        check_metrics(['coco/bbox_mAPP'], metrics)
    hook = DurableCheckpointHook(save_best='coco/bbox_mAPP')
    # As before_train does; without training nothing is saved.
    hook.file_backend = None
    with pytest.raises(ValueError, match='did you mean'):
        hook._save_best_checkpoint(None, metrics)
