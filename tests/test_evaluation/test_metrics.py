"""The METRICS: those of the pure functions on what the weights give, on one rank and on several; mistakes."""

import math

import pytest
import torch
from mmengine.registry import METRICS, MODELS

from olor_mm.evaluation import (
    ausuc,
    extract_features,
    knn_accuracy,
    ncm_accuracy,
    seen_unseen_accuracies,
)
from olor_mm.tooling.distributed import prepare_launch
from tests.test_engine._ranks import on_ranks

from ._toys import CLASSES, ToyClassifier, ToyClsHead, by_hand, loader, points, run_config, runner_of

HOOK = dict(type='olor_mm.MetricsHook')
SEEN, GAMMA = [0, 3], -0.6
ALL = [
    dict(type='ToyAccuracy'),
    dict(type='olor_mm.KNNMetric', ks=(5, 20), bank=loader(split='train', count=40)),
    dict(type='olor_mm.NCMMetric', seen=SEEN, bank=loader(split='train', count=40)),
    dict(type='olor_mm.SeenUnseenMetric', seen=SEEN, gamma=GAMMA),
]


def judged(tmp_path, metrics, hooks=(HOOK,), **changes):
    """A Runner that has not tested yet, and its figures."""
    runner = runner_of(run_config(tmp_path, metrics=metrics, hooks=list(hooks), **changes))
    return runner, runner.test()


def expected_of(model, bank=('train', 40), queries=('val', 23)):
    """By the pure functions."""
    (features, logits, labels), (known, _, known_labels) = by_hand(model, *queries), by_hand(model, *bank)
    found = {
        f'knn/{name}': value
        for name, value in knn_accuracy(known, known_labels, features, labels, CLASSES, ks=(5, 20)).items()
    }
    found['ncm/top1'] = ncm_accuracy(known, known_labels, features, labels, CLASSES)
    accuracies = seen_unseen_accuracies(logits, labels, SEEN, GAMMA)
    found.update({f'seen_unseen/{name}': value for name, value in accuracies.items()})
    found['seen_unseen/AUSUC'] = ausuc(logits, labels, SEEN)
    found['accuracy/top1'] = 100 * float((logits.argmax(1) == labels).double().mean())
    return found


def check(found, expected):
    assert set(expected) <= set(found)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_figures_are_those_of_the_pure_functions(tmp_path):
    runner, found = judged(tmp_path, ALL)
    check(found, expected_of(runner.model))
    assert 0 < found['seen_unseen/AUSUC'] < 1
    _, logits, labels = by_hand(runner.model, 'val', 23)
    assert found['seen_unseen/U/Y'] < seen_unseen_accuracies(logits, labels, SEEN)['U/Y'] - 1
    assert len(set(found.values())) > 6
    assert {name for name in found if name.startswith('ncm/')} == {'ncm/top1', *(f'ncm/{a}' for a in NCM)}
    # Nothing of it stays in the model.
    assert not runner.model.head._forward_hooks
    check(runner.test(), expected_of(runner.model))


NCM = ('S/Y', 'U/Y', 'S/S', 'U/U')


def test_ncm_of_seen_and_unseen_classes_by_hand(tmp_path):
    runner, found = judged(tmp_path, [ALL[2]])
    (features, _, labels), (known, _, known_labels) = (
        by_hand(runner.model, 'val', 23),
        by_hand(runner.model, 'train', 40),
    )
    unit = torch.nn.functional.normalize
    means = torch.stack([unit(unit(known)[known_labels == c].mean(0), dim=0) for c in range(CLASSES)])
    accuracies = seen_unseen_accuracies(unit(features) @ means.T, labels, SEEN)
    assert found == pytest.approx({f'ncm/{n}': accuracies[n] for n in NCM} | {'ncm/top1': accuracies['Y/Y']})


@MODELS.register_module(force=True)
class LoudHead(ToyClsHead):
    """Logits that softmax cannot tell apart: but the greatest all are 0."""

    def forward(self, feats):
        return 1000 * self.fc(feats[-1])


def test_logits_and_not_their_softmax_are_judged(tmp_path):
    runner, found = judged(tmp_path, ALL[3:], model=dict(type='ToyClassifier', head=dict(type='LoudHead')))
    _, logits, labels = by_hand(runner.model, 'val', 23)
    assert found['seen_unseen/AUSUC'] == pytest.approx(ausuc(logits, labels, SEEN))
    underflown = torch.softmax(1000 * logits, dim=1).log().clamp(min=-1e30)
    assert abs(ausuc(underflown, labels, SEEN) - ausuc(logits, labels, SEEN)) > 0.01


