"""tools/compare.py: methods as words, statistics against scipy and plain formulas, the report, whole comparisons."""

import csv
import json
import math
import os
import re
import shlex
import signal
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from scipy import stats

from olor_mm.engine.loading import load_from_local
from olor_mm.tooling.compare import compare, kept, report
from olor_mm.tooling.compare.cells import Cell
from olor_mm.tooling.compare.methods import check_settings, known_methods, parse_method
from olor_mm.tooling.compare.options import parser
from olor_mm.tooling.compare.rows import Row, rows_of
from olor_mm.tooling.compare.statistics import Difference, difference, holm, mean_and_std
from olor_mm.tooling.compare.words import digits_of, probability, test_sentence, verdict
from olor_mm.tooling.errors import InputError, run_command
from olor_mm.tooling.runs import crew
from tests.test_engine._toy import ToyModel
from tests.test_tools import _runs
from tests.test_tools._runs import SLOW, write_config
from tests.test_tools._small import REPO, environment

test_sentence.__test__ = False

OLOR = {'constructor': 'olor_mm.OLOROptimWrapperConstructor', 'rollback': {'max_level': 0.01, 'power': 2}}
TUNED = ['model.type=olor_mm.Tuned', 'model.of=ToyModel']
CONSTRUCTOR = 'optim_wrapper.constructor=olor_mm.OLOROptimWrapperConstructor'


def base(**wrapper):
    return Config({'model': {'type': 'ToyModel'}, 'optim_wrapper': wrapper})


# ---------------------------------------------------------------- methods


def rollback(**options):
    return [f'optim_wrapper.rollback.{key.replace("__", ".")}={value}' for key, value in options.items()]


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('full', []),
        ('linear', [*TUNED, 'model.method.type=Linear']),
        ('topk=3', [*TUNED, 'model.method.type=TopK', 'model.method.k=3']),
        ('Top-K=3', [*TUNED, 'model.method.type=TopK', 'model.method.k=3']),
        ('vpt', [*TUNED, 'model.method.type=VPT']),
        ('vpt=5,deep=False', [*TUNED, 'model.method.type=VPT', 'model.method.tokens=5', 'model.method.deep=False']),
        ('lora=4,targets=[a,b]', [*TUNED, *(f'model.method.{x}' for x in ('type=LoRA', 'rank=4', 'targets=[a,b]'))]),
        ('block-expansion=2', [*TUNED, 'model.method.type=BlockExpansion', 'model.method.blocks=2']),
        ('bitfit,optim_wrapper.optimizer.lr=1', [*TUNED, 'model.method.type=BitFit', 'optim_wrapper.optimizer.lr=1']),
        ('olor=0.01,power=2', [*rollback(max_level=0.01, power=2), CONSTRUCTOR]),
        ('olor,max_level=0.5', [*rollback(max_level=0.5), CONSTRUCTOR]),
        ('spd', [*rollback(rule='spd', max_level=1.0, min_level=1.0), CONSTRUCTOR]),
        ('spd=0.5', [*rollback(max_level=0.5, rule='spd', min_level=0.5), CONSTRUCTOR]),
        ('projection=1.5', [*rollback(radius=1.5, rule='projection'), CONSTRUCTOR]),
        ('l2-sp', [*rollback(l2_sp__alpha=0.01, l2_sp__beta=0.01), CONSTRUCTOR]),
        ('L2SP=0.1', [*rollback(l2_sp__alpha=0.1, l2_sp__beta=0.01), CONSTRUCTOR]),
        (
            'lora=2,rollback=True+olor=0.3',
            [
                *(*TUNED, 'model.method.type=LoRA', 'model.method.rank=2', 'model.method.rollback=True'),
                *(*rollback(max_level=0.3), CONSTRUCTOR),
            ],
        ),
        ('olor=0.1+l2-sp', [*rollback(max_level=0.1, l2_sp__alpha=0.01, l2_sp__beta=0.01), CONSTRUCTOR]),
        ("mine=train_cfg.max_epochs=3 model.a='x y'", ['train_cfg.max_epochs=3', 'model.a=x y']),
    ],
)
def test_words_for_methods(text, expected):
    found = parse_method(text, base())
    assert list(found.options) == expected
    assert found.label == ('mine' if text.startswith('mine') else text)
    assert found.plain == (text == 'full')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('full', rollback(max_level=0, power=1)),
        ('linear', [*TUNED, 'model.method.type=Linear', *rollback(max_level=0, power=1)]),
        ('olor', []),
        ('olor,power=4', rollback(power=4)),
        ('olor=0.5', rollback(max_level=0.5, power=1)),
        ('l2-sp', rollback(l2_sp__alpha=0.01, l2_sp__beta=0.01, max_level=0, power=1)),
        ('projection=2', rollback(radius=2, rule='projection', max_level=0, power=1)),
    ],
)
def test_a_config_with_rollback_has_no_other_method_s_settings(text, expected):
    cfg = base(**OLOR)
    found = parse_method(text, cfg)
    assert list(found.options) == expected
    cfg.merge_from_dict({pair.split('=')[0]: _value(pair.split('=')[1]) for pair in expected})
    check_settings(text, cfg)


