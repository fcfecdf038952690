"""UpstreamHook: figures as by hand, training untouched to the bit, averaged weights, resume, ranks, mistakes."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from olor_mm.evaluation import knn_accuracy
from olor_mm.evaluation.heads import original_head
from olor_mm.tooling.distributed import prepare_launch
from tests.test_engine._ranks import on_ranks

from ._toys import ToyClassifier, by_hand, classifier, loader, run_config, runner_of

QUERIES = dict(split='val', count=19, classes=7, seed=5)
BANK = dict(split='train', count=35, classes=7, seed=5)


@pytest.fixture
def start(tmp_path):
    """The file of a model that was pre-trained on 7 classes."""
    file = tmp_path / 'pretrained.pth'
    torch.save({'state_dict': classifier(4, head=dict(num_classes=7)).state_dict()}, file)
    return file


def hook(**options):
    options = {'dataloader': loader(**QUERIES), 'knn': dict(bank=loader(**BANK), ks=(3, 20)), **options}
    return dict(type='olor_mm.UpstreamHook', **options)


def config(tmp_path, start, *hooks, **changes):
    backbone = dict(init_cfg=dict(type='Pretrained', checkpoint=str(start), prefix='backbone.'))
    model = dict(type='ToyClassifier', backbone=backbone)
    return run_config(tmp_path / 'run', hooks=list(hooks), model=model, **changes)


def expected_of(backbone, start):
    """A backbone's figures with the original head, and by its neighbours."""
    model = ToyClassifier(head=dict(num_classes=7))
    model.load_state_dict(torch.load(start)['state_dict'])
    model.backbone.load_state_dict(
        {name[9:]: value for name, value in backbone.items() if name.startswith('backbone.')}
    )
    features, logits, labels = by_hand(model, *QUERIES.values())
    known, _, known_labels = by_hand(model, *BANK.values())
    right = logits.argsort(dim=1, descending=True) == labels[:, None]
    found = {f'upstream/head/top{k}': 100 * float(right[:, :k].any(1).double().mean()) for k in (1, 5)}
    near = knn_accuracy(known, known_labels, features, labels, 7, ks=(3, 20))
    return {**found, **{f'upstream/knn/{name}': value for name, value in near.items()}}


def curves(runner):
    """What was logged for the curves: step to figures."""
    file = next(Path(runner.log_dir).glob('vis_data/scalars.json'))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line['step']: line for line in lines if 'upstream/knn/top1/k=3' in line or 'upstream/head/top1' in line}


def saved(tmp_path, epoch):
    return torch.load(tmp_path / 'run' / f'epoch_{epoch}.pth', weights_only=False)


def check(found, expected):
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_figures_are_those_by_hand_and_stand_in_the_curves(tmp_path, start):
    checkpoint = dict(type='CheckpointHook', interval=1, save_best=['accuracy/top1', 'upstream/head/top1'])
    runner = runner_of(config(tmp_path, start, hook(), default_hooks=dict(checkpoint=checkpoint)))
    runner.train()
    found = curves(runner)
    assert sorted(found) == [0, 1, 2]
    check(found[0], expected_of(torch.load(start)['state_dict'], start))
    for epoch in (1, 2):
        check(found[epoch], expected_of(saved(tmp_path, epoch)['state_dict'], start))
        assert 'accuracy/top1' in found[epoch]
    assert len({line['upstream/head/top1'] for line in found.values()}) > 1
    best = max((1, 2), key=lambda epoch: found[epoch]['upstream/head/top1'])
    assert (tmp_path / 'run' / f'best_upstream_head_top1_epoch_{best}.pth').is_file()
    assert 'upstream/head/top1' in next((tmp_path / 'run').rglob('*.json')).read_text()


def state_of(folder, epoch=2):
    found = torch.load(folder / 'run' / f'epoch_{epoch}.pth', weights_only=False)
    return {**found['state_dict'], **{f'ema.{k}': v for k, v in found.get('ema_state_dict', {}).items()}}, [
        state['momentum_buffer'] for state in found['optimizer']['state'].values()
    ]


