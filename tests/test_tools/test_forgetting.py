"""tools/forgetting.py: every figure against a calculation by hand, what is kept, and what is refused."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from olor_mm import tooling
from olor_mm.engine.loading import load_from_local
from olor_mm.tooling import InputError
from olor_mm.tooling.errors import explain
from olor_mm.tooling.forgetting import forgetting, table

pytest.importorskip('mmpretrain')

from tests.test_tools import _forgetting as hand
from tests.test_tools._forgetting import DOWNSTREAM, MAP, World, read_images
from tests.test_tools._small import TOOLS, run


def _plain_text(cfg):
    return '\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items())


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    # Laying out configs would take half of the time, and pictures the rest: others test both.
    monkeypatch.setattr(Config, 'pretty_text', property(_plain_text))
    monkeypatch.setattr('olor_mm.tooling.forgetting.tables.save_charts', lambda charts, out, name, title: None)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='module', params=['LN', 'BN'])
def world(request, tmp_path_factory):
    return World(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return World(tmp_path_factory.mktemp('plain'))


def call(world, out, *options, command=None, config=None, checkpoint=None, upstream=True):
    """Run a command; what its JSON says."""
    (world.folder / 'map.json').write_text(json.dumps(MAP))
    argv = [*([command] if command else []), config or world.config, checkpoint or world.checkpoint, '--out', out]
    if upstream:
        argv += ['--upstream', world.folder / 'up', '--class-map', world.folder / 'map.json', '--knn-k', '3', '7']
    forgetting([str(each) for each in [*argv, *options]])
    name = {None: 'table', 'interpolate': 'interpolation'}.get(command, command)
    return json.loads((out / f'{name}.json').read_text())


def expected_upstream(world, state):
    """By hand, of the backbone of a state with the original head."""
    bank, queries = (read_images(world.folder / 'up' / part) for part in ('train', 'val'))
    whole = {**state, **{k: v for k, v in world.theta_0.items() if k.startswith('head.')}}
    scores, outputs = hand.logits(whole, queries[0], world.norm), np.array([MAP[name] for name in sorted(MAP)])
    both = [hand.features(state, x, world.norm) for x, _ in (bank, queries)]
    found = {f'knn/top1/k={k}': hand.knn(both[0], bank[1], both[1], queries[1], k) for k in (3, 7)}
    found['head/all/top1'] = hand.top1(scores, outputs[queries[1]])
    found['head/upstream/top1'] = hand.top1(scores[:, outputs], queries[1])
    return found


def given_upstream(row):
    flat = {f'{a}/{b}': value for a, part in row['upstream'].items() for b, value in part.items()}
    return {key: value for key, value in flat.items() if 'top5' not in key}


def expected_downstream(world, state, part='test'):
    x, labels = read_images(world.folder / 'down' / part)
    return hand.top1(hand.logits(state, x, world.norm), labels)


def distance(theta, theta_0, names):
    offset, length = (
        np.sqrt(sum(float(value.double().square().sum()) for value in values))
        for values in ([theta[n] - theta_0[n] for n in names], [theta_0[n] for n in names])
    )
    return offset / length


# ---------------------------------------------------------------- the table


def test_the_table_is_what_a_plain_calculation_says(world, tmp_path, capsys):
    found = call(world, tmp_path)
    first, second = found['rows']
    assert [first['name'], second['name']] == ['pre-trained', 'run/epoch_3']
    assert given_upstream(first) == pytest.approx(expected_upstream(world, world.theta_0))
    assert given_upstream(second) == pytest.approx(expected_upstream(world, world.theta))
    assert first['downstream'] == {}
    assert second['epoch'] == 3
    assert second['downstream'] == pytest.approx({'accuracy/top1': expected_downstream(world, world.theta)})
    params = [name for name, _ in hand.classifier(world.norm).named_parameters() if name.startswith('backbone.')]
    layers = [
        distance(world.theta, world.theta_0, [name for name in params if name.startswith(f'backbone.{part}')])
        for part in ('stem', 'layers.0', 'layers.1')
    ]
    assert list(second['discrepancy']['layers'].values()) == pytest.approx(layers, rel=1e-5)
    assert next(iter(second['discrepancy']['layers'])) == '0 stem'
    assert second['discrepancy']['overall'] == pytest.approx(distance(world.theta, world.theta_0, params), rel=1e-5)
    # The other forms say the same.
    printed = capsys.readouterr().out
    assert printed.endswith((tmp_path / 'table.md').read_text())
    change = second['upstream']['knn']['top1/k=3'] - first['upstream']['knn']['top1/k=3']
    assert f'| {second["upstream"]["knn"]["top1/k=3"]:.2f} ({change:+.2f}) |' in printed
    with (tmp_path / 'table.csv').open() as stream:
        lines = list(csv.DictReader(stream))
    assert float(lines[1]['upstream/head/all/top1']) == second['upstream']['head']['all/top1']
    assert lines[0]['downstream/accuracy/top1'] == ''


def test_what_is_there_is_not_computed_again(plain, tmp_path, monkeypatch, capsys):
    wanted = call(plain, tmp_path)
    monkeypatch.setattr(table.Bench, 'test', None)
    monkeypatch.setattr(table.Upstream, 'measure', None)
    assert call(plain, tmp_path) == wanted
    capsys.readouterr()
    # Other weights under the same name are other weights, and so is another theta_0, another set, another head.
    for options, message in (
        ({'checkpoint': f'x={plain.save("run/other.pth", plain.fine_tuned(2))}'}, 'downstream'),
        ({'config': plain.write('test_dataloader["dataset"]["data_prefix"] = "val"\n', 'val.py')}, 'downstream'),
    ):
        with pytest.raises(TypeError, match='not callable'):
            call(plain, tmp_path, **options)
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(TypeError, match='not callable'):
        call(plain, tmp_path, '--upstream-images', '8')
    with pytest.raises(TypeError, match='not callable'):
        call(plain, tmp_path, '--fresh')


def test_a_stop_keeps_what_is_done(plain, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(table.Bench, 'test', _interrupt)
        with pytest.raises(KeyboardInterrupt, match=r'(?s)results so far are kept.*toy\.py'):
            call(plain, tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / 'results').iterdir()}
    assert len(before) == 2
    call(plain, tmp_path)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / 'results').iterdir()}
    assert len(after) == 4
    assert before.items() <= after.items()
    # A file that was cut off is made again.
    file = tmp_path / 'results' / next(iter(before))
    whole = file.read_text()
    file.write_text(whole[:20])
    call(plain, tmp_path)
    assert json.loads(file.read_text())['key'] == json.loads(whole)['key']


def _interrupt(*_):
    raise KeyboardInterrupt


def test_one_folder_is_shared_out_by_class(plain, tmp_path):
    hand.write_images(tmp_path / 'flat', MAP, 10, seed=9)
    found = call(plain, tmp_path / 'out', '--upstream', tmp_path / 'flat')
    assert any('8 images' in note and '32' in note and '--upstream-seed 0' in note for note in found['notes'])
    other = call(plain, tmp_path / 'out', '--upstream', tmp_path / 'flat', '--upstream-seed', '1')
    assert other['notes'] != found['notes']


UPSTREAM = """
default_scope = 'mmpretrain'
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True,
    dataset=dict(type='RepeatDataset', times=2, dataset=dict(
        type='CustomDataset', data_root='nowhere', data_prefix='train',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=1.0), dict(type='PackInputs')],
    )),
)
test_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='nowhere', data_prefix='val', pipeline=pipeline),
)
"""
READER = """
model = dict(
    type='ImageClassifier', data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3, to_rgb=False),
    backbone=dict(type='Blocks', init_cfg=dict(type='Pretrained', checkpoint='nowhere')),
    head=dict(type='LinearClsHead', num_classes=6, in_channels=8),
)
"""


@pytest.mark.parametrize('reader', [False, True])
def test_a_config_as_upstream(plain, tmp_path, reader):
    """Its bank is under the transforms of the test, each image once; a model of its own is given the backbone."""
    (tmp_path / 'up.py').write_text(UPSTREAM + READER * reader)
    further = ('--upstream', tmp_path / 'up.py', '--upstream-data-root', plain.folder / 'up')
    found = call(plain, tmp_path / 'out', *further)
    assert given_upstream(found['rows'][1]) == pytest.approx(expected_upstream(plain, plain.theta))


def test_a_head_from_elsewhere_and_classes_by_number(plain, tmp_path):
    """timm's names; class folders that are numbers of outputs need no map."""
    head = {f'head.{part}': plain.theta_0[f'head.fc.{part}'].clone() for part in ('weight', 'bias')}
    torch.save({'model': head}, tmp_path / 'timm.pth')
    for part in ('train', 'val'):
        for name, number in MAP.items():
            (tmp_path / 'up' / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / 'up' / part / str(number)).symlink_to(plain.folder / 'up' / part / name)
    argv = [plain.config, plain.checkpoint, '--out', tmp_path / 'out', '--upstream', tmp_path / 'up', '--measures']
    forgetting([str(each) for each in [*argv, 'head', '--head', tmp_path / 'timm.pth']])
    (_, row) = json.loads((tmp_path / 'out' / 'table.json').read_text())['rows']
    expected = expected_upstream(plain, plain.theta)
    assert row['upstream'].keys() == {'head'}
    assert row['upstream']['head']['all/top1'] == pytest.approx(expected['head/all/top1'])


