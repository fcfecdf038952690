"""tools/search.py with a stand-in for the training: points, order, stops and resumes, Optuna, and what is written."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from olor_mm.tooling import figures, run_command
from olor_mm.tooling.errors import InputError, explain
from olor_mm.tooling.figures import save_charts
from olor_mm.tooling.runs.child import _lock
from olor_mm.tooling.runs.progress import Plain
from olor_mm.tooling.search import report, search
from tests.test_tools import _search_driver, _search_stand_in
from tests.test_tools._search import CONFIG
from tests.test_tools._search_stand_in import EPOCHS, accuracy
from tests.test_tools._small import environment

GRID = ['--levels', '1e-3', '1e-2', '1e-1', '--powers', '1', '2']


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder with the toy's config, and the stand-in in the place of tools/train.py."""
    _search_stand_in.use(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    # Drawing takes longer than all that is drawn.
    monkeypatch.setattr(report, 'save_charts', lambda charts, *arguments, **options: [])
    Path('toy.py').write_text(CONFIG.replace('max_epochs=2', f'max_epochs={EPOCHS}'))
    return tmp_path


def run(*options, config='toy.py'):
    code = 0
    try:
        search([config, '--work-dir', 'out', *map(str, options)])
    except SystemExit as end:
        code = end.code
    results = json.loads(Path('out', 'results.json').read_text())
    assert code == any(trial['state'] == 'failed' for trial in results['trials'])
    return results


def refused(*options, config='toy.py'):
    with pytest.raises((InputError, ValueError)) as caught:
        search([config, '--work-dir', 'out', *map(str, options)])
    # What a user is told, and not as a bug.
    return str(explain(caught.value))


def events():
    file = Path('events')
    return file.read_text().split('\n')[:-1] if file.is_file() else []


def told(results):
    """What was tried, and what came out."""
    return sorted((t['max_level'], t['power'] or 0, t['state'], *t['values'].values()) for t in results['trials'])


def lives(pid):
    try:
        return Path('/proc', str(pid), 'stat').read_text().rpartition(') ')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------- the grid


def test_grid(folder, monkeypatch, capsys):
    pytest.importorskip('plotly')
    monkeypatch.setattr(report, 'save_charts', save_charts)
    results = run(*GRID)
    expected = {(level, power): accuracy(level, power, 3, EPOCHS) for level in (1e-3, 1e-2, 1e-1) for power in (1, 2)}
    found = {(t['max_level'], t['power']): t['mean'] for t in results['trials'] if t['max_level']}
    assert found == pytest.approx(expected)
    plain = results['trials'][0]
    assert (plain['max_level'], plain['mean']) == (0, pytest.approx(accuracy(0, 2, 3, EPOCHS)))
    assert events()[0] == 'level-0_seed-3'
    assert len(events()) == 7
    assert (results['best']['max_level'], results['best']['power']) == (1e-2, 2)
    assert results['gain'] == pytest.approx(expected[1e-2, 2] - plain['mean'])
    assert (results['helps'], results['p']) == (None, None)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert Path('out/results.md').read_text().splitlines()[: len(table)] == table
    best = expected[1e-2, 2]
    assert table[2] == f'| 0.01 | 2 | **{best:.2f}** | {best - plain["mean"]:+.2f} |'
    assert [float(line.split('|')[3].strip(' *')) for line in table[2:]] == [
        float(f'{value:.2f}') for value in sorted([*expected.values(), plain['mean']], reverse=True)
    ]
    rows = list(csv.DictReader(Path('out/results.csv').read_text().splitlines()))
    assert {(float(row['max_level']), row['power']): float(row['toy/accuracy']) for row in rows} == pytest.approx(
        {(0.0, ''): plain['mean'], **{(level, f'{power:.1f}'): value for (level, power), value in expected.items()}}
    )
    assert Path('out/search.png').stat().st_size > 1000
    assert 'toy/accuracy' in Path('out/search.html').read_text()


def test_without_the_packages_for_pictures(folder, monkeypatch, capsys):
    monkeypatch.setattr(report, 'save_charts', save_charts)
    monkeypatch.setitem(sys.modules, 'plotly', None)
    monkeypatch.delitem(sys.modules, 'olor_mm.tooling.figures.page', raising=False)
    monkeypatch.delattr(figures, 'page', raising=False)
    assert run('--levels', '1e-2', '--powers', '2')['best']['max_level'] == 1e-2
    text = capsys.readouterr()
    assert text.err.count('no pictures') == 2
    assert 'pip install matplotlib optuna plotly scikit-learn' in text.err
    assert '| 0.01 | 2 | **' in text.out
    assert not Path('out/search.png').exists()


def test_parallel_is_sequential(folder):
    one = run(*GRID, '--seeds', '0', '1')
    Path('out').rename('one')
    two = run(*GRID, '--seeds', '0', '1', '--workers', '3')
    assert told(one) == told(two)
    assert {k: one[k] for k in ('gain', 'p', 'helps', 'verdict')} == {
        k: two[k] for k in ('gain', 'p', 'helps', 'verdict')
    }
    assert Config.fromfile('out/toy_best.py').to_dict() == Config.fromfile('one/toy_best.py').to_dict()


def test_what_is_finished_stays(folder):
    run(*GRID)
    before = events()
    wider = run('--levels', '1e-3', '1e-2', '1e-1', '1', '--powers', '1', '2', '--seeds', '3', '4')
    new = events()[len(before) :]
    assert len(new) == len(set(new)) == (1 + 8) * 2 - 7
    assert not set(new) & set(before)
    assert {len(t['values']) for t in wider['trials']} == {2}
    trial = next(t for t in wider['trials'] if (t['max_level'], t['power']) == (1.0, 1.0))
    values = [accuracy(1.0, 1, seed, EPOCHS) for seed in (3, 4)]
    assert trial['mean'] == pytest.approx(sum(values) / 2)
    assert trial['sd'] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_a_run_that_fails(folder, capsys):
    Path('fail-0.01').touch()
    results = run(*GRID)
    assert {t['max_level'] for t in results['trials'] if t['state'] == 'failed'} == {1e-2}
    assert results['best']['max_level'] == 1e-1
    text = capsys.readouterr()
    assert '| 0.01 | 2 | failed | - |' in text.out
    assert 'out of something' in text.err
    Path('fail-0.01').unlink()
    assert run(*GRID)['best']['max_level'] == 1e-2
    assert len(events()) == 9


def test_nothing_but_failures(folder):
    Path('fail-0').touch()
    Path('fail-0.01').touch()
    said = refused('--levels', '1e-2', '--powers', '1')
    assert 'no trial has come to its end' in said
    assert 'out of something' in said
    Path('fail-0.01').unlink()
    results = run('--levels', '1e-2', '--powers', '1')
    assert results['helps'] is None
    assert 'cannot be said' in ' '.join(results['verdict'])


def test_checkpoints(folder):
    results = run(*GRID)
    kept = {t['max_level'] for t in results['trials'] if Path(t['work_dirs']['3'], 'epoch_1.pth').exists()}
    assert kept == {0.0, 1e-2}
    assert len([*Path('out').glob('runs/*/epoch_1.pth')]) == 2
    Path('out').rename('one')
    run(*GRID, '--keep', 'all')
    assert len([*Path('out').glob('runs/*/epoch_1.pth')]) == 7


def kill_and_resume(folder, options, level, epoch):
    """Kill a search, as the system does, while it waits in an epoch of a run; then go on."""
    gate = Path(f'wait-{level:.3g}-{epoch}')
    gate.touch()
    argv = ['toy.py', '--work-dir', 'out', *options]
    command = [sys.executable, _search_driver.__file__, *argv]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    mark = Path(f'waits-{level:.3g}')
    wait_for(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    # No run outlives the search.
    wait_for(lambda: not lives(int(mark.read_text())))
    gate.unlink()
    before = events()
    return run(*options), before


def test_killed(folder):
    results, before = kill_and_resume(folder, GRID, 1e-2, 3)
    assert before == ['level-0_seed-3', 'level-0.001_power-1_seed-3', 'level-0.01_power-1_seed-3']
    assert events()[len(before)] == 'level-0.01_power-1_seed-3 again'
    assert len(events()) == 8
    Path('out').rename('one')
    assert told(results) == told(run(*GRID))


def test_interrupted(folder, monkeypatch, capsys):
    def now(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Plain, 'done', now)
        assert run_command(search, ['toy.py', '--work-dir', 'out', *GRID]) == 130
    assert 'to go on, give the same command again' in capsys.readouterr().err
    assert len(run(*GRID)['trials']) == 7


def test_two_at_the_same_time(folder):
    Path('out').mkdir()
    with _lock(Path('out')):
        assert 'going on in out already' in refused(*GRID)
    assert not events()
    assert len(run(*GRID)['trials']) == 7


# ---------------------------------------------------------------- what is said


def test_olor_that_does_not_help(folder, monkeypatch, capsys):
    monkeypatch.setattr(_search_stand_in, 'PLAIN', 1e-2)
    # Where all levels are worse than what plain fine-tuning is like.
    results = run('--levels', '1e-7', '--powers', '2')
    assert results['best']['max_level'] == 0
    assert results['helps'] is False
    assert results['gain'] == 0
    said = capsys.readouterr().out
    assert 'OLOR does not help here' in said
    assert 'With one seed it cannot be known' in said
    assert Config.fromfile('out/toy_best.py').optim_wrapper.rollback.max_level == 0


def test_less_is_better(folder):
    results = run(*GRID, '--mode', 'min')
    assert results['best']['mean'] == min(t['mean'] for t in results['trials'])
    assert (results['mode'], results['best']['max_level']) == ('min', 0.1) or results['best']['max_level'] == 0


def test_last_and_best(folder):
    """The stand-in grows from epoch to epoch; where less is better the best is the first."""
    options = ['--levels', '1e-2', '--powers', '2', '--mode', 'min']
    assert run(*options, '--which', 'best')['trials'][1]['mean'] == pytest.approx(accuracy(1e-2, 2, 3, 1))
    assert run(*options, '--which', 'last')['trials'][1]['mean'] == pytest.approx(accuracy(1e-2, 2, 3, 4))


def test_a_wrong_metric_is_found_with_the_first_validation(folder):
    Path('wait-0-2').touch()
    assert 'these are: toy/accuracy' in refused('--metric', 'acc')
    assert not Path('out/runs/level-0_seed-3/epoch_1.pth').exists()
    assert not lives(int(Path('waits-0').read_text()))


def test_the_same_data(folder, capsys):
    extra = 'test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg\n'
    Path('toy.py').write_text(CONFIG + extra)
    results = run('--levels', '1e-2', '--powers', '2')
    warning = 'val_dataloader and test_dataloader read the same images'
    assert warning in capsys.readouterr().err
    assert any(warning in line for line in results['verdict'])
    Path('toy.py').write_text(f'{CONFIG}val_dataloader["dataset"] = train_dataloader["dataset"]\n{extra}')
    Path('out').rename('one')
    assert any('val_dataloader and train_dataloader' in line for line in run('--levels', '1e-2')['verdict'])
    Path('toy.py').write_text(
        f'{CONFIG}test_dataloader = dict(val_dataloader, dataset=dict(type="SearchData", seed=2))\n'
    )
    Path('out').rename('two')
    assert not any('the same images' in line for line in run('--levels', '1e-2')['verdict'])


# ---------------------------------------------------------------- Optuna


def study(file='out/optuna.db', name='out'):
    optuna = pytest.importorskip('optuna')
    return optuna.load_study(study_name=name, storage=f'sqlite:///{Path(file).absolute()}')


def asked(name='out'):
    """The points of a study in their order, each once."""
    found = {}
    for trial in study(f'{name}/optuna.db').trials:
        found.setdefault(trial.user_attrs['name'], (trial.params['max_level'], trial.params['power']))
    return list(found.values())


@pytest.mark.parametrize('sampler', ['tpe', 'RandomSampler'])
def test_study(folder, sampler):
    pytest.importorskip('optuna')
    options = ['--sampler', sampler, '--trials', '6', '--powers', '1', '2']
    results = run(*options)
    assert len(results['trials']) == 7
    assert events()[0] == 'level-0_seed-3'
    for trial in results['trials'][1:]:
        assert 1e-4 <= trial['max_level'] <= 1
        value = accuracy(trial['max_level'], trial['power'], 3, EPOCHS)
        assert trial['mean'] == pytest.approx(value)
    values = [trial.value for trial in study().trials]
    assert values == pytest.approx([trial['mean'] for trial in results['trials'][1:]])
    assert all(len(trial.intermediate_values) == EPOCHS for trial in study().trials)
    assert len({trial['max_level'] for trial in results['trials']}) == 7
    # More of them, and the same again.
    more = run(*options[:3], '8', *options[4:])
    assert told(more)[0] == told(results)[0]
    assert len(events()) == len(more['trials']) == 9


def test_a_study_that_was_killed_has_the_same_trials(folder):
    pytest.importorskip('optuna')
    options = ['--sampler', 'tpe', '--sampler-options', 'n_startup_trials=2', '--trials', '5', '--powers', '1', '2']
    whole = run(*options)
    points = asked()
    Path('out').rename('whole')
    Path('events').unlink()
    results, before = kill_and_resume(folder, options, points[3][0], 2)
    assert before[-1] == 'trial-3_seed-3'
    assert events()[len(before)] == 'trial-3_seed-3 again'
    assert asked() == points
    assert told(results) == told(whole)
    states = [trial.state.name for trial in study().trials]
    assert states == ['COMPLETE'] * 3 + ['FAIL'] + ['COMPLETE'] * 2


def test_a_parallel_study(folder):
    pytest.importorskip('optuna')
    options = ['--sampler', 'random', '--trials', '5', '--seeds', '0', '1']
    one = run(*options)
    Path('out').rename('one')
    assert told(run(*options, '--workers', '3')) == told(one)
    assert asked('one') == asked()


def test_pruning_stops_a_run(folder, monkeypatch):
    pytest.importorskip('optuna')
    monkeypatch.setenv('STAND_IN_SECONDS', '0.15')
    # Whatever is below is stopped at its first validation; plain fine-tuning is below too, and goes on.
    options = ['--levels', '1e-2', '1', '--powers', '2']
    results = run(*options, '--pruner', 'threshold', '--pruner-options', 'lower=78')
    assert accuracy(1, 2, 3, EPOCHS) < 78 < accuracy(1e-2, 2, 3, 1)
    assert accuracy(0, 2, 3, 1) < 78
    states = {trial['max_level']: trial['state'] for trial in results['trials']}
    assert states == {0: 'complete', 1e-2: 'complete', 1: 'pruned'}
    pruned = next(trial for trial in results['trials'] if trial['state'] == 'pruned')
    work_dir = Path(pruned['work_dirs']['3'])
    record = json.loads((work_dir / 'run.json').read_text())
    assert record['state'] == 'stopped'
    lines = sum(len(file.read_text().splitlines()) for file in work_dir.glob('*/vis_data/scalars.json'))
    assert 1 <= lines < EPOCHS
    assert 'threshold' in pruned['note']
    assert sorted(trial.state.name for trial in study().trials) == ['COMPLETE', 'PRUNED']
    before = events()
    run(*options, '--pruner', 'threshold', '--pruner-options', 'lower=78')
    assert events() == before


def test_pruning_by_the_median_of_seeds(folder, monkeypatch):
    """The steps of the second seed go on from those of the first."""
    pytest.importorskip('optuna')
    run('--sampler', 'random', '--trials', '2', '--seeds', '0', '1', '--pruner', 'median')
    for trial in study().trials:
        expected = [accuracy(*trial.params.values(), seed, epoch) for seed in (0, 1) for epoch in range(1, EPOCHS + 1)]
        assert [*trial.intermediate_values.values()] == pytest.approx(expected)
        assert sorted(trial.intermediate_values)[:2] == [1, 2]
        assert trial.value == pytest.approx((expected[3] + expected[7]) / 2)


def test_a_sampler_that_lacks_a_package(folder, monkeypatch):
    """It is said before the first run; Optuna looks for it after some trials."""
    pytest.importorskip('optuna')
    monkeypatch.setitem(sys.modules, 'cmaes', None)
    assert '--sampler cmaes needs a package' in refused('--sampler', 'cmaes')
    assert not events()


def test_without_optuna(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    said = refused('--sampler', 'tpe')
    assert 'pip install matplotlib optuna plotly scikit-learn' in said
    assert '--sampler grid needs none of it' in said


def test_storage(folder):
    optuna = pytest.importorskip('optuna')
    options = ['--sampler', 'random', '--trials', '2', '--storage', 'kept/journal.log', '--study', 'mine']
    run(*options)
    backend = optuna.storages.journal.JournalFileBackend('kept/journal.log')
    loaded = optuna.load_study(study_name='mine', storage=optuna.storages.JournalStorage(backend))
    assert len(loaded.trials) == 2
    assert 'is to maximize its metric' in refused(*options[:4], '--mode', 'min', *options[4:])
    Path('out').rename('one')
    assert 'cannot be used' in refused(*options[:4], '--storage', 'mysql+nothing://x/y')


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--metric', 'toy/acuracy', '--mode', 'max'], 'did you mean: --metric toy/accuracy'),
        (['--metric', 'acc'], 'these are: toy/accuracy, toy/distance, '),
        (['--metric', 'toy/distance'], '--mode max or --mode min'),
        (['--levels', '2'], 'at most 1'),
        (['--levels', '0', '0.1'], 'level 0, plain fine-tuning, is always among the trials'),
        (['--powers', '0'], 'above 0'),
        (['--min-level', '0.5'], 'smallest of the levels, 0.0001'),
        (['--seeds', '-1'], 'a whole number of 0 or more'),
        (['--workers', '0'], '--workers 0'),
        (['--sampler', 'tpf'], 'did you mean: --sampler tpe'),
        (['--sampler', 'tpe', '--pruner', 'medan'], 'did you mean: --pruner median'),
        (['--sampler', 'tpe', '--sampler-options', 'n_startup=2'], 'did you mean: n_startup_trials'),
        (['--sampler', 'tpe', '--pruner', 'median', '--pruner-options', 'n_warmup=1'], 'n_warmup_steps'),
        (['--sampler', 'tpe', '--pruner', 'median', '--pruner-options', 'n_warmup_steps=-1'], 'n_warmup_steps=-1'),
        (['--sampler', 'tpe', '--pruner', 'percentile'], '--pruner-options takes: percentile'),
        (['--sampler', 'tpe', '--sampler-options', 'seed'], 'takes key=value pairs'),
        (['--sampler', 'tpe', '--trials', '0'], '--trials 0'),
        (['--storage', 'x.db'], 'add: --sampler tpe'),
        (['--on-grid'], 'add: --sampler tpe'),
        (['--cfg-options', 'optim_wrapper.rollback.max_level=0.1'], '--levels 0.1'),
        (['--cfg-options', 'randomness.seed=1'], '--seeds 1'),
        (['--cfg-options', 'optim_wraper.rollback.index=tensor'], "did you mean 'optim_wrapper'"),
        (['--cfg-options', 'optim_wrapper.rollback.indx=tensor'], 'did you mean index'),
        (
            ['--cfg-options', 'optim_wrapper.rollback.rule=projection', 'optim_wrapper.rollback.radius=1'],
            'has a radius',
        ),
        (['--pretrained', 'nowhere.pth'], 'one backbone'),
        (['--amp'], 'accelerator'),
    ],
)
def test_refused(folder, monkeypatch, options, message):
    if '--sampler' in options:
        pytest.importorskip('optuna')
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert message in refused(*options)
    assert len(events()) <= 1


@pytest.mark.parametrize('option', ['--grid=papr', '--mode=maximum', '--which=first', '--keep=some', '--levls=1'])
def test_usage(folder, capsys, option):
    with pytest.raises(SystemExit) as caught:
        search(['toy.py', option])
    assert caught.value.code == 2
    assert option.partition('=')[2] in capsys.readouterr().err or option == '--levls=1'


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        ('val_dataloader = val_evaluator = val_cfg = None', 'validation data, and the config has none'),
        ('optim_wrapper = dict(a=optim_wrapper, b=optim_wrapper)', 'OptimWrapperDict'),
    ],
)
def test_configs_that_cannot_be_searched(folder, extra, message):
    Path('toy.py').write_text(f'{CONFIG}{extra}\n')
    assert message in refused()


def test_another_search(folder):
    pytest.importorskip('optuna')
    run('--levels', '1e-2', '--powers', '2')
    assert "sampler='grid'" in refused('--sampler', 'tpe')
    Path('other.py').write_text(CONFIG)
    assert 'config=' in refused(config='other.py')
    assert 'other settings' in refused('--levels', '1e-2', '--powers', '2', '--cfg-options', 'train_cfg.max_epochs=3')
    assert os.listdir('out/runs')
