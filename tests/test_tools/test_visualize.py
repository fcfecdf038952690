"""tools/visualize.py: what it draws is what an independent calculation gives, and mistakes get an answer."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope

pytest.importorskip('matplotlib')
pytest.importorskip('plotly')

from olor_mm.tooling import InputError, run_command
from olor_mm.tooling.visualize import visualize
from olor_mm.tooling.visualize.curves import smoothed
from olor_mm.tooling.visualize.distances import _run
from olor_mm.tooling.visualize.features import Sample, choose
from olor_mm.tooling.visualize.output import named_all
from olor_mm.tooling.visualize.schedules import lr_ratios
from olor_mm.tooling.visualize.seen_unseen import read_seen
from tests.test_engine._toy import make_runner, toy_config, weights

ROLLBACK = {'max_level': 0.1, 'min_level': 0.01, 'power': 2}


def draw(tmp_path, *argv):
    """The charts that a command draws, as JSON."""
    visualize([*map(str, argv), '--out', str(tmp_path / 'out')])
    name = argv[argv.index('--name') + 1] if '--name' in argv else argv[0]
    assert (tmp_path / 'out' / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
    assert 'Plotly.newPlot' in (tmp_path / 'out' / f'{name}.html').read_text()
    return json.loads((tmp_path / 'out' / f'{name}.json').read_text())


def told(capsys, *argv):
    """What a command says of a mistake."""
    assert run_command(visualize, list(map(str, argv))) == 2
    return capsys.readouterr().err


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A plain run and one with rollback from the same weights, with a checkpoint of each epoch."""
    root = tmp_path_factory.mktemp('runs')
    start = root / 'start.pth'
    torch.manual_seed(0)
    torch.save({'state_dict': weights(make_runner(toy_config(root / 'start', rollback=None)))}, start)
    for name, rollback in (('plain', None), ('olor', ROLLBACK)):
        make_runner(toy_config(root / name, rollback=rollback, load_from=str(start))).train()
    return root


class Rates(Hook):
    """What the learning rate is in each iteration."""

    def __init__(self):
        self.found = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        group = runner.optim_wrapper.param_groups[0]
        self.found.append(group['lr'] / group['initial_lr'])


def test_levels_of_numbers(tmp_path):
    (chart,) = draw(tmp_path, 'levels', '--set', 0.1, 0.01, 2, '--set', 1, 0, 1, '--layers', 4)
    found = [series['y'] for series in chart['series']]
    assert found[0] == pytest.approx([0.01 + (1 - i / 4) ** 2 * 0.09 for i in range(5)])
    assert found[1] == pytest.approx([1 - i / 4 for i in range(5)])
    assert [series['name'] for series in chart['series']] == ['ι₁=0.1, ι₂=0.01, γ=2', 'ι₁=1, ι₂=0, γ=1']


def test_levels_of_a_config_over_layers_and_training(tmp_path):
    config = toy_config(tmp_path / 'run', rollback=ROLLBACK)
    config.dump(tmp_path / 'toy.py')
    layers, training = draw(tmp_path, 'levels', tmp_path / 'toy.py', '--set', 0.2, 0, 1)
    # The stem and three blocks; the norm behind them is in the last layer.
    levels = [0.01 + (1 - i / 3) ** 2 * 0.09 for i in range(4)]
    assert layers['series'][0]['y'] == pytest.approx(levels)
    assert layers['series'][0]['notes'][0] == 'stem'
    assert layers['series'][1]['y'] == pytest.approx([0.2 * (1 - i / 3) for i in range(4)])
    runner, rates = make_runner(config), Rates()
    runner.register_hook(rates)
    runner.train()
    assert len(rates.found) == 18
    assert [series['name'][:7] for series in training['series']] == ['layer 0', 'layer 1', 'layer 2', 'layer 3']
    for level, series in zip(levels, training['series'], strict=True):
        assert series['y'] == pytest.approx([level * rate for rate in rates.found])