@HOOKS.register_module(force=True)
class Draws(Hook):
    """Notes what random number would come next after each iteration: no state of a generator may have moved."""

    def __init__(self):
        self.drawn = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        state = torch.get_rng_state()
        self.drawn.append(torch.rand(3))
        torch.set_rng_state(state)


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('seeded', [True, False])
def test_training_is_the_same_to_the_bit(ema, seeded, tmp_path, start):
    results = []
    near = [dict(type='ToyAccuracy'), dict(type='olor_mm.KNNMetric'), dict(type='olor_mm.SeenUnseenMetric', seen=[1])]
    for name, measured in (('without', []), ('with', [hook(), dict(type='olor_mm.MetricsHook')])):
        hooks = [dict(type='Draws'), *([dict(type='EMAHook', momentum=0.2)] if ema else []), *measured]
        metrics = near if measured else near[:1]
        runner = runner_of(config(tmp_path / name, start, *hooks, metrics=metrics))
        if not seeded:
            runner.hooks[:] = [each for each in runner.hooks if type(each).__name__ != 'ResumableRandomnessHook']
        runner.train()
        drawn = next(each for each in runner.hooks if isinstance(each, Draws)).drawn
        results.append((*state_of(tmp_path / name), drawn, runner.model.training))
    (weights, momenta, drawn, mode), (others, other_momenta, other_drawn, other_mode) = results
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[key]) for key, value in weights.items())
    assert all(map(torch.equal, momenta, other_momenta))
    assert len(drawn) == 16
    assert all(map(torch.equal, drawn, other_drawn))
    assert mode == other_mode


def test_averaged_weights_are_judged_where_they_are_validated(tmp_path, start):
    runner = runner_of(config(tmp_path, start, dict(type='EMAHook', momentum=0.3), hook()))
    runner.train()
    averaged = expected_of(saved(tmp_path, 2)['state_dict'], start)
    check(curves(runner)[2], averaged)
    assert averaged != pytest.approx(expected_of(runner.model.state_dict(), start))


def test_a_resumed_run_goes_on_without_the_pretrained_file(tmp_path, start):
    whole = runner_of(config(tmp_path / 'whole', start, hook()))
    whole.train()
    first = runner_of(config(tmp_path / 'parts', start, hook(), train_cfg=dict(by_epoch=True, max_epochs=1)))
    first.train()
    start.unlink()
    changed = config(tmp_path / 'parts', start, hook(), resume=True, load_from=str(tmp_path / 'parts/run/epoch_1.pth'))
    changed.model.backbone.init_cfg = None
    resumed = runner_of(changed)
    resumed.train()
    expected = {k: v for k, v in curves(whole)[2].items() if k.startswith('upstream/')}
    lines = [line for file in (tmp_path / 'parts').rglob('scalars.json') for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)['step'] for line in lines if 'upstream/' in line) == [0, 1, 2]
    check(curves(resumed)[2], expected)
    assert resumed.message_hub.get_info('upstream_start') == whole.message_hub.get_info('upstream_start')
    assert set(torch.load(tmp_path / 'parts/run/upstream_head.pth')['state_dict']) == {'head.fc.weight', 'head.fc.bias'}
    # A validation by itself finds the head there too.
    alone = runner_of(config(tmp_path / 'parts', start, hook(), load_from=str(tmp_path / 'parts/run/epoch_2.pth')))
    alone._has_loaded = False
    alone.cfg.model.backbone.init_cfg = None
    alone.model.backbone.init_cfg = None
    check(alone.val(), expected)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_interval(by_epoch, tmp_path, start):
    cfg = dict(by_epoch=True, max_epochs=3) if by_epoch else dict(by_epoch=False, max_iters=12, val_interval=4)
    changes = dict(default_hooks=dict(logger=dict(type='LoggerHook', log_metric_by_epoch=by_epoch)))
    if not by_epoch:
        changes['train_dataloader'] = loader(dict(type='InfiniteSampler'), split='train', count=40)
    runner = runner_of(config(tmp_path, start, hook(interval=2, start=False), train_cfg=cfg, **changes))
    runner.train()
    assert sorted(curves(runner)) == ([2, 3] if by_epoch else [8, 12])


