"""--data-root moves every path of the data, and nothing else."""

import copy
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict

import olor_mm
from olor_mm.tooling import InputError
from olor_mm.tooling.data_root import move_data_root, old_data_root


def _loader(**dataset: Any) -> dict:
    return dict(batch_size=1, dataset=dict(type='X', **dataset))


# (name, config, keys and values expected afterwards); the rest of the config must not change.
CASES = [
    (
        'one root, relative files',
        dict(train_dataloader=_loader(data_root='data/coco/', ann_file='a/t.json', data_prefix=dict(img='t/'))),
        {'train_dataloader.dataset.data_root': 'NEW/'},
    ),
    (
        'evaluator below the root',
        dict(
            val_dataloader=_loader(data_root='data/coco'),
            val_evaluator=dict(type='M', ann_file='./data/coco/a/v.json', outfile_prefix='data/coco/out'),
        ),
        {'val_dataloader.dataset.data_root': 'NEW', 'val_evaluator.ann_file': 'NEW/a/v.json'},
    ),
    (
        'list of evaluators, and one that the root is only a prefix of in letters',
        dict(
            test_dataloader=_loader(data_root='data/coco'),
            test_evaluator=[dict(seg_prefix='data/coco/seg'), dict(ann_file='data/coco2/v.json')],
        ),
        {'test_dataloader.dataset.data_root': 'NEW', 'test_evaluator.0.seg_prefix': 'NEW/seg'},
    ),
    (
        'wrappers in wrappers',
        dict(
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(
                        type='ConcatDataset',
                        datasets=[
                            dict(type='X', data_root='data/VOC/2007', ann_file='t.txt'),
                            dict(type='ClassBalancedDataset', dataset=dict(type='X', data_root='data/VOC/2012')),
                        ],
                    ),
                )
            )
        ),
        {
            'train_dataloader.dataset.dataset.datasets.0.data_root': 'NEW/2007',
            'train_dataloader.dataset.dataset.datasets.1.dataset.data_root': 'NEW/2012',
        },
    ),
    (
        'absolute files: below the root, and elsewhere',
        dict(
            train_dataloader=_loader(data_root='/mnt/coco', ann_file='/mnt/coco/a.json', data_prefix='/other/t'),
            val_dataloader=_loader(ann_file='/mnt/coco/v.json', data_prefix=dict(img_path='/mnt/coco/v')),
        ),
        {
            'train_dataloader.dataset.data_root': 'NEW',
            'train_dataloader.dataset.ann_file': 'NEW/a.json',
            'val_dataloader.dataset.ann_file': 'NEW/v.json',
            'val_dataloader.dataset.data_prefix.img_path': 'NEW/v',
        },
    ),
    (
        'a file below the data set root that is spelled like the root',
        dict(train_dataloader=_loader(data_root='data', ann_file='data/t.json')),
        {'train_dataloader.dataset.data_root': 'NEW'},
    ),
    (
        'no root: relative paths, and only where a key names one',
        dict(
            train_dataloader=_loader(ann_file='coco/t.json', data_prefix=dict(img='coco/t'), mode='train'),
            val_evaluator=dict(type='M', ann_file='coco/v.json', metric='bbox'),
        ),
        {
            'train_dataloader.dataset.ann_file': 'NEW/coco/t.json',
            'train_dataloader.dataset.data_prefix.img': 'NEW/coco/t',
            'val_evaluator.ann_file': 'NEW/coco/v.json',
        },
    ),
    (
        'only the top of the file names the root',
        dict(data_root='data/ade/', train_dataloader=_loader(ann_file='data/ade/t.txt')),
        {'data_root': 'NEW/', 'train_dataloader.dataset.ann_file': 'NEW/t.txt'},
    ),
    (
        'paths in a pipeline and in tuples',
        dict(
            train_dataloader=_loader(
                data_root='data/x', pipeline=[dict(type='Paste', file='data/x/p.pkl')], splits=('/a', 'data/x/b')
            )
        ),
        {'train_dataloader.dataset.data_root': 'NEW', 'train_dataloader.dataset.pipeline.0.file': 'NEW/p.pkl'},
    ),
    (
        'remote storage',
        dict(train_dataloader=_loader(data_root='s3://bucket/coco/', ann_file='s3://bucket/coco/t.json')),
        {'train_dataloader.dataset.data_root': 'NEW/', 'train_dataloader.dataset.ann_file': 'NEW/t.json'},
    ),
    (
        'a retrieval model with its own data set',
        dict(
            train_dataloader=_loader(data_root='data/shop'),
            model=dict(type='Retriever', prototype=dict(dataset=dict(type='X', data_root='data/shop'))),
            work_dir='data/shop/runs',
            load_from='data/shop/x.pth',
        ),
        {'train_dataloader.dataset.data_root': 'NEW', 'model.prototype.dataset.data_root': 'NEW'},
    ),
]


def _get(node: Any, key: str) -> Any:
    for part in key.split('.'):
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
    return node


def _set(node: Any, key: str, value: Any) -> None:
    parent, _, last = key.rpartition('.')
    (_get(node, parent) if parent else node)[last] = value


@pytest.mark.parametrize(('cfg', 'expected'), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize('kind', [dict, ConfigDict, Config])
@pytest.mark.parametrize('new', ['/new/place', 'relative/place', 's3://other/place'])
def test_moves_these_and_no_other(cfg: dict, expected: dict, kind: type, new: str) -> None:
    expected = {key: value.replace('NEW', new) for key, value in expected.items()}
    wanted = copy.deepcopy(cfg)
    for key, value in expected.items():
        _set(wanted, key, value)
    moved = kind(copy.deepcopy(cfg))
    changes = move_data_root(moved, new)
    plain = moved.to_dict() if kind is not dict else moved
    assert plain == wanted
    assert {change.partition(': ')[0] for change in changes} | {'data_root'} >= set(expected)


def test_moving_back_restores_the_main_job() -> None:
    cfg = Config.fromfile(olor_mm.cfg('olor_maskrcnn_convnext.py'))
    before = cfg.to_dict()
    move_data_root(cfg, '/new/place')
    assert old_data_root(cfg) == '/new/place'
    assert 'data/coco' not in cfg.pretty_text
    move_data_root(cfg, 'data/coco')
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(model=dict(type='X')), 'no path to move'),
        (dict(train_dataloader=_loader(), val_evaluator=dict(type='Accuracy')), 'no path to move'),
        (dict(train_dataloader=_loader(data_root='a/x'), val_dataloader=_loader(data_root='b/x')), 'a/x, b/x'),
        (dict(train_dataloader=_loader(data_root='/a/x'), val_dataloader=_loader(data_root='/b/x')), '/a/x, /b/x'),
        (dict(train_dataloader=_loader(data_root='/a'), val_dataloader=_loader(data_root='a')), 'in common'),
    ],
)
def test_refuses(cfg: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        move_data_root(Config(cfg), '/new')


@pytest.mark.parametrize('root', ['data/coco', 'data/coco/', './data/coco'])
def test_the_root_that_it_has_already(root: str) -> None:
    cfg = Config.fromfile(olor_mm.cfg('olor_maskrcnn_convnext.py'))
    before = copy.deepcopy(cfg.train_dataloader.dataset.data_root)
    move_data_root(cfg, root)
    assert cfg.train_dataloader.dataset.data_root.rstrip('/').endswith(before.rstrip('/'))
