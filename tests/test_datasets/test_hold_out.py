"""A share of each class that is held out: the two parts are the whole, and no image is in both."""

import pytest
from mmengine.dataset import ConcatDataset
from mmengine.registry import DATASETS

from olor_mm.datasets import ClassSubset, HoldOut
from tests.test_datasets.test_class_subset import WRAPPERS, Numbers, wrapped


def numbers(dataset):
    return [dataset[i]['number'] for i in range(len(dataset))]


def both(dataset, **options):
    return [HoldOut(dataset, held_out=flag, **options) for flag in (False, True)]


@pytest.mark.parametrize(('share', 'count'), [(0.01, 1), (1 / 3, 1), (0.6, 2), (0.99, 2)])
def test_parts(share, count):
    kept, away = both(Numbers(), share=share)
    assert sorted(numbers(kept) + numbers(away)) == list(range(12))
    # 3 images of each of 4 classes.
    assert [away.get_gt_labels().tolist().count(label) for label in range(4)] == [count] * 4
    assert numbers(kept) == sorted(numbers(kept))
    assert 'held out (share' in repr(away)


def test_the_draw_is_of_the_seed():
    drawn = {tuple(numbers(HoldOut(Numbers(), held_out=True, share=1 / 3, seed=seed))) for seed in range(8)}
    assert len(drawn) > 4
    assert numbers(HoldOut(Numbers(), held_out=True, seed=3)) == numbers(HoldOut(Numbers(), held_out=True, seed=3))


def test_a_class_is_drawn_from_as_if_it_were_alone():
    whole = HoldOut(Numbers(), held_out=True, seed=1)
    alone = HoldOut(ClassSubset(Numbers(), [2]), held_out=True, seed=1)
    assert numbers(alone) == [number for number in numbers(whole) if number % 4 == 2]


@pytest.mark.parametrize('kinds', WRAPPERS)
def test_no_copy_of_what_is_held_out_is_trained_on(kinds):
    kept, away = both(wrapped(*kinds), share=1 / 3, seed=2)
    assert not set(numbers(kept)) & set(numbers(away))
    # The same images as without the wrapper.
    assert set(numbers(away)) == set(numbers(HoldOut(Numbers(), held_out=True, share=1 / 3, seed=2)))
    assert len(kept) + len(away) == len(DATASETS.build(wrapped(*kinds)))


def test_two_data_sets_are_two():
    kept, away = both(ConcatDataset([Numbers(), Numbers()]), share=0.5)
    assert sorted(numbers(kept) + numbers(away)) == sorted([*range(12)] * 2)
    assert [away.get_gt_labels().tolist().count(label) for label in range(4)] == [3] * 4


def test_in_a_config():
    inner = {'type': 'olor_mm.HoldOut', 'dataset': {'type': 'Numbers'}, 'share': 0.5}
    dataset = DATASETS.build({'type': 'olor_mm.ClassSubset', 'dataset': inner, 'classes': [1]})
    assert set(numbers(dataset)) < {1, 5, 9}
    # 2 of 3 are held out, 1.5 being rounded to even.
    assert len(dataset) == 1


def test_another_image_is_none_that_is_held_out():
    # Images from 4 on give nothing.
    kept = HoldOut(Numbers(fails=True), share=2 / 3, seed=1)
    inside = set(range(4)) & {kept.get_data_info(i)['number'] for i in range(len(kept))}
    assert 0 < len(inside) < 4
    assert {kept[i]['number'] for _ in range(30) for i in range(len(kept))} == inside


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(share=0), r'share=0 must be in \(0, 1\)'),
        (dict(share=1.0), r'share=1.0 must be in'),
        (dict(share='a'), r"share='a' must be in"),
        (dict(seed=-1), 'seed=-1 must be a whole number'),
        (dict(seed=0.5), 'seed=0.5 must be a whole number'),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        HoldOut(Numbers(), **options)


def test_refuses_a_class_of_one_image():
    with pytest.raises(ValueError, match=r'only one image of \[7\]'):
        HoldOut(Numbers(label=lambda i: 7 if i == 3 else 0))