def test_outputs_name_the_heads_classes(tmp_path, start):
    few = dict(split='val', count=19, classes=3, seed=5)
    outputs = [6, 0, 2]
    runner = runner_of(config(tmp_path, start, hook(dataloader=loader(**few), outputs=outputs, knn=None), epochs=1))
    runner.train()
    model = ToyClassifier(head=dict(num_classes=7))
    model.load_state_dict(torch.load(start)['state_dict'])
    _, logits, labels = by_hand(model, *few.values())
    found = curves(runner)[0]
    assert found['upstream/head/top1'] == pytest.approx(
        100 * float((logits.argmax(1) == torch.tensor(outputs)[labels]).double().mean())
    )
    assert set(found) == {'step', 'upstream/head/top1', 'upstream/head/top5'}


def test_a_head_of_a_config_and_neighbours_alone(tmp_path, start):
    head = dict(type='ToyClsHead', num_classes=7, in_channels=4)
    found = []
    for number, options in enumerate((dict(head=head, checkpoint=str(start)), dict(head=False))):
        runner = runner_of(config(tmp_path / str(number), start, hook(**options), epochs=1))
        runner.train()
        found.append(curves(runner)[0])
    expected = expected_of(torch.load(start)['state_dict'], start)
    check(found[0], expected)
    assert {name for name in found[1] if name != 'step'} == {name for name in expected if '/knn/' in name}


def on_rank(rank, work_dir, start):
    # Batch norms' statistics are each rank's own, in any validation of MMEngine's.
    changed = config(Path(work_dir), Path(start), hook(), dict(type='SyncBuffersHook'), epochs=1)
    changed.launcher = 'pytorch'
    changed.val_dataloader.dataset.count = 9
    prepare_launch(changed)
    runner = runner_of(changed)
    runner.train()
    hub = runner.message_hub
    names = [name for name in hub.log_scalars if 'upstream' in name]
    return {name[4:]: hub.get_scalar(name).current() for name in names}, hub.get_info('upstream_start')


def test_each_sample_once_on_several_ranks(tmp_path, start):
    found = on_ranks(2, on_rank, str(tmp_path), str(start))
    for after, before in found:
        check(before, expected_of(torch.load(start)['state_dict'], start))
        check(after, expected_of(saved(tmp_path, 1)['state_dict'], start))


MISTAKES = {
    'a typo': (dict(intervall=2), 'UpstreamHook.intervall=2 is not an option: did you mean interval'),
    'dataloader': (dict(dataloader='imagenet'), "dataloader='imagenet' must be the config of a data loader"),
    'interval': (dict(interval=0), 'interval=0 must be a whole number'),
    'head': (dict(head='linear'), "head='linear' must be the config of a head"),
    'outputs': (dict(outputs=[1, -1]), r'outputs=\[1, -1\] must be'),
    'knn': (dict(knn=True), 'knn=True must be a dict with bank'),
    'an option of knn': (dict(knn=dict(bank={}, k=20)), 'UpstreamHook.knn.k=20 is not an option: did you mean ks?'),
    'ks': (dict(knn=dict(bank={}, ks=20)), 'ks=20 must be'),
    'nothing': (dict(knn=None, head=False), 'nothing is left to measure'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_options_are_checked_when_built(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        HOOKS.build(hook(**options))


LATE = {
    'no validation': ({}, dict(val_cfg=None, val_dataloader=None, val_evaluator=None), 'there is none: set val_data'),
    'save_best between': (
        dict(interval=2),
        dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='upstream/head/top1'))),
        "interval=2, but 'upstream/head/top1' of save_best is needed",
    ),
    'classes': (dict(dataloader=loader(classes=5)), {}, 'labels'),
    'outputs beyond': (dict(outputs=[0, 1, 2, 3, 4, 5, 7]), {}, 'outputs has 7, but the original head has 7 outputs'),
    'too few outputs': (dict(outputs=[0, 1]), {}, 'there are 2 classes, 0 to 1'),
    'a loader that leaves samples out': (dict(dataloader={**loader(), 'drop_last': True}), {}, 'drop_last=False'),
    'a head of other features': (dict(checkpoint='WIDE'), {}, 'gives 4 features, but the original head takes 8'),
    'a file without a head': (dict(checkpoint='BODY'), {}, 'no head is among the'),
    'a head that does not fit': (
        dict(head=dict(type='ToyClsHead', num_classes=9, in_channels=4)),
        {},
        'does not fit the pre-trained file',
    ),
}


