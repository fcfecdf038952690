"""Parts of tools/search.py: the space, the metric, what can be concluded, the config that is written."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from scipy import stats

import olor_mm
from olor_mm.tooling.errors import InputError
from olor_mm.tooling.search.best import final_config, overrides, write_config
from olor_mm.tooling.search.metric import Metric
from olor_mm.tooling.search.options import search_parser
from olor_mm.tooling.search.plan import Plan
from olor_mm.tooling.search.report import charts, markdown
from olor_mm.tooling.search.scores import Score, dunnett, judge
from olor_mm.tooling.search.space import Point, Space
from tests.test_tools._search import CONFIG

ACCURACY = Metric('accuracy/top1', True)


# ---------------------------------------------------------------- space


def test_the_grid_of_the_paper():
    points = Space.make('paper').points
    levels = {1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1, 1}
    assert points[0].is_plain
    assert {(point.level, point.power) for point in points[1:]} == {(x, y) for x in levels for y in (1, 2, 4)}
    assert len(points) == len({point.name for point in points}) == 28


def test_what_a_point_sets():
    space = Space.make('paper', [1e-2, 1e-1, 1e-2], [2], low=1e-3)
    assert space.levels == (1e-2, 1e-1)
    name = 'optim_wrapper.rollback.'
    assert space.settings(Point(0.1, 2)) == {f'{name}max_level': 0.1, f'{name}min_level': 1e-3, f'{name}power': 2}
    # A level below iota_2 is none.
    assert space.settings(space.plain)[f'{name}min_level'] == 0
    # The runs of plain fine-tuning stay when the search is widened to smaller powers.
    wider = Space.make('short', powers=(0.5, 1, 2))
    assert wider.settings(wider.plain) == Space.make('short', powers=(1, 2)).settings(space.plain)


@pytest.mark.parametrize(
    ('level', 'power', 'free', 'expected'),
    [
        (0, 1, False, []),
        (1e-2, 2, False, []),
        (1e-3, 2, False, ['--levels 0.0001 0.001 0.01 0.1']),
        (1e-1, 2, False, ['--levels 0.001 0.01 0.1 1']),
        (1e-2, 1, False, ['--powers 0.5 1 2 4']),
        (1e-2, 4, False, ['--powers 1 2 4 8']),
        (1e-1, 4, False, ['--levels 0.001 0.01 0.1 1', '--powers 1 2 4 8']),
        (9e-2, 2, False, []),
        (9e-2, 2, True, ['--levels 0.001 0.01 0.1 1']),
        (1.1e-3, 2, True, ['--levels 0.0001 0.001 0.01 0.1']),
        (5e-2, 2, True, []),
    ],
)
def test_edges(level, power, free, expected):
    found = Space.make('short').edges(Point(level, power), free)
    assert len(found) == len(expected)
    assert all(told in said for told, said in zip(expected, found, strict=True))


def test_nothing_lies_beyond_a_level_of_1():
    assert Space.make('paper').edges(Point(1.0, 2)) == []
    assert Space.make('paper', [1e-2], [2]).edges(Point(1e-2, 2)) == []


# ---------------------------------------------------------------- metric


@pytest.mark.parametrize(
    ('hook', 'name', 'mode', 'expected'),
    [
        (dict(save_best='coco/bbox_mAP'), None, None, ('coco/bbox_mAP', True)),
        (dict(save_best='loss'), None, None, ('loss', False)),
        (dict(save_best=['mIoU', 'x'], rule=['less', 'greater']), None, None, ('mIoU', False)),
        (dict(save_best=['mIoU', 'x'], rule=['less', 'greater']), 'x', None, ('x', True)),
        (dict(save_best='x', rule='less'), None, None, ('x', False)),
        (dict(save_best='x', rule='less'), None, 'max', ('x', True)),
        (dict(save_best='auto'), None, None, (None, None)),
        (dict(save_best='auto', rule='less'), None, None, (None, False)),
        (dict(save_best='x', rule='less'), 'accuracy/top5', None, ('accuracy/top5', True)),
        (dict(), None, None, (None, None)),
        (dict(), None, 'min', (None, False)),
        (dict(less_keys=['error']), 'top_error', 'min', ('top_error', False)),
        (dict(less_keys=['mistakes'], greater_keys=['right']), 'all/mistakes', None, ('all/mistakes', False)),
    ],
)
def test_metric(hook, name, mode, expected):
    metric = Metric.of(dict(default_hooks=dict(checkpoint=hook)), name, mode)
    assert (metric.name, metric.greater) == expected


def test_the_first_metric_of_a_validation():
    metric = Metric.of({}).resolved(['accuracy/top1', 'accuracy/top5'])
    assert (metric.name, metric.greater, metric.sign) == ('accuracy/top1', True, 1)
    with pytest.raises(InputError, match='--mode max or --mode min'):
        Metric.of({}).resolved(['distance'])
    with pytest.raises(InputError, match='gave no metric'):
        Metric.of({}).resolved([])
    with pytest.raises(InputError, match=r'these are: a/mIoU, b\n.*--metric a/mIoU'):
        Metric.of({}, 'mIoU', 'max').resolved(['a/mIoU', 'b'])


# ---------------------------------------------------------------- what can be concluded


def score(level, *values, power=2.0, state='complete'):
    point = Point(float(level), power)
    return Score(point, point.name, dict(enumerate(values)), state)


def test_dunnett_with_one_point_is_students_test():
    a, b = [3.0, 4.5, 4.0], [2.0, 3.5, 2.5]
    assert dunnett([a], b, 1) == pytest.approx([stats.ttest_ind(a, b, alternative='greater').pvalue], abs=1e-4)
    assert dunnett([a], b, -1) == pytest.approx([stats.ttest_ind(a, b, alternative='less').pvalue], abs=1e-4)


def test_dunnett_by_simulation():
    """The chance that the best of several points, none of which differs, beats the control by so much."""
    samples, control = [[3.0, 4.5, 4.0], [2.5, 3.0, 3.2], [2.0, 2.2, 3.6]], [2.0, 3.5, 2.5]
    found = dunnett(samples, control, 1)
    pooled = np.sqrt(np.mean([np.var(sample, ddof=1) for sample in [*samples, control]]))
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200_000, 4, 3))
    spread = np.sqrt(draws.var(axis=2, ddof=1).mean(axis=1))
    best = ((draws[:, :3].mean(axis=2) - draws[:, 3:].mean(axis=2)) / spread[:, None]).max(axis=1)
    for sample, p in zip(samples, found, strict=True):
        assert p == pytest.approx(np.mean(best >= (np.mean(sample) - np.mean(control)) / pooled), abs=0.01)


def test_one_seed_knows_nothing():
    found = judge([score(0, 80.0), score(1e-2, 85.0), score(1e-1, 84.0)], ACCURACY, Space.make('short'))
    assert (found.best.point.level, found.gain, found.helps, found.p) == (1e-2, 5.0, None, None)
    assert 'With one seed it cannot be known' in found.lines[1]


def test_a_gain():
    scores = [score(0, 80.0, 80.5, 80.2), score(1e-2, 85.0, 85.3, 85.1), score(1e-1, 84.0, 84.2, 84.4)]
    found = judge(scores, ACCURACY, Space.make('short'))
    assert found.helps is True
    assert found.p < 0.001
    assert 'more than noise' in found.lines[1]
    assert 'flatters' in found.lines[2]


def test_noise():
    scores = [score(0, 80.0, 84.5, 82.2), score(1e-2, 85.0, 80.3, 83.1), score(1e-1, 84.0, 81.2, 83.4)]
    found = judge(scores, ACCURACY, Space.make('short'))
    assert found.best.point.level == 1e-1
    assert found.helps is False
    assert found.p > 0.2
    assert 'within the noise' in found.lines[1]
    assert '0 1 2 3 4' in found.lines[1]


def test_the_best_of_many_needs_more():
    """The same figures are less of a proof where they are the best of many."""
    values, plain = (81.6, 82.4, 82.1), (80.9, 81.9, 81.4)
    few = judge([score(0, *plain), score(1e-2, *values)], ACCURACY, Space.make('paper'))
    others = [score(level, 81.0, 82.0, 81.5) for level in (1e-4, 5e-4, 1e-3, 5e-3, 5e-2, 1e-1, 5e-1, 1)]
    many = judge([score(0, *plain), score(1e-2, *values), *others], ACCURACY, Space.make('paper'))
    assert few.best.point == many.best.point == Point(1e-2, 2.0)
    assert few.p < many.p


def test_no_help_where_less_is_better():
    found = judge([score(0, 0.5), score(1e-2, 0.6)], Metric('loss', False), Space.make('short'))
    assert (found.best.point.level, found.helps, found.gain) == (0, False, 0)
    assert 'OLOR does not help here: the one point tried is not better' in found.lines[0]
    found = judge([score(0, 0.5), score(1e-2, 0.4)], Metric('loss', False), Space.make('short'))
    assert (found.best.point.level, found.helps) == (1e-2, None)
    assert found.gain == pytest.approx(0.1)


def test_equals_do_not_help():
    found = judge([score(1e-2, 80.0), score(0, 80.0), score(1e-3, 80.0)], ACCURACY, Space.make('short'))
    assert (found.best.point.level, found.helps) == (0, False)
    assert 'none of the 2 points is better' in found.lines[0]


def test_seeds_that_change_nothing():
    found = judge([score(0, 80.0, 80.0), score(1e-2, 81.0, 81.0)], ACCURACY, Space.make('short'))
    assert (found.p, found.helps) == (None, None)
    assert 'one figure whatever the seed' in found.lines[1]


@pytest.mark.parametrize(
    ('scores', 'said'),
    [
        ([], 'No trial is complete'),
        ([score(0, 80.0, state='failed')], 'No trial is complete'),
        ([score(0, state='failed'), score(1e-2, 80.0)], 'whether OLOR helps cannot be said'),
        ([score(0, 80.0), score(1e-2, state='failed')], 'whether OLOR helps cannot be said'),
    ],
)
def test_what_is_missing(scores, said):
    found = judge(scores, ACCURACY, Space.make('short'))
    assert said in ' '.join(found.lines)
    assert found.helps in (None, False)


def test_a_pruned_trial_is_not_compared():
    found = judge([score(0, 80.0), score(1e-2, 90.0, state='pruned'), score(1e-1, 81.0)], ACCURACY, Space.make('short'))
    assert found.best.point.level == 1e-1
    table = markdown([score(0, 80.0), score(1e-2, state='pruned')], found, ACCURACY)
    assert '| 0.01 | 2 | pruned | - |' in table


def test_the_heat_map():
    grid = [score(level, 100 * level + power, power=power) for power in (1.0, 2.0) for level in (1e-2, 1e-1)]
    scores = [score(0, 5.0, power=1.0), *grid]
    space = Space.make('short', [1e-2, 1e-1], [1, 2])
    heat, curves = charts(scores, judge(scores, ACCURACY, space), ACCURACY, space)
    assert [list(heat.rows), list(heat.columns)] == [['1', '2'], ['0', '0.01', '0.1']]
    assert heat.values == [[5, 2, 11], [5, 3, 12]]
    assert heat.marked == (1, 2)
    assert [series.name for series in curves.series] == ['power 1', 'power 2', 'level 0: plain fine-tuning']
    scores[0].values = {0: 50.0}
    assert charts(scores, judge(scores, ACCURACY, space), ACCURACY, space)[0].marked == (0, 0)
    # Values of a metric from 0 to 1 are told apart, too.
    small = [score(0, 0.411, power=1.0), score(1e-2, 0.412, power=1.0)]
    assert charts(small, judge(small, ACCURACY, space), ACCURACY, space)[0].digits == 5
    assert charts([score(0, 0.4)], judge([score(0, 0.4)], ACCURACY, space), ACCURACY, space) == []
    # Points that form no grid.
    free = [score(0, 1.0), score(0.011, 2.0), score(0.2, 3.0, power=4.0), score(0.03, 2.0, power=1.0)]
    assert len(charts(free, judge(free, ACCURACY, space, free=True), ACCURACY, space)) == 1


# ---------------------------------------------------------------- the config that is written

leaves = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.sampled_from(['a', 'b', (1, 2), (1,)]))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from('xyz'), inner, max_size=3)),
    max_leaves=8,
)
dicts = st.dictionaries(st.sampled_from('pqr'), values, max_size=3)


@settings(max_examples=100, deadline=None)
@given(dicts, dicts)
def test_overrides_say_all_that_differs(base, wanted):
    wanted = {**base, **wanted}
    said = overrides(base, wanted)
    merged = Config._merge_a_into_b(said, base)
    assert Config(merged).to_dict() == wanted
    assert not said or repr(base) != repr(wanted)


def write(folder, text, *options, name='mine.py'):
    Path(folder, name).write_text(text)
    argv = [name, *options]
    write_config(Path(folder, 'best', 'mine_best.py'), argv, ['about it'])
    return Path(folder, 'best', 'mine_best.py'), argv


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path('best').mkdir()
    Path('elsewhere').mkdir()
    return tmp_path


ROOTS = """
data_root = 'data/x/'
train_dataloader = dict(
    num_workers=0,
    dataset=dict(type='RepeatDataset', times=2, dataset=dict(type='A', data_root=data_root, ann_file='list.txt')))