def _value(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_another_constructor_goes_inside():
    found = parse_method('olor=0.1', base(constructor='mmdet.LearningRateDecayOptimizerConstructor'))
    wanted = 'optim_wrapper.rollback.inner.type=mmdet.LearningRateDecayOptimizerConstructor'
    assert list(found.options) == [*rollback(max_level=0.1), CONSTRUCTOR, wanted]


def test_new_methods_come_by_themselves():
    from olor_mm.models import Linear
    from olor_mm.registry import METHODS

    class TopHeavy(Linear):
        def __init__(self, share, part='backbone'):
            super().__init__(part)

    METHODS.register_module(module=TopHeavy)
    try:
        assert 'topheavy' in known_methods()
        options = parse_method('top-heavy=0.5', base()).options
        assert options == (*TUNED, 'model.method.type=TopHeavy', 'model.method.share=0.5')
    finally:
        del METHODS.module_dict['TopHeavy']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('linar', "no method 'linar'; did you mean linear"),
        ('lroa=8', "no method 'lroa'; did you mean lora"),
        ('xyzzy', "no method 'xyzzy'\n  there are: bitfit, block-expansion"),
        ('olor', 'the level is not said, and the config has none'),
        ('olor,power=2', 'the level is not said'),
        ('full=3', 'Full has no options'),
        ('lora=8,alpha', "'alpha' must be OPTION=VALUE"),
        ('lora=8,=3', "'=3' must be OPTION=VALUE"),
        ('mine=nowhere.py', 'the config is missing'),
        ('=train_cfg.max_epochs=3', 'the name is missing'),
        ("mine=train_cfg.max_epochs='3", 'No closing quotation'),
        ('mine=a=1 b', "'b' must be key=value"),
        ('lora=2+vpt=3', 'LoRA and VPT are both methods of model.method'),
        ('olor=0.1+spd', 'olor and spd are both rules'),
    ],
)
def test_mistakes_in_words(text, message):
    with pytest.raises(InputError) as error:
        parse_method(text, base())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model': {'type': 'olor_mm.Tuned', 'method': {'type': 'LoRA', 'rnak': 8}}}, "did you mean 'rank'"),
        (
            {'model': {'type': 'olor_mm.Tuned', 'method': {'type': 'TopK', 'k': 'x'}}},
            "k='x' must be a number of blocks",
        ),
        ({'optim_wrapper': {'rollback': {'max_level': 2}}}, 'max_level=2'),
        ({'optim_wrapper': {'rollback': {'max_levle': 0.1}}}, 'did you mean max_level?'),
    ],
)
def test_mistakes_in_options(options, message):
    with pytest.raises(InputError, match='--methods x: ') as error:
        check_settings('x', Config(options))
    assert message in str(error.value)


# ---------------------------------------------------------------- statistics

