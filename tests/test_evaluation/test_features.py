"""Features and logits of a data set: those of a plain loop, each sample once on several ranks, nothing disturbed."""

import random

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from olor_mm.evaluation import extract_features, extract_logits
from tests.test_engine._ranks import on_ranks

from ._toys import by_hand, classifier, loader


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_equal_those_of_a_plain_loop():
    model = classifier()
    features, logits, labels = by_hand(model, 'val', 23)
    for stage in ('neck', 'pre_logits'):
        found, found_labels = extract_features(model, loader(), stage)
        close(found, features)
        assert torch.equal(found_labels, labels)
    found, found_labels = extract_logits(model, Runner.build_dataloader(loader()))
    close(found, logits)
    assert torch.equal(found_labels, labels)
    other = torch.nn.Linear(4, 9)
    close(extract_logits(model, loader(), head=lambda feats: other(feats[-1]))[0], other(features).detach())
    assert extract_features(model, loader(), dtype=torch.float16)[0].dtype == torch.float16


def test_a_classifier_of_mmpretrains():
    from mmengine.registry import MODELS, init_default_scope

    from tests.test_tools._incremental import images

    init_default_scope('mmpretrain')
    preprocessor = dict(mean=[128.0] * 3, std=[64.0] * 3, to_rgb=False)
    head = dict(type='LinearClsHead', num_classes=6, in_channels=5)
    model = MODELS.build(
        dict(type='ImageClassifier', data_preprocessor=preprocessor, backbone=dict(type='Flat'), head=head)
    )
    model.init_weights()
    patches = loader()
    patches['dataset'] = dict(type='Patches', split='test', per_class=4, pipeline=[dict(type='PackInputs')])
    pixels, labels = images('test', 4)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().sub(128).div(64).flatten(1)
    expected = (x @ model.backbone.fc.weight.T + model.backbone.fc.bias).detach()
    for stage in ('neck', 'pre_logits'):
        features, found = extract_features(model, patches, stage)
        close(features, expected)
    assert found.tolist() == labels.tolist()
    close(extract_logits(model, patches)[0], model.head.fc(expected).detach())
    patches['dataset']['labelled'] = False
    with pytest.raises(ValueError, match='gt_label=None, where one label is needed'):
        extract_features(model, patches)
    model.backbone.forward = lambda x: (x,)
    patches['dataset']['labelled'] = True
    with pytest.raises(ValueError, match=r'features \(N, d\) are needed, but the model gives \(5, 3, 4, 4\)'):
        extract_features(model, patches)


def random_numbers():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_nothing_is_disturbed():
    model, other = classifier(), torch.nn.Linear(2, 2)
    model.backbone.fc.requires_grad_(False)
    model.head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    trained = {name: param.requires_grad for name, param in model.named_parameters()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = []
    for extracts in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if extracts:
            extract_features(model, loader(sampler=dict(type='DefaultSampler', shuffle=True), noise=1.0))
            with pytest.raises(ValueError, match='model=Linear has no data_preprocessor'):
                extract_features(other, loader())
        drawn.append(random_numbers())
    assert drawn[0] == drawn[1]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not all(modes.values())
    assert {name: param.requires_grad for name, param in model.named_parameters()} == trained
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


#: Samples, round_up, shuffle, of 4 ranks.
SHARES = [(23, True, False), (23, False, False), (3, False, False), (3, True, False), (22, True, True)]


def on_rank(rank):
    torch.distributed.init_process_group('gloo')
    model = torch.nn.parallel.DistributedDataParallel(classifier())
    found = []
    for count, round_up, shuffle in SHARES:
        sampler = dict(type='DefaultSampler', shuffle=shuffle, round_up=round_up)
        found.append((*extract_features(model, loader(sampler, 2, count=count)), shuffle))
    found.append((*extract_logits(model, loader(count=23)), None))
    with pytest.raises(ValueError, match='the sampler SequentialSampler may give'):
        extract_features(model, torch.utils.data.DataLoader([0]))
    return found


def test_each_sample_once_on_several_ranks():
    model = classifier()
    for shares in on_ranks(4, on_rank):
        *shares, (logits, labels, _) = shares
        close(logits, by_hand(model, 'val', 23)[1])
        for (count, _, shuffle), (features, labels, _) in zip(SHARES, shares, strict=True):
            expected, _, expected_labels = by_hand(model, 'val', count)
            if shuffle:
                # The same samples in another order.
                assert not torch.equal(labels, expected_labels)
                order = expected[:, 0].argsort()
                expected, expected_labels = expected[order], expected_labels[order]
                order = features[:, 0].argsort()
                features, labels = features[order], labels[order]
            close(features, expected)
            assert torch.equal(labels, expected_labels)


def test_many_rows_are_gathered_in_pieces(monkeypatch):
    from olor_mm.evaluation import features

    # Two ranks of which this is both: each holds every second row.
    rows = torch.arange(21.0)[:, None]
    monkeypatch.setattr(features, 'get_world_size', lambda: 2)
    monkeypatch.setattr(features, '_ROWS', 3)
    monkeypatch.setattr(features, 'all_gather_object', lambda own: [own, ((10, 1), torch.float32)])
    pieces = iter(torch.cat([rows[1::2], torch.zeros(1, 1)]).split(3))
    monkeypatch.setattr(features, 'all_gather', lambda own: [own, next(pieces)])
    assert torch.equal(features.gathered([rows[::2]], 21), rows)


MISTAKES = {
    'drop_last': (dict(drop_last=True), 'set drop_last=False'),
    'another sampler': (dict(sampler=dict(type='InfiniteSampler')), 'the sampler InfiniteSampler may give'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_loaders_that_leave_samples_out(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        extract_features(classifier(), {**loader(), **options})


def test_other_mistakes():
    with pytest.raises(ValueError, match="stage='head' must be"):
        extract_features(classifier(), loader(), 'head')
    shorter = Runner.build_dataloader(loader())
    shorter.sampler.total_size = 7
    with pytest.raises(ValueError, match='gave 7 of 23 samples'):
        extract_features(classifier(), shorter)