@pytest.mark.parametrize(
    'schedulers',
    [
        [{'type': 'MultiStepLR', 'by_epoch': True, 'milestones': [1, 2], 'gamma': 0.1}],
        [{'type': 'CosineAnnealingLR', 'by_epoch': True, 'convert_to_iter_based': True}],
        [{'type': 'PolyLR', 'by_epoch': False, 'eta_min': 1e-4}, {'type': 'ConstantMomentum', 'factor': 0.5, 'end': 2}],
        {'type': 'LinearLR', 'start_factor': 0.5, 'by_epoch': False, 'end': 7},
    ],
    ids=['steps', 'converted', 'poly', 'one'],
)
def test_rates_are_those_of_a_run(tmp_path, schedulers):
    config = toy_config(tmp_path, param_scheduler=None)
    config.param_scheduler = schedulers
    runner, rates = make_runner(config), Rates()
    runner.register_hook(rates)
    runner.train()
    assert lr_ratios(config, 18, 6) == pytest.approx(rates.found)


def test_levels_with_a_schedule_of_their_own(tmp_path):
    config = toy_config(tmp_path, rollback={**ROLLBACK, 'level_schedule': {'type': 'warmup', 'end': 9}}, by_epoch=False)
    config.param_scheduler = []
    config.dump(tmp_path / 'toy.py')
    _, training = draw(tmp_path, 'levels', tmp_path / 'toy.py')
    expected = [0.1 * min(step / 9, 1) for step in range(18)]
    assert training['series'][0]['y'] == pytest.approx(expected)
    assert training['x_label'] == 'iteration'


def layers_of(state, origin):
    """||theta - theta_0|| / ||theta_0|| of the stem and the blocks, by hand."""
    parts = [['patch_embed'], ['blocks.0'], ['blocks.1'], ['blocks.2', 'norm']]
    found = []
    for part in parts:
        names = [n for n in origin if any(n.startswith(f'backbone.{p}.') for p in part) and origin[n].dim()]
        names = [n for n in names if 'running' not in n]
        far = sum(((state[n].double() - origin[n].double()) ** 2).sum() for n in names)
        found.append(math.sqrt(far / sum((origin[n].double() ** 2).sum() for n in names)))
    return found


def test_discrepancy_of_runs(tmp_path, runs, capsys):
    charts = draw(tmp_path, 'discrepancy', f'Full={runs / "plain"}', f'OLOR={runs / "olor"}')
    last, training, *maps = charts
    origin = torch.load(runs / 'start.pth', weights_only=True)['state_dict']
    for name, series in zip(('plain', 'olor'), last['series'], strict=True):
        expected = []
        for epoch in (1, 2, 3):
            state = torch.load(runs / name / f'epoch_{epoch}.pth', weights_only=False)['state_dict']
            expected.append(layers_of(state, origin))
        assert series['y'] == pytest.approx(expected[-1], rel=1e-5)
        table = maps[('plain', 'olor').index(name)]
        assert table['limits'] == [0, max(max(map(max, each['values'])) for each in maps)]
        assert pytest.approx(np.array(expected), rel=1e-5) == np.array(table['values']).T
    assert [series['x'] for series in training['series']] == [[1, 2, 3]] * 2
    far, near = (series['y'][-1] for series in training['series'])
    assert near < far
    # Where theta_0 was: the run with rollback has it in its checkpoints, the plain one names the file.
    assert 'Full: start.pth; OLOR: as the checkpoint has it' in last['caption']
    assert 'OLOR, epoch 3' in capsys.readouterr().err


def test_discrepancy_from_a_file_and_of_one_checkpoint(tmp_path, runs):
    file = runs / 'olor' / 'epoch_2.pth'
    (own,) = draw(tmp_path, 'discrepancy', file, '--name', 'own')
    (given,) = draw(tmp_path, 'discrepancy', file, '--theta-0', runs / 'start.pth', '--name', 'given')
    assert given['series'][0]['y'] == pytest.approx(own['series'][0]['y'], rel=1e-6)
    assert 'start.pth' in given['caption']
    (zero,) = draw(tmp_path, 'discrepancy', file, '--theta-0', file, '--name', 'zero', '--index', 'tensor')
    assert zero['series'][0]['y'] == [0.0] * 10
    assert own['series'][0]['y'][0] > 0