def test_without_a_head_there_is_knn(plain, tmp_path):
    backbone = {k: v for k, v in plain.theta_0.items() if k.startswith('backbone.')}
    torch.save({'state_dict': backbone}, tmp_path / 'bare.pth')
    argv = [plain.config, plain.checkpoint, '--out', tmp_path / 'out', '--upstream', plain.folder / 'up']
    forgetting([str(each) for each in [*argv, '--pretrained', tmp_path / 'bare.pth']])
    found = json.loads((tmp_path / 'out' / 'table.json').read_text())
    assert found['rows'][1]['upstream'].keys() == {'knn'}
    assert any('has no head' in note for note in found['notes'])
    # Classes whose outputs are not known, likewise.
    found = call(plain, tmp_path / 'more', '--upstream', plain.folder / 'up', upstream=False)
    assert any("such as 'ant', is not known: give --class-map FILE" in note for note in found['notes'])


@pytest.mark.slow
def test_two_processes_find_what_one_does(plain, tmp_path):
    registering = (
        "custom_imports = dict(imports=['olor_mm', 'tests.test_tools._forgetting'], allow_failed_imports=False)\n"
    )
    config = plain.write(registering, 'two.py')
    wanted = call(plain, tmp_path / 'one', config=config)
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    argv = [config, plain.checkpoint, '--upstream', plain.folder / 'up', '--class-map', plain.folder / 'map.json']
    options = ['--knn-k', '3', '7', '--out', tmp_path / 'two', '--launcher', 'pytorch']
    done = run(*start, TOOLS / 'forgetting.py', *argv, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / 'two' / 'table.json').read_text()) == wanted
    # What is said is said once.
    assert done.stdout.count('| pre-trained |') == 1


