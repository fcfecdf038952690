"""The benchmarks run, small; no time is asserted."""

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
    'step': ['--small', '--rounds', '4'],
    'train': ['--small', '--rounds', '4', '--size', '96', '128'],
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
