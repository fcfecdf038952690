"""The benchmarks run, small; no time is asserted."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
JOBS = {
    'means': ['--small', '--rounds', '4'],
}


@pytest.mark.parametrize('name', JOBS)
def test_it_measures_every_variant(name, tmp_path):
    command = [sys.executable, str(REPO / 'benchmarks' / f'{name}.py'), '--device', 'cpu', '--out', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([*command, *JOBS[name]], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / f'{name}_cpu.json').read_text())
    assert {'device', 'torch', 'olor_mm'} <= result['machine'].keys()
    assert len(result['seconds']) >= 3
    for values in result['seconds'].values():
        assert len(values) == 4
        assert all(math.isfinite(value) and value > 0 for value in values)
    table = (tmp_path / f'{name}_cpu.md').read_text()
    assert table in run.stdout
    assert all(variant in table for variant in result['seconds'])


def test_train_measures_every_form_of_each_model(tmp_path):
    command = [sys.executable, str(REPO / 'benchmarks' / 'train.py'), '--device', 'cpu', '--out', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    # The detector, small as it is, takes a minute.
    command += ['--small', '--rounds', '2', '--model', 'ViT-B classifier', 'UperNet, ViT-B']
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    table = (tmp_path / 'train_cpu.md').read_text()
    assert table in run.stdout
    models = json.loads((tmp_path / 'train_cpu.json').read_text())['models']
    assert len(models) == 2
    for name, found in models.items():
        assert table.count(f'| {name} |') == 2
        assert found['pulled'] > 0
        for what in ('seconds', 'steps', 'added'):
            for form, values in found[what].items():
                assert len(values) == 2
                # What is added by a single pass is a difference, and may be negative.
                assert all(math.isfinite(v) and (v > 0 or 'single' in form) for v in values)
        for step, whole in zip(found['steps']['OLOR'], found['seconds']['OLOR'], strict=True):
            assert step < whole
        for added, step in zip(found['added']['OLOR'], found['steps']['OLOR'], strict=True):
            assert added < step


def test_startup_measures_its_parts(tmp_path):
    command = [sys.executable, str(REPO / 'benchmarks' / 'startup.py'), '--small', '--rounds', '2']
    command += ['--model', 'ViT-B classifier', '--out', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / 'startup_cpu.md').read_text() in run.stdout
    assert (tmp_path / 'startup_resume_cpu.md').read_text() in run.stdout
    (found,) = json.loads((tmp_path / 'startup_cpu.json').read_text())['models'].values()
    parts = {name: values for name, values in found['seconds'].items() if name not in ('plain', 'OLOR', 'the rest')}
    assert len(parts) == 6
    assert all(value > 0 for values in parts.values() for value in values)
    for row in zip(*found['seconds'].values(), strict=True):
        seconds = dict(zip(found['seconds'], row, strict=True))
        assert sum(row) - seconds['OLOR'] == pytest.approx(seconds['OLOR'])
    assert found['resume']['OLOR']['bytes'] > found['resume']['plain']['bytes']


def test_a_verdict_needs_all_of_the_interval():
    sys.path.insert(0, str(REPO / 'benchmarks'))
    try:
        judging = importlib.import_module('_train.judging')
    finally:
        sys.path.remove(str(REPO / 'benchmarks'))
    assert judging.interval([0.01] * 5) == (0.01, 0.01, 0.01)
    low, middle, high = judging.interval([0.0, 0.02, 0.04, 0.06, 0.08])
    assert low < middle == 0.04 < high
    assert judging.interval([0.0, 0.02, 0.04, 0.06, 0.08]) == (low, middle, high)
    assert judging.verdict((0.0, 0.02, 0.03), 0.03) == 'pass'
    assert judging.verdict((0.031, 0.04, 0.05), 0.03) == 'fail'
    assert judging.verdict((0.0, 0.01, 0.05), 0.03) == 'too noisy to tell'


def test_precision_keeps_what_rounding_to_the_nearest_loses(tmp_path):
    command = [sys.executable, str(REPO / 'benchmarks' / 'precision.py'), '--device', 'cpu', '--out', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([*command, '--small', '--rounds', '2'], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    for row in json.loads((tmp_path / 'precision_cpu.json').read_text())['left'].values():
        lost = 1 - row['exact']
        assert abs(row['bfloat16, ours'] - row['exact']) < 0.2 * lost
        assert abs(row['float16, ours'] - row['exact']) < 0.1 * lost
        assert row['bfloat16, nearest'] > row['exact'] + 0.1 * lost


def test_memory_is_what_the_dtypes_say(tmp_path):
    command = [sys.executable, str(REPO / 'benchmarks' / 'memory.py'), '--small', '--out', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    runs = json.loads((tmp_path / 'memory_cpu.json').read_text())['runs']
    assert len(runs) == 4
    for found in runs:
        assert found['measured'] == found['computed']
        assert 0 < found['measured']['theta_0'] < found['measured']['weights']
    assert (tmp_path / 'memory_cpu.md').read_text() in run.stdout


@pytest.mark.parametrize(
    ('network', 'setting', 'method'),
    [('deit-tiny', 'photo', 'OLOR'), ('mobilenetv2', 'mixed', 'Linear')],
)
def test_pacs_is_learned(network, setting, method, tmp_path, shared_data):
    """Real images, real weights, tools/train.py; 14% is chance."""
    command = [sys.executable, str(REPO / 'benchmarks' / 'pacs.py'), '--data-root', str(shared_data / 'pacs')]
    command += ['--weights', str(shared_data / 'weights'), '--work-dir', str(tmp_path), '--out', str(tmp_path)]
    command += ['--networks', network, '--settings', setting, '--methods', method]
    command += ['--images', '800', '--test-images', '140', '--epochs', '2']
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / f'pacs_{network}.json').read_text())
    ((top1,),) = [row[method] for row in result['top1'].values()]
    assert top1 > 2 * 100 / 7
    (log,) = tmp_path.glob('*/log.txt')
    assert ('tensors from' in log.read_text()) == (method == 'OLOR')
    # A run that has ended is not repeated.
    before = log.stat().st_mtime_ns
    assert subprocess.run(command, env=env, capture_output=True, timeout=600).returncode == 0
    assert log.stat().st_mtime_ns == before


def test_anchor_memory_measures_every_way(tmp_path):
    command = [sys.executable, str(REPO / 'benchmarks' / 'anchor_memory.py'), '--small', '--rounds', '4']
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([*command, '--out', str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / 'anchor_memory_cpu.json').read_text())
    sizes = {name: found['checkpoint'] for name, found in result['ways'].items()}
    theta_0 = 4 * result['about']['pulled']
    without = sizes['no rollback']
    assert sizes['plain'] - without > theta_0
    # In the weights' dtype, whatever it is kept in.
    assert sizes["anchor_dtype='lossless'"] == pytest.approx(sizes['plain'], rel=0.01)
    assert sizes["anchor_saved='reference'"] - without < 0.2 * theta_0
    for name, found in result['ways'].items():
        assert all(len(values) == 4 for values in found['seconds'].values()), name
    table = (tmp_path / 'anchor_memory_cpu.md').read_text()
    assert table in run.stdout
    # On the CPU nothing is said of a GPU.
    lines = [line for line in table.splitlines() if 'pinned' in line]
    assert len(lines) == 2
    assert all(line.count('not measured') == 7 for line in lines)