# ---------------------------------------------------------------- reviewing


@pytest.mark.parametrize(('path', 'buffers'), [('levels', 'interpolate'), ('straight', 'keep')])
def test_a_review_is_the_closed_form(world, tmp_path, path, buffers):
    options = ('--steps', '5', '--every', '2', '--path', path, '--max-level', '0.4', '--power', '2')
    found = call(world, tmp_path, *options, '--buffers', buffers, command='review')
    assert [point['step'] for point in found['points']] == [0, 2, 4, 5]
    parts = {'backbone.stem': 0.4, 'backbone.layers.0': 0.4 * 0.5**2, 'backbone.layers.1': 0.0}
    for point in found['points']:
        s, state = point['step'], dict(world.theta)
        for name in [name for name in state if name.startswith('backbone.') and 'num_batches' not in name]:
            if 'running' in name and buffers == 'keep':
                continue
            level = next(value for part, value in parts.items() if name.startswith(part))
            left = (1 - level) ** s if path == 'levels' else 1 - s / 5
            state[name] = world.theta_0[name] + left * (world.theta[name] - world.theta_0[name])
        assert point['downstream']['accuracy/top1'] == pytest.approx(expected_downstream(world, state))
        assert given_upstream(point) == pytest.approx(expected_upstream(world, state))
        names = [name for name, _ in hand.classifier(world.norm).named_parameters() if name.startswith('backbone.')]
        assert point['distance'] == pytest.approx(distance(state, world.theta_0, names), rel=1e-4, abs=1e-9)
    if path == 'straight':
        # It ends at theta_0 itself.
        assert found['points'][-1]['distance'] == 0


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize('buffers', ['interpolate', 'keep'])
def test_mixtures_are_the_closed_form_and_the_best_is_a_checkpoint(world, tmp_path, buffers, capsys):
    found = call(world, tmp_path, '--alphas', '0.25', '1', '0.6', '--buffers', buffers, command='interpolate')
    states = {}
    for point in found['points']:
        alpha = point['alpha']
        state = states[alpha] = dict(world.theta)
        for name in [name for name in state if name.startswith('backbone.') and 'num_batches' not in name]:
            if 'running' not in name or buffers == 'interpolate':
                state[name] = (1 - alpha) * world.theta[name] + alpha * world.theta_0[name]
        assert point['validation']['accuracy/top1'] == pytest.approx(expected_downstream(world, state, 'val'))
        assert given_upstream(point) == pytest.approx(expected_upstream(world, state))
    assert list(states) == [0, 0.25, 0.6, 1]
    best = max(found['points'], key=lambda point: (point['validation']['accuracy/top1'], point['alpha']))
    assert found['best'] == best['alpha']
    # The test set is asked about the best one and the fine-tuned one alone.
    tested = {point['alpha']: point['test'] for point in found['points'] if 'test' in point}
    assert tested.keys() == {0, best['alpha']}
    expected = expected_downstream(world, states[best['alpha']])
    assert tested[best['alpha']]['accuracy/top1'] == pytest.approx(expected)
    saved = load_from_local(str(tmp_path / 'best.pth'), 'cpu')
    assert saved['meta']['dataset_meta'] == {'classes': DOWNSTREAM}
    assert saved['meta']['interpolation']['alpha'] == best['alpha']
    assert saved['state_dict'].keys() == world.theta.keys()
    for name, value in saved['state_dict'].items():
        torch.testing.assert_close(value, states[best['alpha']][name], rtol=1e-6, atol=1e-6)
    # What tools/test.py makes of it.
    tooling.test([str(world.config), str(tmp_path / 'best.pth'), '--work-dir', str(tmp_path / 'test'), '--out',
          str(tmp_path / 'metrics.json'), '--out-item', 'metrics'])  # fmt: skip
    assert json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1'] == pytest.approx(expected)