@pytest.mark.parametrize('repeated', [False, True])
def test_the_training_set_is_read_under_the_transforms_of_the_test(repeated, tmp_path):
    train = loader(dict(type='DefaultSampler', shuffle=True), split='train', count=40, classes=3, noise=5.0)
    if repeated:
        train['dataset'] = dict(type='RepeatDataset', times=3, dataset=train['dataset'])
    metrics = [
        dict(type='olor_mm.KNNMetric', ks=(5, 20)),
        dict(type='olor_mm.SeenUnseenMetric'),
        dict(type='olor_mm.NCMMetric', seen='train_dataloader', num_classes=CLASSES),
    ]
    runner, found = judged(tmp_path, metrics, train_dataloader=train, val_dataloader=loader(classes=3))
    (features, logits, labels), (known, _, known_labels) = (
        by_hand(runner.model, split, count, 3) for split, count in (('val', 23), ('train', 40))
    )
    expected = knn_accuracy(known, known_labels, features, labels, 3, ks=(5, 20))
    assert {name: found[f'knn/{name}'] for name in expected} == pytest.approx(expected)
    # The classes that the training set has are seen; no sample is of another one.
    plain = seen_unseen_accuracies(logits, labels, [0, 1, 2])
    assert {name: found[f'seen_unseen/{name}'] for name in plain} == pytest.approx(plain, nan_ok=True)
    assert math.isnan(found['seen_unseen/AUSUC'])
    assert found['ncm/S/S'] == pytest.approx(found['ncm/top1'])