VALUES = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=8))
def test_paired_is_scipy_s(pairs):
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    found = difference(dict(enumerate(a)), dict(enumerate(b)))
    differences = [x - y for x, y in pairs]
    assert found.mean == pytest.approx(sum(differences) / len(pairs), abs=1e-9)
    if found.p is None:
        assert max(differences) - min(differences) < 1e-9
        return
    wanted = stats.ttest_1samp(differences, 0)
    interval = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-6, abs=1e-12)
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high], rel=1e-6, abs=1e-6)


@given(st.lists(VALUES, min_size=2, max_size=6), st.lists(VALUES, min_size=2, max_size=6))
def test_welch_is_scipy_s(a, b):
    found = difference(dict(enumerate(a)), dict(enumerate(b, start=50)), paired=False)
    if found.p is None:
        assert len({*a}) == len({*b}) == 1
        return
    wanted = stats.ttest_ind(a, b, equal_var=False)
    interval = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high], rel=1e-6, abs=1e-6)


def test_pairs_are_seeds():
    # The same numbers under other seeds are another test.
    reference = {0: 10.0, 1: 20.0, 2: 30.0}
    assert difference({0: 11.1, 1: 21.0, 2: 31.2}, reference).p < 0.01
    assert difference({2: 11.1, 1: 21.0, 0: 31.2}, reference).p > 0.9
    # And what only one has is left out.
    found = difference({0: 11.1, 1: 21.0, 7: 500.0}, reference)
    assert (found.n, found.mean) == (2, pytest.approx(1.05))


@pytest.mark.parametrize(
    ('values', 'reference', 'why'),
    [
        ({0: 1.0}, {0: 2.0}, 'one seed: no test'),
        ({0: 1.0, 1: 2.0}, {0: 2.0}, 'one seed: no test'),
        ({1: 1.0}, {0: 2.0}, 'no seed in common'),
        ({}, {}, 'no seed in common'),
        ({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}, 'the same difference with every seed: no test'),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, 'no difference with any seed'),
        ({0: 1.1, 1: 2.3}, {0: 0.1, 1: 1.3}, 'the same difference with every seed: no test'),
        ({0: math.nan, 1: 2.0}, {0: 1.0, 1: 2.0}, 'a value is not finite: no test'),
    ],
)
def test_no_test(values, reference, why):
    found = difference(values, reference)
    assert (found.why, found.p, found.low) == (why, None, None)
    assert not found.significant


def test_no_welch_test():
    assert difference({0: 1.0}, {0: 2.0, 1: 3.0}, paired=False).why == 'one seed: no test'
    assert difference({}, {0: 2.0}, paired=False).why == 'no values'


@given(st.lists(st.floats(0, 1), max_size=7))
def test_holm(values):
    """Its definition: reject in order of size while p_(k) <= level / (m - k + 1)."""
    found = holm(values)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(values)), key=values.__getitem__)
        for k, i in enumerate(order):
            if values[i] * (len(values) - k) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(found) if p <= level} == rejected


