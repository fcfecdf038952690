"""tools/forgetting.py pacs: the paper's forgetting test in small, on images that are made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope

from olor_mm.engine.loading import load_from_local
from olor_mm.tooling import InputError
from olor_mm.tooling.data_root import move_data_root
from olor_mm.tooling.forgetting import forgetting
from olor_mm.tooling.forgetting.options import parser_of
from olor_mm.tooling.forgetting.pacs_configs import FOLDS, pacs_run

pytest.importorskip('mmpretrain')

from olor_mm.datasets.pacs import PACS
from tests.test_tools._forgetting import write_images

CONFIG = """
_base_ = [__import__('olor_mm').cfg('classification/full_vit-base-p16_8xb16_pacs.py')]
model = dict(
    backbone=dict(
        _delete_=True, type='VisionTransformer', img_size=16, patch_size=8,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    ),
    head=dict(in_channels=16),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=16), dict(type='PackInputs')]
train_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(pipeline=pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=3e-3))
"""


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pacs')
    for number, domain in enumerate(PACS.DOMAINS):
        write_images(folder / 'data' / domain, PACS.METAINFO['classes'], 5, seed=number)
    (folder / 'tiny.py').write_text(CONFIG)
    return folder


def argv(place, out, *options):
    given = [place / 'tiny.py', '--data-root', place / 'data', '--out', out, '--epochs', '2', '--pretrain-epochs', '3']
    return [str(each) for each in [*given, *options]]


def _configs(place, out, *options):
    args = parser_of('pacs').parse_args(argv(place, out, *options))
    found = {name: pacs_run(args, name).config for name in ('fold_1', 'full', 'olor')}
    for cfg in found.values():
        move_data_root(cfg, str(place / 'data'))
    return found


def _built(loader):
    return DATASETS.build(loader.dataset)


def test_the_runs_are_those_of_the_paper(place, tmp_path):
    found = _configs(place, tmp_path, '--max-level', '0.02', '--power', '2')
    for name, cfg in found.items():
        fold = FOLDS['fold_1' if name == 'fold_1' else 'fold_2']
        assert cfg.train_cfg.max_epochs == (3 if name == 'fold_1' else 2)
        trained, tested = (
            [data.get_data_info(i)['img_path'] for i in range(len(data))]
            for data in (_built(cfg.train_dataloader), _built(cfg.val_dataloader))
        )
        trained, tested = set(trained), set(tested)
        assert all(any(domain in path for domain in fold) for path in trained)
        # A fifth of each class of each domain is tested, and never trained on.
        assert len(tested) == 4 * 7
        assert len(trained) == len(fold) * 7 * 4
        assert not trained & tested
        warm_up, cosine = cfg.param_scheduler
        assert cosine['end'] == cfg.train_cfg.max_epochs
        assert warm_up['end'] == cosine['begin'] == pytest.approx(5 * cfg.train_cfg.max_epochs / 30)
    assert found['fold_1'].load_from is None
    assert found['full'].load_from == found['olor'].load_from == str(tmp_path / 'fold_1' / 'epoch_3.pth')
    assert 'rollback' not in found['full'].optim_wrapper
    assert found['olor'].optim_wrapper.rollback == dict(max_level=0.02, min_level=0.0, power=2.0)
    # The paper's 100 epochs do not begin with a longer warm-up.
    longer = _configs(place, tmp_path, '--pretrain-epochs', '100')['fold_1'].param_scheduler
    assert [each['end'] for each in longer] == [5, 100]


def test_a_part_of_the_images_is_spread_over_folds_and_classes(place, tmp_path):
    cfg = _configs(place, tmp_path, '--images', '14')['fold_1']
    for loader, per_fold in (('train', [14]), ('val', [7, 7])):
        data = _built(cfg[f'{loader}_dataloader'])
        infos = [data.get_data_info(i) for i in range(len(data))]
        counts = [sum(info['domain'] in fold for info in infos) for fold in FOLDS.values()]
        assert [count for count in counts if count] == per_fold
        assert len({info['gt_label'] for info in infos}) == 7


@pytest.mark.slow
def test_the_whole_test(place, tmp_path, capsys):
    forgetting(['pacs', *argv(place, tmp_path, '--steps', '4', '--every', '2')])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / 'pacs.json').read_text())
    curves, review = found['curves'], found['review']
    assert [p['epoch'] for p in curves['fold_1']] == [1, 2, 3]
    theta_0 = load_from_local(str(tmp_path / 'fold_1' / 'epoch_3.pth'), 'cpu')['state_dict']
    for name in ('full', 'olor'):
        points = curves[name]
        assert [p['epoch'] for p in points] == [0, 1, 2]
        # It starts from what fold 1 ended with.
        assert points[0] == {**curves['fold_1'][-1], 'epoch': 0, 'discrepancy': 0.0}
        theta = load_from_local(str(tmp_path / name / 'epoch_2.pth'), 'cpu')['state_dict']
        offset, length = (
            np.sqrt(sum(float(value.double().square().sum()) for value in values))
            for values in ([theta[n] - theta_0[n] for n in theta_0], theta_0.values())
        )
        # Of a log with a few digits.
        assert points[-1]['discrepancy'] == pytest.approx(offset / length, rel=2e-3)
    assert curves['olor'][-1]['discrepancy'] < curves['full'][-1]['discrepancy']
    # The way back begins at Full's end and ends at fold 1's.
    assert [p['step'] for p in review] == [0, 2, 4]
    for point, end in ((review[0], curves['full'][-1]), (review[-1], curves['full'][0])):
        for key in ('fold_1/top1', 'fold_2/top1'):
            assert point[key] == pytest.approx(end[key], abs=1e-3)
    assert review[-1]['discrepancy'] == 0
    assert f'| OLOR on fold 2, 2 epochs | {curves["olor"][-1]["fold_1/top1"]:.2f} |' in printed
    assert all((tmp_path / f'pacs.{ending}').stat().st_size for ending in ('md', 'csv', 'png', 'html'))
    # Nothing of it is done twice.
    before = {file: file.stat().st_mtime_ns for file in Path(tmp_path).rglob('*.pth')}
    forgetting(['pacs', *argv(place, tmp_path, '--steps', '4', '--every', '2')])
    assert {file: file.stat().st_mtime_ns for file in Path(tmp_path).rglob('*.pth')} == before


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ("test_dataloader = dict(dataset=dict(type='CustomDataset'))", 'is not olor_mm.PACS'),
        ('optim_wrapper["rollback"] = dict(max_level=1)', 'has a rollback'),
        ("train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3)", 'does not count epochs'),
    ],
)
def test_what_cannot_be(place, tmp_path, extra, message):
    (tmp_path / 'tiny.py').write_text(f'{CONFIG}\n{extra}\n')
    with pytest.raises(InputError, match=message):
        forgetting(['pacs', str(tmp_path / 'tiny.py'), '--data-root', str(place / 'data'), '--out', str(tmp_path)])


def test_groups():
    from olor_mm.evaluation import GroupAccuracy

    metric = GroupAccuracy(dict(a=['x', 'y'], b=['z'], c=['w']), prefix='p')
    samples = [
        dict(domain=domain, pred_label=torch.tensor([label]), gt_label=torch.tensor([1]))
        for domain, label in (('x', 1), ('y', 0), ('y', 1), ('z', 0))
    ]
    metric.process(None, samples[:3])
    metric.process(None, samples[3:])
    assert metric.evaluate(4) == pytest.approx({'p/a/top1': 200 / 3, 'p/b/top1': 0.0})
    with pytest.raises(ValueError, match="domain='v', which is in no group"):
        metric.process(None, [dict(samples[0], domain='v')])
    with pytest.raises(ValueError, match='each value once'):
        GroupAccuracy(dict(a=['x'], b=['x']))