def test_statistics_are_estimated_from_training_images(tmp_path):
    world = World(tmp_path / 'w', 'BN')
    call(world, tmp_path / 'out', '--alphas', '1', '--buffers', 'estimate', command='interpolate', upstream=False)
    found = call(
        world, tmp_path / 'out', '--alphas', '0.5', '--buffers', 'estimate', '--lower', command='interpolate',
        upstream=False,
    )  # fmt: skip
    alpha = found['best']
    saved = load_from_local(str(tmp_path / 'out' / 'best.pth'), 'cpu')['state_dict']
    if alpha == 0:
        # It has its own.
        assert torch.equal(saved['backbone.layers.0.1.running_mean'], world.theta['backbone.layers.0.1.running_mean'])
        saved = _estimated(world, tmp_path)
    mixed = {name: (world.theta[name] + world.theta_0[name]) / 2 for name in world.theta if name.startswith('backbone')}
    x, _ = read_images(world.folder / 'down' / 'train')
    s = {name: value.double().numpy() for name, value in mixed.items() if value.is_floating_point()}
    first = x @ s['backbone.stem.weight'].T + s['backbone.stem.bias']
    first = first @ s['backbone.layers.0.0.weight'].T + s['backbone.layers.0.0.bias']
    # Batches of 5 of 12 images, each as much as the others: 5, 5 and 2.
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    means = np.mean([first[order[i : i + 5]].mean(0) for i in (0, 5, 10)], axis=0)
    np.testing.assert_allclose(saved['backbone.layers.0.1.running_mean'].numpy(), means, rtol=1e-4, atol=1e-5)


def _estimated(world, tmp_path):
    """Of alpha = 0.5, chosen because the fine-tuned model is made the worse one."""
    from olor_mm.tooling.forgetting import interpolation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpolation, '_choose', lambda points, *_: ('accuracy/top1', points[-1]))
        call(world, tmp_path / 'out', '--alphas', '0.5', '--buffers', 'estimate', command='interpolate', upstream=False)
    return load_from_local(str(tmp_path / 'out' / 'best.pth'), 'cpu')['state_dict']


def test_alpha_is_never_chosen_on_the_test_set(plain, tmp_path):
    same = plain.write('val_dataloader = test_dataloader\n', 'same.py')
    with pytest.raises(InputError, match=r'val_dataloader reads the test set(?s:.*)--val-share 0\.5'):
        call(plain, tmp_path, command='interpolate', config=same, upstream=False)
    # Other words for the same files.
    alike = plain.write("val_dataloader['dataset'].update(data_prefix='test', indices=4)\n", 'alike.py')
    with pytest.raises(InputError, match='4 of the 4 validation images are test images too'):
        call(plain, tmp_path, command='interpolate', config=alike, upstream=False)
    none = plain.write('val_dataloader = val_evaluator = val_cfg = None\n', 'none.py')
    with pytest.raises(InputError, match='the config has no validation'):
        call(plain, tmp_path, command='interpolate', config=none, upstream=False)


