"""olor_mm's metrics from the command line: the hook and the training set are put in place by the tools."""

import json
import math

import pytest
from mmengine.config import Config

from olor_mm import tooling
from olor_mm.evaluation import knn_accuracy
from olor_mm.tooling.evaluation import apply_metrics

from . import _incremental
from ._incremental import CONFIG, DIM, images

HOOK = dict(type='olor_mm.MetricsHook')


def config(evaluator, **changes):
    train_set = dict(type='RepeatDataset', times=2, dataset=dict(type='Patches', pipeline=['flip', 'pack']))
    loaders = {
        f'{split}_dataloader': dict(dataset=dict(type='Patches', split='test', pipeline=['pack']), batch_size=5)
        for split in ('val', 'test')
    }
    loaders['train_dataloader'] = dict(dataset=train_set, batch_size=4)
    return Config({**loaders, 'test_evaluator': evaluator, 'val_evaluator': dict(type='Accuracy'), **changes})


@pytest.mark.parametrize('kind', ['KNNMetric', 'NCMMetric', 'SeenUnseenMetric'])
@pytest.mark.parametrize('single', [True, False])
def test_the_training_set_is_written_out_and_the_hook_added(kind, single):
    metric = dict(type=f'olor_mm.{kind}')
    cfg = config(metric if single else [dict(type='Accuracy'), metric], custom_hooks=[dict(type='EMAHook')])
    apply_metrics(cfg)
    found = cfg.test_evaluator if single else cfg.test_evaluator[1]
    option = 'seen' if kind == 'SeenUnseenMetric' else 'bank'
    assert set(found) == {'type', option}
    # Once, without augmentation.
    assert found[option].dataset == dict(type='Patches', pipeline=['pack'])
    assert found[option].sampler == dict(type='DefaultSampler', shuffle=False, round_up=False)
    assert found[option].batch_size == 5
    assert cfg.custom_hooks == [dict(type='EMAHook'), HOOK]
    apply_metrics(cfg)
    assert cfg.custom_hooks == [dict(type='EMAHook'), HOOK]


def test_what_is_given_stays():
    bank = dict(dataset=dict(type='Other'))
    cfg = config(dict(type='olor_mm.NCMMetric', bank=bank, seen=[1]), default_hooks=dict(kept=HOOK, timer=None))
    apply_metrics(cfg)
    assert cfg.test_evaluator == dict(type='olor_mm.NCMMetric', bank=bank, seen=[1])
    assert 'custom_hooks' not in cfg
    plain = config(dict(type='Accuracy'))
    before = plain.to_dict()
    apply_metrics(plain)
    assert plain.to_dict() == before


CLASSIFIER = (
    CONFIG.split('incremental =')[0]
    + 'model'
    + CONFIG.split('\nmodel', 1)[1].split("head=dict(\n        type='olor_mm")[0]
    + "head=dict(type='LinearClsHead', num_classes=6, in_channels=5),\n)\n"
    + 'train_dataloader'
    + CONFIG.split('\ntrain_dataloader', 1)[1]
    + '\nval_dataloader = test_dataloader\nval_cfg = dict()'
    + "\nval_evaluator = [test_evaluator, dict(type='olor_mm.NCMMetric')]"
)


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.py').write_text(CLASSIFIER)
    _incremental.Interrupts.when = None
    assert (
        tooling.run_command(tooling.train, ['small.py', '--work-dir', 'run', '--cfg-options', 'custom_hooks=[]']) == 0
    )
    scalars = [json.loads(line) for line in next((tmp_path / 'run').rglob('scalars.json')).read_text().splitlines()]
    assert [line['step'] for line in scalars if 'ncm/top1' in line] == [1, 2]
    options = ['test_evaluator._delete_=True', 'test_evaluator.type=olor_mm.KNNMetric', 'test_evaluator.ks=[5,20]']
    options.append('custom_hooks=[]')
    out = ['--out', 'knn.json', '--out-item', 'metrics', '--work-dir', 'tested']
    assert tooling.run_command(tooling.test, ['small.py', 'run/epoch_2.pth', *out, '--cfg-options', *options]) == 0
    found = json.loads((tmp_path / 'knn.json').read_text())
    assert found == pytest.approx(
        {f'knn/{name}': value for name, value in by_hand(tmp_path / 'run/epoch_2.pth').items()}
    )
    assert not any(math.isnan(value) for value in found.values())


def by_hand(checkpoint):
    import torch

    state = torch.load(checkpoint, weights_only=False)['state_dict']
    sets = []
    for split, per_class in (('train', 7), ('test', 10)):
        pixels, labels = images(split, per_class)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().sub(128).div(64).flatten(1)
        sets += [x @ state['backbone.fc.weight'].T + state['backbone.fc.bias'], torch.from_numpy(labels)]
    assert sets[0].shape == (42, DIM)
    return knn_accuracy(*sets, 6, ks=(5, 20))


MISTAKES = {
    'a name': (['type=olor_mm.KNNMetrics'], 'set test_evaluator.type=olor_mm.KNNMetric'),
    'an option': (
        ['type=olor_mm.KNNMetric', 'k=20'],
        'KNNMetric.k=20 is not an option: did you mean ks? known are bank, ks',
    ),
    'a bank': (['type=olor_mm.KNNMetric', 'bank=train'], "KNNMetric.bank='train' must be the config of a data loader"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.py').write_text(CLASSIFIER)
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    options, message = MISTAKES[mistake]
    options = ['test_evaluator._delete_=True', *(f'test_evaluator.{option}' for option in options), 'custom_hooks=[]']
    assert tooling.run_command(tooling.test, ['small.py', 'empty.pth', '--cfg-options', *options]) == 2
    assert message in capsys.readouterr().err
