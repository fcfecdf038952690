"""tools/search.py with the real tools/train.py: what is chosen, and that the config it writes trains to the same."""

import json
import os
from pathlib import Path

import pytest

from olor_mm.tooling.runs import read_run
from olor_mm.tooling.search import search
from tests.test_tools._search import CONFIG
from tests.test_tools._small import REPO, environment, tool


@pytest.mark.slow
def test_real_runs(tmp_path, monkeypatch, capsys):
    """A network that knows the answer, and noisy labels: the pull keeps what it knows."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    Path('toy.py').write_text(CONFIG)
    options = ['--levels', '0.5', '--powers', '2', '--seeds', '1', '--work-dir', 'out']
    search(['toy.py', *options, '--cfg-options', 'train_dataloader.batch_size=8'])
    results = json.loads(Path('out/results.json').read_text())
    plain, pulled = results['trials']
    assert pulled['mean'] > plain['mean'] + 1
    assert results['best'] == pulled
    assert 'With one seed it cannot be known' in capsys.readouterr().out
    found = {trial['max_level']: read_run(trial['work_dirs']['1']) for trial in (plain, pulled)}
    assert 'rollback/discrepancy' in found[0.5].curves
    assert found[0.5].last['toy/accuracy'] == pulled['mean']
    # Plain fine-tuning goes through the same code: nothing is pulled, and nothing is logged.
    assert 'rollback/discrepancy' not in found[0].curves
    os.makedirs('else where')
    done = tool('train.py', tmp_path / 'out' / 'toy_best.py', cwd=tmp_path / 'else where')
    assert done.returncode == 0, done.stderr[-2000:]
    again = read_run('else where/work_dirs/toy_best')
    assert again.last['toy/accuracy'] == pulled['mean']
    assert again.curves['loss'] == found[0.5].curves['loss']


@pytest.mark.slow
def test_the_tool(tmp_path):
    """The command itself: its help, its mistakes, from another folder."""
    (tmp_path / 'toy.py').write_text(CONFIG)
    done = tool('search.py', '--help', cwd=tmp_path)
    assert done.returncode == 0
    assert '--levels' in done.stdout
    done = tool('search.py', 'toy.py', '--levels', '2', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: --levels 2')
    assert not (tmp_path / 'work_dirs').exists()
    assert (REPO / 'tools' / 'search.py').is_file()