def test_the_weights_that_are_averaged_are_judged_where_these_are_validated(tmp_path):
    # Far apart, so that a bank of other weights shows.
    hooks = [dict(type='EMAHook', momentum=0.02), HOOK]
    optimizer = dict(optimizer=dict(type='SGD', lr=1.0))
    runner = runner_of(run_config(tmp_path, metrics=ALL, hooks=hooks, optim_wrapper=optimizer))
    runner.train()
    # MMEngine saves the averages as the weights.
    model = ToyClassifier()
    model.load_state_dict(torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict'])
    now = {name: runner.message_hub.get_scalar(f'val/{name}').current() for name in expected_of(model)}
    check(now, expected_of(model))
    assert now != pytest.approx(expected_of(runner.model))


@pytest.mark.parametrize('amp', [False, True])
def test_the_bank_may_stay_on_the_cpu_and_chunks_may_be_small(amp, tmp_path):
    metric = {**ALL[1], 'bank_device': 'cpu', 'chunk_size': 3, 'prefix': 'near'}
    runner, found = judged(tmp_path, [metric], val_cfg=dict(fp16=amp))
    expected = {f'near/{name[4:]}': v for name, v in expected_of(runner.model).items() if name.startswith('knn/')}
    if not amp:
        check(found, expected)
    assert set(found) == set(expected)


#: collect_device, round_up, samples.
SHARES = [('cpu', True, 23), ('gpu', True, 23), ('cpu', False, 23), ('gpu', False, 22)]


def on_rank(rank, work_dir):
    found = []
    for collect_device, round_up, count in SHARES:
        metrics = [{**metric, 'collect_device': collect_device} for metric in ALL[1:]]
        sampler = dict(type='DefaultSampler', shuffle=False, round_up=round_up)
        config = run_config(
            f'{work_dir}/{rank}', metrics=metrics, hooks=[HOOK], val_dataloader=loader(sampler, 4, count=count)
        )
        config.launcher = 'pytorch'
        prepare_launch(config)
        runner = runner_of(config)
        found.append((runner.test(), runner.model.module.state_dict()))
    runner._test_loop.dataloader = torch.utils.data.DataLoader(runner.test_loop.dataloader.dataset)
    with pytest.raises(ValueError, match='the sampler SequentialSampler may give a sample twice'):
        runner.test()
    return found


def test_each_sample_once_on_several_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for figures in on_ranks(2, on_rank, str(tmp_path)):
        for (found, weights), (_, _, count) in zip(figures, SHARES, strict=True):
            model = ToyClassifier()
            model.load_state_dict(weights)
            expected = expected_of(model, queries=('val', count))
            del expected['accuracy/top1']
            check(found, expected)


def test_metrics_share_a_bank_and_take_a_new_one_each_time(tmp_path, monkeypatch):
    from olor_mm.evaluation import capture

    asked = []

    def extract(*args, what):
        asked.append(what)
        return extract_features(*args)

    monkeypatch.setattr(capture, 'extract_features', extract)
    other = {**ALL[1], 'bank': loader(split='train', count=30), 'prefix': 'near'}
    runner, found = judged(tmp_path, [*ALL, other])
    assert asked == ['KNNMetric', 'KNNMetric']
    check(found, expected_of(runner.model))
    with torch.no_grad():
        runner.model.backbone.fc.weight.mul_(-0.3)
    check(runner.test(), expected_of(runner.model))
    assert len(asked) == 4


def test_without_the_hook_the_error_names_it(tmp_path):
    for metric in ALL[1:]:
        with pytest.raises(RuntimeError, match=r'Metric gets no features and logits: set custom_hooks=\[dict'):
            judged(tmp_path, [metric], hooks=[])


@MODELS.register_module(force=True)
class TwiceHead(ToyClsHead):
    """Predicts two times, as test-time augmentation does."""

    def predict(self, feats, data_samples):
        self(feats)
        return super().predict(feats, data_samples)


@MODELS.register_module(force=True)
class DirectHead(ToyClsHead):
    """Is not called as a module."""

    def predict(self, feats, data_samples):
        scores = self.fc(feats[-1])
        for sample, score in zip(data_samples, scores, strict=True):
            sample.set_data({'pred_label': score.argmax(0, keepdim=True)})
        return data_samples


@MODELS.register_module(force=True)
class TokenHead(ToyClsHead):
    """Gives no logits."""

    def forward(self, feats):
        return super().forward(feats)[None]


HEADS = {
    'TwiceHead': (ValueError, 'the head ran 2 times for a batch of 5 samples.*without --tta'),
    'DirectHead': (RuntimeError, 'model.head was not called as a module'),
    'TokenHead': (ValueError, r'model.head=TokenHead gives no logits \(N, C\)'),
}


@pytest.mark.parametrize('head', HEADS)
def test_heads_that_cannot_be_read(head, tmp_path):
    error, message = HEADS[head]
    with pytest.raises(error, match=message):
        judged(tmp_path, [ALL[3]], model=dict(type='ToyClassifier', head=dict(type=head)))


OPTIONS = {
    'a typo': ('NCMMetric', dict(num_clases=3), 'NCMMetric.num_clases=3 is not an option: did you mean num_classes'),
    'a typo of all': ('SeenUnseenMetric', dict(colect_device='cpu'), 'did you mean collect_device'),
    'ks': ('KNNMetric', dict(ks=()), 'ks='),
    'temperature': ('KNNMetric', dict(temperature=-1), 'temperature=-1'),
    'chunk_size': ('KNNMetric', dict(chunk_size=0), 'chunk_size=0'),
    'bank_device': ('KNNMetric', dict(bank_device='gpu'), "bank_device='gpu' must be 'model' or 'cpu'"),
    'num_classes': ('NCMMetric', dict(num_classes=0), 'num_classes=0'),
    'seen of NCM': ('NCMMetric', dict(seen='all'), "NCMMetric.seen='all' must be labels"),
    'seen': ('SeenUnseenMetric', dict(seen=7), 'SeenUnseenMetric.seen=7 must be labels'),
    'gamma': ('SeenUnseenMetric', dict(gamma='alg'), "gamma='alg' must be a number"),
}


@pytest.mark.parametrize('option', OPTIONS)
def test_options_are_checked_when_built(option):
    metric, options, message = OPTIONS[option]
    with pytest.raises(ValueError, match=message):
        METRICS.build(dict(type=f'olor_mm.{metric}', **options))


BANKS = {
    'no loader': (dict(bank='train'), {}, "KNNMetric.bank='train' must be the config of a data loader"),
    'no training set': ({}, dict(train_dataloader=None), 'the run.s config has no train_dataloader'),
    'too few classes': (dict(num_classes=2), {}, 'labels of the bank are 0 to 4, but there are 2 classes'),
    'a bank that leaves samples out': (dict(bank={**loader(), 'drop_last': True}), {}, 'set drop_last=False'),
}


@pytest.mark.parametrize('bank', BANKS)
def test_banks_that_cannot_be(bank, tmp_path):
    options, changes, message = BANKS[bank]
    changes = {**changes, 'train_cfg': None, 'optim_wrapper': None} if 'train_dataloader' in changes else changes
    with pytest.raises(ValueError, match=message):
        judged(tmp_path, [dict(type='olor_mm.KNNMetric', **options)], **changes)


def test_a_bank_smaller_than_k_is_said_in_the_log(tmp_path, caplog):
    runner, found = judged(tmp_path, [{**ALL[1], 'ks': (5, 90)}], log_level='WARNING')
    assert 'KNNMetric.ks=[90]: the bank has 40 samples' in next(tmp_path.rglob('*.log')).read_text()
    features, _, labels = by_hand(runner.model, 'val', 23)
    known, _, known_labels = by_hand(runner.model, 'train', 40)
    expected = knn_accuracy(known, known_labels, features, labels, CLASSES, ks=(40,))
    assert found['knn/top1/k=90'] == pytest.approx(expected['top1/k=40'])


def test_points_are_no_trivial_task():
    x, labels = points('val', 23)
    assert x.shape == (23, 6)
    assert labels.unique().numel() == CLASSES