def test_a_share_of_the_test_images_chooses_and_the_others_judge(plain, tmp_path):
    same = plain.write(
        "val_dataloader = test_dataloader\ntest_dataloader['dataset']['indices'] = range(2, 18)\n", 'same.py'
    )
    share = ('--val-share', '0.5', '--val-seed', '3', '--alphas', '0.5')
    found = call(plain, tmp_path, *share, command='interpolate', config=same, upstream=False)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3)).numpy() + 2
    x, labels = read_images(plain.folder / 'down' / 'test')
    right = hand.logits(plain.theta, x).argmax(1) == labels
    first = found['points'][0]
    assert first['validation']['accuracy/top1'] == pytest.approx(100 * right[order[:8]].mean())
    assert first['test']['accuracy/top1'] == pytest.approx(100 * right[order[8:]].mean())


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ('command', 'options', 'message'),
    [
        (None, ['--upstream', 'nowhere'], r'--upstream is neither a folder of images nor a config'),
        (None, ['--knn-k', '0'], '--knn-k 0 must be 1 at least'),
        (None, ['--upstream-data-root', '.'], '--upstream-data-root is for a config'),
        (None, ['--class-map', 'nowhere'], 'the file of --class-map is missing'),
        (None, ['--row', 'run/epoch_3', 'toy.py', 'run/epoch_3.pth'], "two models are called 'run/epoch_3'"),
        (None, ['--row', 'a', 'nowhere.py', 'run/epoch_3.pth'], 'the config file is missing'),
        (None, ['--row', 'a', 'toy.py', 'nowhere.pth'], 'the checkpoint is missing'),
        (None, ['--cfg-options', 'test_evaluator=None'], 'test_evaluator is not set'),
        (None, ['--cfg-options', 'model.backbone.init_cfg=None'], 'names no files of pre-trained weights'),
        (None, ['--cfg-options', 'model.head.num_classes=4'], r'run/epoch_3\.pth does not fit the model'),
        ('review', ['--every', '3', '--steps', '2'], '--every 3 is more than --steps 2'),
        ('review', ['--steps', '0'], '--steps 0 must be 1 at least'),
        ('review', ['--max-level', '2'], r'max_level=2\.0 is not a rollback level'),
        ('interpolate', ['--alphas', '1.5'], r'--alphas 1\.5 must be from 0'),
        ('interpolate', ['--grid', '1'], '--grid 1 must be 2 at least'),
        ('interpolate', ['--metric', 'top'], 'these are: accuracy/top1'),
        ('interpolate', ['--val-share', '1'], '--val-share 1 must be between 0 and 1'),
        ('interpolate', ['--val-share', '0.01'], 'leaves nothing to choose on'),
    ],
)
def test_what_is_refused(plain, tmp_path, monkeypatch, command, options, message):
    monkeypatch.chdir(plain.folder)
    with pytest.raises((InputError, ValueError), match=message) as caught:
        call(plain, tmp_path, *options, command=command)
    assert explain(caught.value) is not None


def test_a_command_that_is_misspelt(plain, tmp_path):
    with pytest.raises(InputError, match='did you mean review'):
        call(plain, tmp_path, command='reviev')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"ant": 1}', r"no output for 3 of the 4 upstream classes: 'bee'"),
        ('{"ant": 1, "bee": 9, "cat": 2, "dog": 3}', "'bee' is output 9, but the head has 6"),
        ('{"ant": 1, "bee": 1, "cat": 2, "dog": 3}', 'the same output'),
        ('{"ant": "x"}', 'no mapping from names to numbers'),
        ('{', 'is no JSON'),
    ],
)
def test_class_maps_that_cannot_be(plain, tmp_path, text, message):
    (tmp_path / 'other.json').write_text(text)
    with pytest.raises(InputError, match=message):
        call(plain, tmp_path, '--class-map', tmp_path / 'other.json')


def test_theta_0_is_what_a_run_loads_last(plain, tmp_path):
    # load_from comes over init_cfg, and its names may be those of a run in several processes.
    file = tmp_path / 'several.pth'
    torch.save({'state_dict': {f'module.{name}': value for name, value in plain.theta.items()}}, file)
    options = ('--measures', 'knn', '--cfg-options', f'load_from={file}')
    _, row = call(plain, tmp_path / 'out', *options)['rows']
    assert row['discrepancy']['overall'] == 0
