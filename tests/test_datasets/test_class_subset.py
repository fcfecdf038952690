"""The images of some classes of a data set."""

from typing import ClassVar

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS

from olor_mm.datasets import ClassSubset


@DATASETS.register_module(force=True)
class Numbers(BaseDataset):
    """Sample i has the label i mod 4; where it says so, odd samples give nothing."""

    METAINFO: ClassVar[dict] = {'classes': ('a', 'b', 'c', 'd')}

    def __init__(self, fails=False, label=lambda i: i % 4, **kwargs):
        self.fails, self.label = fails, label
        # Serializing collects garbage, which takes longer than all else.
        super().__init__(**{'serialize_data': False, **kwargs})

    def load_data_list(self):
        return [{'number': i, 'gt_label': self.label(i)} for i in range(12)]

    def get_cat_ids(self, idx):
        return [self.get_data_info(idx)['gt_label']]

    def prepare_data(self, idx):
        info = self.get_data_info(idx)
        return None if self.fails and info['number'] >= 4 else info


def test_keeps_the_labels():
    dataset = DATASETS.build({'type': 'olor_mm.ClassSubset', 'dataset': {'type': 'Numbers'}, 'classes': [3, 1]})
    assert [dataset[i]['number'] for i in range(len(dataset))] == [1, 3, 5, 7, 9, 11]
    assert [dataset.get_data_info(i)['gt_label'] for i in range(6)] == [1, 3] * 3
    assert dataset.get_gt_labels().tolist() == [1, 3] * 3
    assert dataset.get_cat_ids(1) == [3]
    assert dataset.metainfo['classes'] == ('a', 'b', 'c', 'd')
    assert 'of 2 classes, 6 samples' in repr(dataset)


def test_another_image_is_of_the_classes_too():
    dataset = ClassSubset(Numbers(fails=True), [2])
    assert {dataset[i]['number'] for _ in range(20) for i in range(3)} == {2}
    for test in (ClassSubset(Numbers(fails=True, test_mode=True), [2]), ClassSubset(Numbers(fails=True), [2], True)):
        with pytest.raises(RuntimeError, match='gives nothing'):
            test[1]


@pytest.mark.parametrize('wrap', [lambda d: ConcatDataset([d, d]), lambda d: RepeatDataset(d, 2)])
def test_around_wrappers(wrap):
    dataset = ClassSubset(wrap(Numbers()), [0])
    assert [dataset[i]['number'] for i in range(len(dataset))] == [0, 4, 8, 0, 4, 8]


@pytest.mark.parametrize('wrap', ['RepeatDataset', 'ConcatDataset', 'ClassBalancedDataset'])
def test_inside_of_wrappers(wrap):
    subset = {'type': 'olor_mm.ClassSubset', 'dataset': {'type': 'Numbers'}, 'classes': [3, 1]}
    options = {
        'RepeatDataset': {'dataset': subset, 'times': 2},
        'ConcatDataset': {'datasets': [subset, subset]},
        'ClassBalancedDataset': {'dataset': subset, 'oversample_thr': 1e-3},
    }[wrap]
    dataset = DATASETS.build({'type': wrap, **options})
    times = 1 if wrap == 'ClassBalancedDataset' else 2
    assert [dataset[i]['number'] for i in range(len(dataset))] == [1, 3, 5, 7, 9, 11] * times
    assert dataset.metainfo['classes'] == ('a', 'b', 'c', 'd')


def wrapped(*kinds, **options):
    """The config of Numbers inside of data sets, the outermost first."""
    if not kinds:
        return {'type': 'Numbers', **options}
    inner = wrapped(*kinds[1:], **options)
    return {
        'repeat': {'type': 'RepeatDataset', 'dataset': inner, 'times': 3},
        'concat': {'type': 'ConcatDataset', 'datasets': [inner]},
        'balance': {'type': 'ClassBalancedDataset', 'dataset': inner, 'oversample_thr': 0.9},
        'subset': {'type': 'olor_mm.ClassSubset', 'dataset': inner, 'classes': [0, 1, 2, 3]},
    }[kinds[0]]


WRAPPERS = [('repeat',), ('concat',), ('balance',), ('subset',), ('repeat', 'subset'), ('concat', 'repeat', 'concat')]


@pytest.mark.parametrize('kinds', WRAPPERS)
def test_around_wrappers_another_image_is_of_the_classes_too(kinds):
    dataset = ClassSubset(wrapped(*kinds, fails=True), [2])
    assert {dataset[i]['number'] for _ in range(20) for i in range(len(dataset))} == {2}


def test_lazy():
    dataset = ClassSubset(Numbers(lazy_init=True), [0], lazy_init=True)
    assert len(dataset) == 3


@pytest.mark.parametrize('label', [np.int64(1), np.array(1), 1])
def test_labels_of_numpy(label):
    assert len(ClassSubset(Numbers(label=lambda i: label), [1])) == 12


@pytest.mark.parametrize(
    ('label', 'classes', 'message'),
    [
        (lambda i: None, [0], 'sample 0 has no gt_label'),
        (lambda i: [1, 2], [0], r'sample 0 has gt_label=\[1, 2\], where one label is needed'),
        (lambda i: i % 4, [1, 4], r'no image of \[4\]; its labels are 0 to 3'),
        (lambda i: i % 4, [], r'classes=\[\] must be labels'),
        (lambda i: i % 4, [1, 1], r'classes=\[1, 1\] must be labels of 0 or more, each once'),
        (lambda i: i % 4, 'ab', "classes='ab' must be labels"),
    ],
)
def test_refuses(label, classes, message):
    with pytest.raises(ValueError, match=message):
        ClassSubset(Numbers(label=label), classes)


def test_refuses_what_is_no_data_set():
    with pytest.raises(TypeError, match='dataset=list is no data set'):
        ClassSubset([1, 2], [0])
    with pytest.raises(NotImplementedError, match='indices='):
        ClassSubset(Numbers(), [0]).get_subset(2)


def _single_label():
    """Every data set of mmpretrain's with one label an image, without its files."""
    from mmpretrain.datasets import BaseDataset as Images
    from mmpretrain.registry import DATASETS as THEIRS

    several = ('MultiLabelDataset', 'VOC', 'MultiTaskDataset')
    for name, kind in sorted(THEIRS.module_dict.items()):
        if isinstance(kind, type) and issubclass(kind, Images) and name not in several:
            yield name, kind


def test_every_data_set_of_mmpretrain():
    from mmpretrain.datasets import BaseDataset as Images

    count = 0
    for name, kind in _single_label():

        def load(self):
            return [{'img': i, 'gt_label': i % 4} for i in range(12)]

        made = type(name, (kind,), {'__init__': Images.__init__, 'load_data_list': load, 'full_init': Images.full_init})
        dataset = ClassSubset(made(ann_file='', serialize_data=False), [3, 1])
        assert [dataset[i]['gt_label'] for i in range(len(dataset))] == [1, 3] * 3, name
        assert [dataset[i]['img'] for i in range(len(dataset))] == [1, 3, 5, 7, 9, 11], name
        assert dataset.get_gt_labels().tolist() == [1, 3] * 3, name
        count += 1
    assert count > 15