def test_what_a_run_loads_is_loaded_over_what_init_cfg_delivers(tmp_path, runs):
    file = runs / 'plain' / 'epoch_2.pth'
    cfg = Config.fromfile(next((runs / 'plain').glob('*.py')))
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=str(runs / 'plain' / 'epoch_3.pth'))
    cfg.dump(tmp_path / 'both.py')
    (both,) = draw(tmp_path, 'discrepancy', file, '--config', tmp_path / 'both.py', '--name', 'both')
    (given,) = draw(tmp_path, 'discrepancy', file, '--theta-0', runs / 'start.pth', '--name', 'given')
    assert both['series'][0]['y'] == pytest.approx(given['series'][0]['y'], rel=1e-6)
    assert 'start.pth' in both['caption']
    assert 'epoch_3.pth' not in both['caption']


def test_checkpoints_are_in_the_order_of_training(tmp_path):
    for epoch in range(12, 0, -1):
        (tmp_path / f'epoch_{epoch}.pth').touch()
    (tmp_path / 'iter_5.pth').touch()
    (tmp_path / 'best_accuracy_epoch_7.pth').touch()
    (tmp_path / 'epoch_13.pth').mkdir()
    run = _run('r', tmp_path)
    assert run.steps == list(range(1, 13))
    assert [file.name for file in run.files[8:10]] == ['epoch_9.pth', 'epoch_10.pth']
    assert run.labels[0] == 'epoch 1'


def test_discrepancy_says_what_it_lacks(tmp_path, runs, capsys):
    alone = tmp_path / 'epoch_1.pth'
    shutil.copy(runs / 'plain' / 'epoch_1.pth', alone)
    assert 'give it: --config CONFIG' in told(capsys, 'discrepancy', alone)
    assert 'the file of --theta-0 is missing' in told(capsys, 'discrepancy', alone, '--theta-0', 'absent.pth')
    config = next((runs / 'plain').glob('*.py'))
    options = '--cfg-options', 'load_from='
    assert '--theta-0 FILE' in told(capsys, 'discrepancy', alone, '--config', config, *options)
    torch.save({'state_dict': {'other.weight': torch.zeros(2)}}, tmp_path / 'other.pth')
    said = told(capsys, 'discrepancy', tmp_path / 'other.pth', '--config', config)
    assert 'does not fit the model of the config' in said
    said = told(capsys, 'discrepancy', alone, '--config', config, '--theta-0', tmp_path / 'other.pth')
    assert 'theta_0 from' in said
    assert '--theta-0 FILE' in said
    (tmp_path / 'empty').mkdir()
    assert 'has no checkpoints' in told(capsys, 'discrepancy', tmp_path / 'empty')
    assert 'name the parts' in told(capsys, 'discrepancy', alone, '--config', config, '--roots', 'neck')


def test_curves_of_runs(tmp_path, runs, capsys):
    (chart,) = draw(tmp_path, 'curves', f'Full={runs / "plain"}', runs / 'olor', '--metric', 'loss')
    assert [series['name'] for series in chart['series']] == ['Full', 'olor']
    for name, series in zip(('plain', 'olor'), chart['series'], strict=True):
        lines = next((runs / name).glob('*/vis_data/scalars.json')).read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert series['x'] == [line['step'] for line in logged if 'loss' in line]
        assert series['y'] == pytest.approx([line['loss'] for line in logged if 'loss' in line])
    charts = draw(tmp_path, 'curves', runs / 'plain', runs / 'olor', '--name', 'all')
    assert [chart['title'] for chart in charts] == ['loss', 'rollback/discrepancy']
    assert len(charts[1]['series']) == 1
    capsys.readouterr()
    visualize(['curves', str(runs / 'olor'), '--list'])
    assert {'loss', 'lr', 'rollback/discrepancy/000_stem'} <= set(capsys.readouterr().out.split())
    assert 'did you mean loss?' in told(capsys, 'curves', runs / 'plain', '--metric', 'los')
    assert '--smooth 1 must be' in told(capsys, 'curves', runs / 'plain', '--smooth', '1')
    assert 'nothing was logged there' in told(capsys, 'curves', tmp_path)