val_dataloader = dict(dataset=dict(type='A', data_root=data_root), num_workers=1)
val_evaluator = [dict(type='B', ann_file=data_root + 'annotations.json'), dict(type='C')]
model = dict(backbone=dict(type='V', init_cfg=dict(type='Pretrained', checkpoint='start.pth')), head=dict(a=1))
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(norm_decay_mult=0))
"""


def test_a_written_config(here):
    Path('data/x').mkdir(parents=True)
    Path('start.pth').touch()
    options = ['--no-pin-memory', '--cfg-options', 'optim_wrapper.rollback.max_level=0.1', 'val_evaluator.1.type=D']
    file, _ = write(here, ROOTS, *options, 'model.head=None')
    lines = file.read_text().splitlines()
    assert lines[0] == '# about it'
    assert lines[1] == f"_base_ = ['{here}/mine.py']"
    assert len(lines) < 40
    os.chdir('elsewhere')
    found = final_config([str(file)])
    assert found.optim_wrapper.rollback.max_level == 0.1
    assert found.optim_wrapper.optimizer == dict(type='SGD', lr=0.1)
    assert found.val_evaluator == [dict(type='B', ann_file=f'{here}/data/x/annotations.json'), dict(type='D')]
    assert found.train_dataloader.dataset.dataset == dict(type='A', data_root=f'{here}/data/x/', ann_file='list.txt')
    assert found.val_dataloader.pin_memory is False
    assert found.model.backbone.init_cfg.checkpoint == f'{here}/start.pth'
    assert found.model.head is None
    assert list(here.glob('best/.*')) == []


def test_what_is_not_here_stays(here):
    """As a config that is to run on another machine."""
    file, _ = write(here, ROOTS, '--cfg-options', 'optim_wrapper.rollback.max_level=0.1')
    found = final_config([str(file)])
    assert found.val_dataloader.dataset.data_root == 'data/x/'
    assert found.model.backbone.init_cfg.checkpoint == 'start.pth'
    assert 'train_dataloader' not in file.read_text()


def test_another_data_root(here):
    file, _ = write(here, ROOTS, '--data-root', 'other')
    # A folder that was given on the command line may be made later.
    assert final_config([str(file)]).val_dataloader.dataset.data_root == 'other/'
    Path('other').mkdir()
    file, _ = write(here, ROOTS, '--data-root', 'other')
    assert final_config([str(file)]).val_dataloader.dataset.data_root == f'{here}/other/'


def test_a_config_of_the_new_style(here):
    text = 'from mmengine.optim import OptimWrapper\n'
    text += 'optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type="SGD", lr=0.1))\n'
    file, _ = write(here, text, '--cfg-options', 'optim_wrapper.rollback.max_level=0.1')
    found = final_config([str(file)])
    assert found.optim_wrapper.rollback.max_level == 0.1
    assert 'OptimWrapper' in str(found.optim_wrapper.type)


@pytest.mark.parametrize('name', ['classification/full_vit-base-p16_8xb16_pacs.py', 'baseline_upernet_vit.py'])
def test_a_config_that_we_ship(here, name):
    """It is named as every installation finds it."""
    argv = [olor_mm.cfg(name), '--cfg-options', 'optim_wrapper.rollback.max_level=0.1']
    write_config(Path('best/best.py'), argv, [])
    assert f"_base_ = [__import__('olor_mm').cfg('{Path(name).name}')]" in Path('best/best.py').read_text()
    assert Config.fromfile('best/best.py').optim_wrapper.rollback.max_level == 0.1


# ---------------------------------------------------------------- configs of all kinds


def plan(config, *options):
    return Plan.of(search_parser().parse_args([str(config), *options]))


@pytest.mark.parametrize(
    ('name', 'metric'),
    [
        ('baseline_maskrcnn_convnext.py', None),
        ('olor_maskrcnn_convnext.py', None),
        ('baseline_upernet_vit.py', None),
        ('olor_upernet_vit.py', None),
        ('classification/full_convnext-base_8xb16_cub.py', 'accuracy/top1'),
        ('classification/spd_vit-base-p16_8xb16_pacs.py', 'accuracy/top1'),
    ],
)
def test_our_configs(name, metric):
    """With OLOR and without, in mixed precision and not: a point is in the config that is trained."""
    made = plan(olor_mm.cfg(name))
    assert made.metric.name == metric
    own = Config.fromfile(olor_mm.cfg(name)).optim_wrapper
    for seed, point in enumerate([Point(0.0, 1.0), Point(0.5, 4.0)]):
        cfg = final_config(made.argv(point, seed))
        assert cfg.optim_wrapper.constructor == 'olor_mm.OLOROptimWrapperConstructor'
        rollback = dict(cfg.optim_wrapper.rollback)
        assert (rollback['max_level'], rollback['power'], rollback['min_level']) == (point.level, point.power, 0)
        assert (cfg.randomness.seed, cfg.optim_wrapper.type) == (seed, own.type)
        inner = own.get('constructor')
        if inner is not None and 'rollback' not in own:
            assert rollback['inner']['type'] == inner


def test_the_constructor_that_a_config_has_goes_inside(here):
    Path('toy.py').write_text(f"{CONFIG}optim_wrapper['constructor'] = 'LearningRateDecayOptimizerConstructor'\n")
    made = plan('toy.py', '--cfg-options', 'optim_wrapper.rollback.index=tensor')
    wrapper = final_config(made.argv(Point(0.1, 2.0), 0)).optim_wrapper
    assert wrapper.constructor == 'olor_mm.OLOROptimWrapperConstructor'
    assert wrapper.rollback.inner == dict(type='LearningRateDecayOptimizerConstructor')
    assert wrapper.rollback.index == 'tensor'


def test_the_seed_of_a_config(here):
    Path('toy.py').write_text(CONFIG)
    assert plan('toy.py').seeds == (3,)
    assert plan('toy.py', '--seeds', '2', '1', '2').seeds == (2, 1)
    Path('toy.py').write_text(CONFIG.replace('randomness = dict(seed=3)', ''))
    assert plan('toy.py').seeds == (0,)


def test_nan_is_worse_than_all():
    assert math.isnan(score(1e-2).mean)
    assert score(1e-2).sd is None