@pytest.mark.parametrize('mistake', LATE)
def test_what_cannot_be_measured_is_said_before_training(mistake, tmp_path, start):
    options, changes, message = LATE[mistake]
    weights = torch.load(start)['state_dict']
    files = {
        'WIDE': {'head.fc.weight': torch.zeros(7, 8), 'head.fc.bias': torch.zeros(7)},
        'BODY': {name: value for name, value in weights.items() if name.startswith('backbone')},
    }
    if 'checkpoint' in options:
        torch.save(files[options['checkpoint']], tmp_path / 'other.pth')
        options = {**options, 'checkpoint': str(tmp_path / 'other.pth')}
    if mistake == 'classes':
        options = dict(dataloader=loader(**QUERIES))
        options['dataloader']['dataset']['metainfo'] = dict(classes=['a', 'b', 'c'])
        message = 'dataloader has 3 classes, the original head 7: set outputs'
    runner = runner_of(config(tmp_path, start, hook(**options), **changes))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_no_file_is_known(tmp_path, start):
    changed = config(tmp_path, start, hook())
    changed.model.backbone.init_cfg = None
    with pytest.raises(ValueError, match='for load_from and init_cfg name none, or several: set checkpoint=FILE'):
        runner_of(changed).train()
    # The whole model's file, which training starts from.
    changed.load_from = str(start)
    runner = runner_of(changed)
    runner.train()
    check(curves(runner)[0], expected_of(torch.load(start)['state_dict'], start))


HEADS = {
    'mmpretrain': 'head.fc',
    'mmpretrain, ViT': 'head.layers.head',
    'timm': 'head',
    'timm, ResNet': 'fc',
    'torchvision': 'classifier',
    'a convolution': 'classifier',
}


@pytest.mark.parametrize('kind', HEADS)
def test_heads_under_other_names(kind):
    linear, x = torch.nn.Linear(6, 3), torch.randn(4, 6)
    weights = {f'{HEADS[kind]}.{name}': value for name, value in linear.state_dict().items()}
    weights['backbone.layers.0.weight'] = torch.zeros(2, 2)
    if kind == 'a convolution':
        weights['classifier.weight'] = weights['classifier.weight'][:, :, None, None]
    head = original_head(weights)
    assert torch.equal(head(x), linear(x))
    assert (head.in_features, head.num_classes) == (6, 3)
    del weights[f'{HEADS[kind]}.bias']
    torch.testing.assert_close(original_head(weights)(x), x @ linear.weight.T)


def test_a_vits_hidden_layer():
    first, last, x = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3), torch.randn(4, 6)
    weights = {f'head.layers.pre_logits.{name}': value for name, value in first.state_dict().items()}
    weights |= {f'head.layers.head.{name}': value for name, value in last.state_dict().items()}
    head = original_head(weights)
    assert torch.equal(head(x), last(torch.tanh(first(x))))
    assert (head.in_features, head.num_classes) == (6, 3)


def test_of_equal_logits_the_lower_class_comes_first():
    head = original_head({'fc.weight': torch.zeros(4, 2), 'fc.bias': torch.tensor([1.0, 2.0, 1.0, 1.0])})
    assert head.ranks(torch.zeros(4, 2), torch.arange(4)).tolist() == [1, 0, 2, 3]