def test_validations_have_the_axis_that_they_were_logged_on(tmp_path):
    data = tmp_path / 'run' / '20260101_000000' / 'vis_data'
    data.mkdir(parents=True)
    train = [{'loss': 1 / step, 'epoch': (step + 4) // 5, 'iter': step, 'step': step} for step in (5, 10)]
    val = [{'accuracy/top1': 50.0, 'loss': 2.0, 'step': 1}, {'accuracy/top1': 60.0, 'loss': math.nan, 'step': 2}]
    val = [{**line, 'time': 0.1} for line in val]
    lines = [train[0], val[0], train[1], val[1]]
    (data / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"loss": 0.1, "it')
    charts = {chart['title']: chart for chart in draw(tmp_path, 'curves', tmp_path / 'run', '--smooth', 0.5)}
    # 1/5, then a mean of 1/5 and 1/10 with weights 1 and 2.
    assert charts['loss']['series'][0]['y'] == pytest.approx([0.2, (0.2 + 2 * 0.1) / 3])
    assert charts['accuracy/top1']['series'][0]['y'] == [50, 60]
    assert charts['loss']['x_label'] == 'iteration'
    assert charts['accuracy/top1']['x_label'] == 'epoch'
    assert charts['accuracy/top1']['y_label'] == 'accuracy/top1, %'
    assert charts['val/loss']['series'][0]['y'] == [2.0, None]


def test_smoothing():
    values = [3.0, 1.0, math.nan, 2.0]
    found = smoothed(values, 0.6)
    # The mean with weights 0.4 * 0.6^k, k steps back, over those that are finite.
    assert found[0] == pytest.approx(3.0)
    assert found[1] == pytest.approx((1.0 + 0.6 * 3.0) / 1.6)
    assert math.isnan(found[2])
    assert found[3] == pytest.approx((2.0 + 0.6 * 1.0 + 0.36 * 3.0) / 1.96)
    assert smoothed(values[:2], 0.0) == values[:2]


def test_ausuc_of_files(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 5, generator=generator), torch.randint(0, 5, (60,), generator=generator)
    torch.save({'logits': logits, 'labels': labels}, tmp_path / 'a.pth')
    np.savez(tmp_path / 'b.npz', logits=logits.numpy() + 3 * np.eye(5)[labels], labels=labels.numpy())
    files = f'before={tmp_path / "a.pth"}', f'after={tmp_path / "b.npz"}'
    (chart,) = draw(tmp_path, 'ausuc', '--logits', *files, '--seen', '0-1', '3')
    unseen = torch.tensor([2, 4])
    series = chart['series'][0]
    for gamma in (-2.0, -0.3, 0.0, 0.7, 2.5):
        moved = logits.clone()
        moved[:, unseen] += gamma
        right = moved.argmax(1) == labels
        is_unseen = torch.isin(labels, unseen)
        point = 100 * right[~is_unseen].double().mean(), 100 * right[is_unseen].double().mean()
        distances = [abs(x - point[0]) + abs(y - point[1]) for x, y in zip(series['x'], series['y'], strict=True)]
        assert min(distances) < 1e-6
        if gamma == 0:
            mark = series['marks'][0]
            assert (series['x'][mark], series['y'][mark]) == pytest.approx(tuple(map(float, point)))
    x, y = np.array(series['x']), np.array(series['y'])
    area = float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum()) / 2e4
    assert series['name'] == f'before: AUSUC {area:.3f}'
    assert 'after: AUSUC' in capsys.readouterr().err


def test_ausuc_says_what_it_lacks(tmp_path, capsys):
    torch.save({'logits': torch.zeros(3, 2)}, tmp_path / 'a.pth')
    torch.save({'logits': torch.zeros(3, 2), 'labels': torch.zeros(2)}, tmp_path / 'b.pth')
    torch.save({'logits': torch.zeros(3, 2), 'labels': torch.zeros(3)}, tmp_path / 'c.pth')
    assert 'has no labels' in told(capsys, 'ausuc', '--logits', tmp_path / 'a.pth', '--seen', '0')
    assert 'labels (2,)' in told(capsys, 'ausuc', '--logits', tmp_path / 'b.pth', '--seen', '0')
    assert 'say it: --seen' in told(capsys, 'ausuc', '--logits', tmp_path / 'c.pth')
    assert 'samples of seen and of unseen' in told(capsys, 'ausuc', '--logits', tmp_path / 'c.pth', '--seen', '0')
    assert 'there is nothing to draw' in told(capsys, 'ausuc')
    assert read_seen(['0-3', '7']) == [0, 1, 2, 3, 7]
    with pytest.raises(InputError, match='no label and no range'):
        read_seen(['dogs'])
    with pytest.raises(InputError, match='--seen 1-5'):
        read_seen(['5-1'])


def samples(**sizes):
    return [Sample(i, name, f'{name}/{i}.jpg') for name, size in sizes.items() for i in range(size)]


def test_images_are_shared_out_evenly():
    drawn = choose(samples(a=100, b=3, c=40), 33, None, 0)
    assert [sum(sample.group == name for sample in drawn) for name in 'abc'] == [15, 3, 15]
    assert len(set(map(id, drawn))) == 33
    assert drawn == choose(samples(a=100, b=3, c=40), 33, None, 0)
    assert drawn != choose(samples(a=100, b=3, c=40), 33, None, 1)
    assert len(choose(samples(a=2, b=3), 99, None, 0)) == 5
    assert {sample.group for sample in choose(samples(a=5, b=5, c=5), 9, ['a', 'c'], 0)} == {'a', 'c'}
    many = choose(samples(**{f'n{i}': 2 for i in range(50)}), 40, None, 0)
    assert len({sample.group for sample in many}) == 20
    with pytest.raises(InputError, match='--classes d: there is none of that name'):
        choose(samples(a=2), 2, ['d'], 0)


TINY = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=3, mean=[127.0] * 3, std=[64.0] * 3),
    backbone=dict(
        type='VisionTransformer', img_size=32, patch_size=16,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    ),
    head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='images', pipeline=pipeline),
)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='olor_mm.ClassSubset', classes=[0, 2],
        dataset=dict(type='CustomDataset', data_root='images', pipeline=pipeline),
    ),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with a config of a small classifier, two checkpoints and images of three classes in two domains."""
    from mmpretrain.utils import register_all_modules
    from PIL import Image

    register_all_modules(init_default_scope=False)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, name in enumerate(('cat', 'dog', 'owl')):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 80, (32, 32, 3)) + np.eye(3, dtype=int)[number] * 150
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / 'images' / name / f'{i}.png')
    (tmp_path / 'tiny.py').write_text(TINY)
    from olor_mm.tooling.visualize.weights import build_model

    torch.manual_seed(0)
    for name in ('one', 'two'):
        torch.save({'state_dict': build_model(Config.fromfile('tiny.py')).state_dict()}, f'{name}.pth')
    return tmp_path


def test_tsne_and_ausuc_of_checkpoints(tiny, capsys):
    from sklearn.manifold import TSNE

    from olor_mm.evaluation import extract_features
    from olor_mm.tooling.visualize.weights import build_model, load_weights

    options = '--perplexity', 5, '--num-workers', 0, '--device', 'cpu'
    charts = draw(tiny, 'tsne', 'tiny.py', 'one.pth', 'second=two.pth', '--max-samples', 18, *options)
    assert [chart['title'] for chart in charts] == ['one.pth', 'second']
    assert [group['name'] for group in charts[0]['groups']] == ['cat', 'dog', 'owl']
    assert [len(group['x']) for group in charts[0]['groups']] == [6] * 3
    assert charts[0]['groups'][0]['x'] != charts[1]['groups'][0]['x']
    files = [note for group in charts[0]['groups'] for note in group['notes']]
    assert len(set(files)) == 18
    # The same by hand, of the same images in the same order.
    cfg = Config.fromfile('tiny.py')
    model = build_model(cfg)
    load_weights(model, tiny / 'two.pth')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        everything, _ = extract_features(model, cfg.test_dataloader)
    rows = [8 * ('cat', 'dog', 'owl').index(file.split('/')[-2]) + int(file.split('/')[-1][0]) for file in files]
    method = TSNE(2, perplexity=5, init='pca', learning_rate='auto', random_state=0)
    placed = method.fit_transform(everything[rows].numpy())
    shown = [(x, y) for group in charts[1]['groups'] for x, y in zip(group['x'], group['y'], strict=True)]
    assert np.array(shown) == pytest.approx(placed, rel=1e-3, abs=1e-3)

    (chart,) = draw(tiny, 'ausuc', 'tiny.py', 'one.pth', '--save-logits', *options[2:])
    saved = torch.load(tiny / 'out' / 'logits_one.pth.pth', weights_only=True)
    assert saved['logits'].shape == (24, 3)
    assert saved['labels'].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert chart['caption'].startswith('2 seen classes, 1 unseen ones.')
    again = draw(tiny, 'ausuc', '--logits', 'one.pth=out/logits_one.pth.pth', '--seen', 0, 2, '--name', 'again')
    assert again == [chart]


def test_tsne_says_what_it_lacks(tiny, capsys):
    options = '--num-workers', 0, '--device', 'cpu'
    run = 'tsne', 'tiny.py', 'one.pth'
    assert '--perplexity 30 must be below the number of images, 24' in told(capsys, *run, *options)
    assert '--max-samples 0 must be' in told(capsys, *run, '--max-samples', 0)
    assert 'or: --by class' in told(capsys, *run, '--by', 'domain', *options)
    assert 'there is none of that name' in told(capsys, *run, '--classes', 'cow', *options)
    assert 'val_dataloader is not set' in told(capsys, *run, '--split', 'val')
    assert 'the checkpoint is missing' in told(capsys, 'tsne', 'tiny.py', 'three.pth')
    state = torch.load('one.pth', weights_only=True)['state_dict']
    del state['backbone.layers.0.ln1.weight']
    torch.save(state, 'half.pth')
    said = told(capsys, 'tsne', 'tiny.py', 'half.pth', '--perplexity', 5, *options)
    assert 'lacks 1 of' in said
    assert 'backbone.layers.0.ln1.weight' in said


def test_tsne_by_domain_of_folders(tiny):
    for domain in ('day', 'night'):
        shutil.copytree('images', f'domains/{domain}')
    options = '--num-workers', 0, '--device', 'cpu', '--perplexity', 5, '--by', 'domain'
    datasets = [dict(type='CustomDataset', data_root=f'domains/{domain}') for domain in ('day', 'night')]
    config = Config.fromfile('tiny.py')
    pipeline = config.test_dataloader.dataset.pipeline
    datasets = [{**dataset, 'pipeline': pipeline} for dataset in datasets]
    config.test_dataloader.dataset = dict(type='ConcatDataset', datasets=datasets)
    config.dump('domains.py')
    (chart,) = draw(tiny, 'tsne', 'domains.py', 'one.pth', *options)
    assert [(group['name'], len(group['x'])) for group in chart['groups']] == [('day', 24), ('night', 24)]


def test_what_lora_adds_is_a_distance(tiny):
    from olor_mm.engine.added import added_by_methods
    from olor_mm.tooling.visualize.weights import build_model

    lines = ["model.update(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='LoRA', rank=2))"]
    (tiny / 'lora.py').write_text('\n'.join([TINY, *lines]))
    model = build_model(Config.fromfile('lora.py'))
    origin = torch.load('one.pth', weights_only=True)['state_dict']
    model.load_state_dict(origin, strict=False)
    for name, p in model.named_parameters():
        if name in added_by_methods(model):
            torch.nn.init.normal_(p, std=0.1)
    torch.save({'state_dict': model.state_dict()}, 'lora.pth')
    # What the layer does to the axes is its weight; all others are as they were.
    model.eval()
    with torch.no_grad():
        acts = [each.attn.qkv(torch.eye(16)) - each.attn.qkv(torch.zeros(1, 16)) for each in model.backbone.layers]
    weights_0 = [origin[f'backbone.layers.{i}.attn.qkv.weight'] for i in range(2)]
    moved = [torch.linalg.vector_norm(now.T - before).item() for now, before in zip(acts, weights_0, strict=True)]
    for i, norm in enumerate(('backbone.ln0.', 'backbone.ln1.')):
        names = [n for n in origin if n.startswith(f'backbone.layers.{i}.') or (i and n.startswith(norm))]
        moved[i] /= math.sqrt(sum((origin[n].double() ** 2).sum() for n in names))
    (chart,) = draw(tiny, 'discrepancy', 'lora.pth', '--config', 'lora.py', '--theta-0', 'one.pth')
    assert min(moved) > 0
    assert chart['series'][0]['y'] == pytest.approx([0.0, *moved], rel=1e-4)


def test_names(tmp_path):
    for name in ('a/run', 'b/run'):
        (tmp_path / name).mkdir(parents=True)
    found = named_all([str(tmp_path / 'a/run'), f'mine={tmp_path / "b/run"}'], 'work dir')
    assert [name for name, _ in found] == ['run', 'mine']
    both = named_all([str(tmp_path / 'a/run'), str(tmp_path / 'b/run')], 'work dir')
    assert [name for name, _ in both] == ['a/run', 'b/run']
    with pytest.raises(InputError, match="two work dirs are called 'x'"):
        named_all([f'x={tmp_path / "a"}', f'x={tmp_path / "b"}'], 'work dir')
    with pytest.raises(InputError, match='the work dir is missing'):
        named_all(['absent'], 'work dir')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'required: COMMAND'),
        (['levls'], 'invalid choice'),
        (['curves', 'x', '--smoth', '0.5'], 'did you mean --smooth?'),
        (['tsne', 'c', 'x', '--by', 'colour'], 'invalid choice'),
        (['levels', '--set', '1', '2'], 'expected 3 arguments'),
    ],
)
def test_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        visualize(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_levels_say_what_is_wrong(tmp_path, capsys):
    assert 'there is nothing to draw' in told(capsys, 'levels')
    assert '--set 2 0 1: max_level=2.0' in told(capsys, 'levels', '--set', 2, 0, 1)
    assert '--layers 0 must be' in told(capsys, 'levels', '--set', 1, 0, 1, '--layers', 0)
    toy_config(tmp_path).dump(tmp_path / 'plain.py')
    assert 'the config has no rollback' in told(capsys, 'levels', tmp_path / 'plain.py')
    config = toy_config(tmp_path, rollback=ROLLBACK)
    config.train_dataloader.dataset = {
        'type': 'BaseDataset',
        'data_root': str(tmp_path / 'absent'),
        'ann_file': 'a.json',
    }
    config.dump(tmp_path / 'absent.py')
    assert '--epoch-length ITERATIONS' in told(capsys, 'levels', tmp_path / 'absent.py')
    draw(tmp_path, 'levels', tmp_path / 'absent.py', '--epoch-length', 6)


@pytest.mark.parametrize('command', ['tsne', 'discrepancy', 'levels', 'curves', 'ausuc'])
def test_help_has_examples_that_parse(command, capsys):
    import shlex

    from olor_mm.tooling.visualize.command import _parser

    with pytest.raises(SystemExit):
        visualize([command, '--help'])
    text = capsys.readouterr().out
    examples = [line.strip() for line in text.splitlines() if line.startswith('  visualize.py ')]
    assert len(examples) >= 2
    for example in examples:
        args, unknown = _parser().parse_known_args(shlex.split(example)[1:])
        assert not unknown
        assert args.command == command