def test_mean_and_std():
    assert mean_and_std([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert mean_and_std([3.0]) == (3.0, None)
    assert mean_and_std([]) == (None, None)


# ---------------------------------------------------------------- words


def row_of(**difference_of):
    return Row('x', [], difference=Difference(**difference_of))


FOUND = dict(n=3, mean=-1.0, low=-3, high=1.5, p=0.01, p_holm=0.02)


@pytest.mark.parametrize(
    ('told', 'rule', 'expected'),
    [
        (
            dict(n=3, mean=1.0, low=0.5, high=1.5, p=0.01, p_holm=0.02),
            'greater',
            'significantly better than full: +1.00',
        ),
        ({**FOUND, 'mean': 1.0}, 'greater', 'significantly better than full: +1.00'),
        ({**FOUND, 'mean': 1.0}, 'less', 'significantly worse than full: +1.00'),
        ({**FOUND, 'p_holm': 0.06}, 'greater', 'no significant difference from full: -1.00'),
        ({**FOUND, 'p_holm': 1e-8}, 'greater', '95% interval -3.00 to +1.50, p < 0.0001, n = 3'),
        (dict(n=1, mean=-1.0, why='one seed: no test'), 'greater', '- x: -1.00 against full; one seed: no test'),
        (dict(n=0, why='no seed in common'), 'greater', '- x: no seed in common'),
    ],
)
def test_verdict(told, rule, expected):
    assert expected in verdict(row_of(**told), 'full', rule)


def test_sentences():
    tested = [row_of(n=2, mean=1.0, p=0.2, p_holm=0.4), row_of(n=2, mean=2.0, p=0.3, p_holm=0.4)]
    assert 'One seed: no test' in test_sentence(tested, 'full', 'paired', [0])
    assert 'With two seeds only' in test_sentence(tested, 'full', 'paired', [0, 1])
    assert "Holm's method for the 2 tests" in test_sentence(tested, 'full', 'welch', [0, 1, 2])
    assert 'Holm' not in test_sentence(tested[:1], 'full', 'paired', [0, 1, 2])
    assert 'not tested' in test_sentence(tested, 'full', 'none', [0, 1])
    assert 'could be tested' in test_sentence([], 'full', 'paired', [0, 1])
    assert [probability(p) for p in (None, 1e-5, 0.00123, 0.0456)] == ['-', '< 0.0001', '0.0012', '0.046']
    assert [digits_of([Row('x', [], mean=mean)]) for mean in (0.41, 41.0, None)] == [4, 2, 4]


def test_holm_is_over_the_methods(tmp_path):
    variants = [parse_method(text, base()) for text in ('full', 'linear', 'bitfit')]
    values = {'full': [1.0, 2, 4], 'linear': [1.5, 2.6, 4.4], 'bitfit': [1.1, 2.3, 3.9]}
    cells = [
        Cell(name, seed, 'finished', tmp_path, tmp_path, 'm', value=value)
        for name, found in values.items()
        for seed, value in enumerate(found)
    ]
    full, linear, bitfit = rows_of(variants, variants[0], cells, 'paired')
    single = [stats.ttest_rel(values[name], values['full']).pvalue for name in ('linear', 'bitfit')]
    assert full.difference is None
    assert [linear.difference.p, bitfit.difference.p] == pytest.approx(single)
    assert [linear.difference.p_holm, bitfit.difference.p_holm] == pytest.approx([2 * single[0], single[1]])
    assert all(row.difference is None for row in rows_of(variants, variants[0], cells, 'none'))


# ---------------------------------------------------------------- whole comparisons


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, which takes longer than all else; nothing is."""
    found = []
    monkeypatch.setattr(report, 'save_charts', lambda charts, *args, **kwargs: found.append(charts))
    return found


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Compares with the stand-in in the place of tools/train.py; takes what it is to do."""
    monkeypatch.setattr(crew, 'command', lambda argv, processes: [sys.executable, '-S', _runs.__file__, *argv])
    monkeypatch.setattr(crew, 'TICK', 0.02)
    config = write_config(tmp_path)

    def run(*options, methods=('full', 'linear', 'olor=0.1'), seeds=('0', '1'), told=None):
        monkeypatch.setenv('STAND_IN', json.dumps(told or {}))
        arguments = [config, '--methods', *methods, '--seeds', *seeds, '--work-dir', tmp_path / 'work', *options]
        return run_command(compare, [str(each) for each in arguments])

    return run


def results(folder):
    return json.loads((folder / 'work' / 'report.json').read_text())


PLAN = {
    f'{method}/seed_{seed}': {'value': value}
    for method, values in {'full': [70.0, 72.0], 'linear': [60.0, 62.5], 'olor=0.1': [71.0, 72.5]}.items()
    for seed, value in enumerate(values)
}


def test_a_comparison(stand_in, drawn, tmp_path, capsys):
    assert stand_in('--workers', '2', told=PLAN) == 0
    out, err = capsys.readouterr()
    assert '3 methods, 2 seeds: 6 runs' in err
    found = results(tmp_path)
    assert [(row['method'], row['mean']) for row in found['methods']] == [
        ('full', 71.0),
        ('linear', 61.25),
        ('olor=0.1', 71.75),
    ]
    assert found['methods'][2]['std'] == pytest.approx(stats.tstd([71, 72.5]))
    wanted = stats.ttest_rel([60, 62.5], [70, 72]).pvalue
    assert found['methods'][1]['difference']['p'] == pytest.approx(wanted)
    assert found['methods'][1]['difference']['p_holm'] == pytest.approx(2 * wanted)
    assert (found['metric'], found['against'], found['which']) == ('accuracy', 'full', 'last')
    assert '| full | 2 | 71.00 ± 1.41 | - | - |' in out
    assert '| linear | 2 | 61.25 ± 1.77 | -9.75 |' in out
    assert '- linear: significantly worse than full: -9.75 (95% interval -12.93 to -6.57, p = 0.033, n = 2)' in out
    assert '- olor=0.1: no significant difference from full: +0.75' in out
    assert 'Up to 2 runs went on at the same time' in out
    report = (tmp_path / 'work' / 'report.md').read_text()
    assert out.split('\n\n')[0] in report
    assert '![accuracy and costs of each method](report.png)' in report
    with (tmp_path / 'work' / 'report.csv').open() as file:
        lines = list(csv.DictReader(file))
    assert [(line['method'], line['seed'], float(line['value'])) for line in lines[:2]] == [
        ('full', '0', 70.0),
        ('linear', '0', 60.0),
    ]
    # Nothing is run again, and one more seed and method are taken in.
    begun = (tmp_path / 'work' / 'full' / 'events.txt').read_text()
    methods = ('full', 'linear', 'olor=0.1', 'mine=optim_wrapper.optimizer.lr=1')
    assert stand_in(methods=methods, told=PLAN) == 0
    assert (tmp_path / 'work' / 'full' / 'events.txt').read_text() == begun
    assert [row['method'] for row in results(tmp_path)['methods']] == ['full', 'linear', 'olor=0.1', 'mine']


def test_a_failed_run_is_told_and_stops_no_other(stand_in, drawn, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        stand_in(told={**PLAN, 'linear/seed_0': {'code': 1}})
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert '| linear | 1 of 2 (failed: 0) | 62.50 | -9.50 | - |' in out
    assert '- linear: -9.50 against full; one seed: no test' in out
    log = tmp_path / 'work' / 'linear' / 'seed_0' / 'output.log'
    assert f'- linear, seed 0: failed; {log}' in out
    assert f'1 of 6 runs failed; the same command tries them again:\n  linear, seed 0: {log}' in err
    assert '| RuntimeError: it broke' in err
    # Then it works.
    assert stand_in(told=PLAN) == 0
    assert results(tmp_path)['methods'][1]['failed'] == []
    # A report alone runs nothing, and says what is missing.
    assert stand_in('--report-only', seeds=('0', '1', '2'), told=PLAN) == 0
    assert '| full | 2 of 3 (failed: 2) |' in capsys.readouterr().out
    assert not (tmp_path / 'work' / 'full' / 'seed_2').exists()


def test_one_seed(stand_in, drawn, tmp_path, capsys):
    assert stand_in(seeds=('0',), told=PLAN) == 0
    out = capsys.readouterr().out
    assert 'One seed: no test. Whether a difference from full is more than chance is not known.' in out
    assert '| linear | 1 | 60.00 | -10.00 | - |' in out
    assert '±' not in out.split('\n\n')[0]
    titles = ['accuracy, last validation', 'accuracy over the training', 'Time of an iteration']
    assert [chart.title for chart in drawn[0]] == titles
    assert [*drawn[0][0].series[0].values] == [70, 60, 71]


def test_the_pictures(stand_in, tmp_path):
    pytest.importorskip('matplotlib')
    pytest.importorskip('plotly')
    assert stand_in(seeds=('0',), told=PLAN) == 0
    assert (tmp_path / 'work' / 'report.png').stat().st_size > 10000
    assert '<html' in (tmp_path / 'work' / 'report.html').read_text()[:200]


def test_without_the_packages_for_pictures(stand_in, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise InputError('pictures need a package')

    monkeypatch.setattr(report, 'save_charts', refuse)
    assert stand_in(seeds=('0',), told=PLAN) == 0
    assert 'No pictures: pictures need a package' in (tmp_path / 'work' / 'report.md').read_text()


def test_against_another_and_best(stand_in, drawn, tmp_path, capsys):
    assert stand_in('--against', 'linear', '--which', 'best', '--test', 'welch', '--rule', 'less', told=PLAN) == 0
    out = capsys.readouterr().out
    assert '| full | 2 | 71.00 ± 1.41 | +9.75 |' in out
    assert "Welch's t-test against linear" in out
    assert 'The less of accuracy, the better' in out
    assert 'which flatters' in out
    found = results(tmp_path)
    assert found['against'] == 'linear'
    wanted = stats.ttest_ind([70, 72], [60, 62.5], equal_var=False).pvalue
    assert found['methods'][0]['difference']['p'] == pytest.approx(wanted)
    argv = json.loads((tmp_path / 'work' / 'full' / 'seed_1' / 'run.json').read_text())['sessions'][0]['argv']
    assert 'randomness.seed=1' in argv


@pytest.mark.parametrize(
    ('options', 'expected'), [([], 70), (['--which', 'best'], 80), (['--which', 'best', '--rule', 'less'], 70)]
)
def test_which_validation(stand_in, drawn, tmp_path, options, expected):
    assert stand_in(*options, methods=('full',), seeds=('0',), told={'full/seed_0': {'values': [80.0, 70.0]}}) == 0
    assert results(tmp_path)['methods'][0]['mean'] == expected


KEPT = {
    name: {'discrepancy': {'overall': distance}, 'upstream': {'knn': {'top1/k=5': knn, 'top5/k=5': 99}}}
    for name, distance, knn in (
        ('full, seed 0', 0.03, 50.0),
        ('full, seed 1', 0.05, 54.0),
        ('linear, seed 0', 0.0, 60.0),
        ('linear, seed 1', 0.0, 60.0),
    )
}
KEPT['pre-trained'] = {'upstream': {'knn': {'top1/k=5': 60.0}, 'head': {'all/top1': 70.0}}}


def test_what_was_kept(stand_in, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kept, 'command', lambda argv, script: [sys.executable, '-S', _runs.__file__, *argv])
    monkeypatch.setattr(kept, 'tool_script', lambda name: None)
    plan = {**{key: {**value, 'checkpoint': True} for key, value in PLAN.items()}, 'kept': KEPT}
    options = ['--upstream', tmp_path, '--upstream-images', '100', '--knn-k', '5', '--cfg-options', 'log_level=INFO']
    assert stand_in(*options, methods=('full', 'linear'), told=plan) == 0
    out = capsys.readouterr().out
    header, _, full, linear = out.split('\n\n')[0].splitlines()
    assert header.endswith('| distance from theta_0 | upstream kNN, % |')
    assert full.endswith('| 0.0400 ± 0.0141 | 52.00 ± 2.83 |')
    assert linear.endswith('| 0.0000 ± 0.0000 | 60.00 ± 0.00 |')
    assert 'The pre-trained model itself: upstream kNN 60.00%, original head 70.00%.' in out
    argv = json.loads((tmp_path / 'work' / 'kept' / 'argv.json').read_text())
    folder = tmp_path / 'work' / 'linear' / 'seed_1'
    assert argv[argv.index('linear, seed 1') :][:3] == [
        'linear, seed 1',
        str(folder / 'toy.py'),
        str(folder / 'epoch_2.pth'),
    ]
    given = {'--upstream': str(tmp_path), '--upstream-images': '100', '--knn-k': '5', '--cfg-options': 'log_level=INFO'}
    assert {option: argv[argv.index(option) + 1] for option in given} == given
    lines = list(csv.DictReader((tmp_path / 'work' / 'report.csv').read_text().splitlines()))
    assert [line['upstream kNN, %'] for line in lines] == ['50.0', '60.0', '54.0', '60.0']
    scatter = next(chart for chart in drawn[0] if chart.title == 'accuracy against upstream kNN, %')
    assert [(group.name, [*group.x], [*group.y]) for group in scatter.groups] == [
        ('full', [50, 54], [70, 72]),
        ('linear', [60, 60], [60, 62.5]),
    ]
    # What cannot be measured is said; it is an error where it was asked for.
    plan['kept'] = {'error': 'no weights'}
    same = ['--cfg-options', 'log_level=INFO']
    assert stand_in(*same, methods=('full', 'linear'), told=plan) == 0
    assert 'What was kept of the pre-training was not measured: error: no weights; log: ' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        stand_in('--upstream', tmp_path, *same, methods=('full', 'linear'), told=plan)
    assert '--upstream: nothing was measured: error: no weights' in capsys.readouterr().err
    assert stand_in('--skip-kept', *same, methods=('full', 'linear'), told=plan) == 0
    assert 'not measured: it was not asked for' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--upstream', 'nowhere'], '--upstream is neither a folder nor a config'),
        (['--knn-k', '5'], '--knn-k is of the upstream images'),
        (['--upstream-images', '0'], '--upstream-images 0 must be 1 or more'),
        (['--seeds', '0', '0'], '--seeds 0 0 names a seed twice'),
        (['--seeds', '-1'], '--seeds -1 must be 0 or more'),
        (['--workers', '0'], '--workers 0 must be 1 or more'),
        (['--gpus-per-run', '0'], '--gpus-per-run 0 must be 1 or more'),
        (['--methods', 'full', 'full'], '--methods names full twice'),
        (['--methods', 'full', 'a=x=1', 'a=x=2'], "two are called 'a'"),
        (['--methods', 'full', 'lora=2,rnak=8'], "--methods lora=2,rnak=8: model.method: LoRA has no option 'rnak'"),
        (['--methods', 'full', 'olor=0.1,pwoer=2'], 'did you mean power?'),
        (['--against', 'fulll'], '--against fulll is not among the methods\n  these are: full, linear'),
        (['--cfg-options', 'optim_wraper.x=1'], "did you mean 'optim_wrapper'"),
        (['--devices', '0', '0'], 'devices=0,0 names a GPU twice'),
        (['--metric', 'acuracy'], "the metric 'acuracy' is not among those of"),
        (['--report-only'], 'is finished, so there is nothing to compare'),
    ],
)
def test_mistakes(stand_in, drawn, tmp_path, capsys, options, message):
    assert stand_in(*options, told=PLAN) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / 'work').exists() == (options[0] == '--metric')


def test_the_page():
    """The methods and options of docs/compare.md, and the command of its example, are read as it says."""
    page = (REPO / 'docs' / 'compare.md').read_text()
    words = [word for line in page.splitlines() if line.startswith('| `') for word in re.findall(r'`([^`]+)`', line)]
    table = page[: page.index('## Options')]
    methods = [word for word in words if f'`{word}`' in table and not word.startswith(('mine=FILE', 'max_level'))]
    assert len(methods) > 15
    for word in methods:
        if word != 'olor':
            parse_method(word.replace("'", ''), base())
    options = {word.split()[0] for word in re.findall(r'`(--[^`]+)`', page)}
    known = {option for action in parser()._actions for option in action.option_strings}
    assert options <= {*known, '--resume'}
    assert {*known} - {'-h', '--help', '--methods'} <= options
    small = page[page.index('`small.py`') :]
    commands = [page.split('```bash\n')[1].split('```')[0], small.split('```bash\n')[1].split('```')[0]]
    for command in commands:
        args = parser().parse_args(shlex.split(command.replace('\\\n', ' '))[2:])
        assert [parse_method(word, base()).label for word in args.methods] == args.methods


@pytest.mark.parametrize('options', [['--sedes', '0'], ['--which', 'lats'], ['--test', 'pared'], ['--rule', 'greatr']])
def test_mistakes_that_argparse_finds(stand_in, capsys, options):
    with pytest.raises(SystemExit) as ended:
        stand_in(*options)
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_config_with_a_method_is_refused(stand_in, tmp_path, capsys):
    write_config(tmp_path, "model = dict(type='olor_mm.Tuned', of='ToyModel', method='Linear')\n")
    assert stand_in() == 2
    assert "the config has a method already: model.method='Linear'" in capsys.readouterr().err


def test_changed_settings(stand_in, drawn, tmp_path, capsys):
    assert stand_in(told=PLAN) == 0
    write_config(tmp_path, "train_cfg['max_epochs'] = 4\n")
    assert stand_in(told=PLAN) == 2
    assert 'train_cfg.max_epochs: there 3, here 4' in capsys.readouterr().err


def real(config, work_dir):
    arguments = [config, '--methods', 'full', 'linear', '--seeds', '0', '1', '--work-dir', work_dir, '--workers', '2']
    arguments.append('--skip-kept')
    return run_command(compare, [str(each) for each in arguments])


@pytest.mark.slow
def test_the_real_tool_stopped_and_whole(tmp_path, monkeypatch, capsys):
    """Interrupted in its first runs and then given again, against one that never stopped."""
    monkeypatch.setenv('PYTHONPATH', environment()['PYTHONPATH'])
    config = write_config(tmp_path, SLOW.replace('0.2', '0.05'))

    def press():
        while not (tmp_path / 'stopped' / 'full' / 'seed_0' / 'epoch_1.pth').exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert real(config, tmp_path / 'stopped') == 130
    thread.join()
    assert 'to go on, give the same command again' in capsys.readouterr().err
    for name in ('stopped', 'whole'):
        assert real(config, tmp_path / name) == 0
    stopped, whole = (json.loads((tmp_path / name / 'report.json').read_text()) for name in ('stopped', 'whole'))
    for one, other in zip(stopped['methods'], whole['methods'], strict=True):
        for key in ('method', 'values', 'mean', 'std', 'trained', 'parameters', 'difference', 'failed'):
            assert one[key] == other[key], key
    full, linear = whole['methods']
    assert (full['trained'], linear['trained']) == (290, 18)
    assert len({*full['values'].values()}) == 2
    assert full['memory'] > 50
    assert full['seconds_per_iter'] > 0.05


@pytest.mark.slow
@pytest.mark.skipif(not (REPO / 'tools' / 'forgetting.py').is_file(), reason='tools/forgetting.py measures it')
def test_the_real_distance(tmp_path, monkeypatch):
    """From the weights that the backbone began with, by hand; of a frozen one it is 0."""
    monkeypatch.setenv('PYTHONPATH', environment()['PYTHONPATH'])
    backbone = ToyModel().backbone
    torch.save(backbone.state_dict(), tmp_path / 'start.pth')
    start = f"model['backbone'] = dict(init_cfg=dict(type='Pretrained', checkpoint={str(tmp_path / 'start.pth')!r}))\n"
    start += "val_dataloader['dataset']['pipeline'] = []\n"
    tested = 'test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict()\n'
    config = write_config(tmp_path, start + tested)
    arguments = [config, '--methods', 'full', 'linear', '--work-dir', tmp_path / 'work', '--workers', '2']
    assert run_command(compare, [str(each) for each in arguments]) == 0
    state = load_from_local(str(tmp_path / 'work' / 'full' / 'seed_0' / 'epoch_3.pth'), 'cpu')['state_dict']
    pairs = [(state[f'backbone.{name}'], value.detach()) for name, value in backbone.named_parameters()]
    wanted = math.sqrt(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))
    found = {row['method']: row['kept']['distance from theta_0']['mean'] for row in results(tmp_path)['methods']}
    assert found == {'full': pytest.approx(wanted, rel=1e-5), 'linear': 0}


def test_settings_given_in_several_options_add_up():
    args = parser().parse_args(['x.py', '--methods', 'full', '--cfg-options', 'a=1', 'b=2', '--cfg-options', 'c=3'])
    assert args.cfg_options == ['a=1', 'b=2', 'c=3']
