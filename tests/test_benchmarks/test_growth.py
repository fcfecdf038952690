"""`benchmarks/growth.py` runs, small, and its fits are those of known lines."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def test_fits(part):
    growth = part('growth')
    exact = growth.least_squares([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert exact == pytest.approx({'slope': 2.0, 'error': 0.0, 'intercept': 3.0})
    # By hand: the slope of 0, 1, 1 at 0, 1, 2 is 1/2, what is left is -1/6, 1/3, -1/6.
    rough = growth.least_squares([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])
    assert rough == pytest.approx({'slope': 0.5, 'error': math.sqrt(1 / 12), 'intercept': 1 / 6})
    assert growth.least_squares([1.0, 2.0], [1.0, 2.0]) is None


def test_the_exponent_is_that_of_the_power_and_leaves_out_what_was_not_measured(part):
    growth = part('growth')
    points = [
        {'parameters': size, **{kind: {'seconds': [1e-9 * size**0.75] * 3} for kind in growth.VARIANTS}}
        for size in (10**4, 10**5, 10**6, 10**7)
    ]
    points.append({'parameters': 10**8, **{kind: {'note': growth.NO_MEMORY} for kind in growth.VARIANTS}})
    fit = growth.fits(points, 'parameters', large=10**5)['pull']
    assert fit['exponent']['slope'] == pytest.approx(0.75)
    assert fit['exponent of the large']['slope'] == pytest.approx(0.75)


@pytest.mark.slow
def test_it_measures_every_point_that_fits(part, tmp_path, monkeypatch):
    command = [sys.executable, str(REPO / 'benchmarks' / 'growth.py'), '--device', 'cpu', '--out', str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([*command, '--small', '--rounds', '4'], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads((tmp_path / 'growth_cpu.json').read_text())
    assert {name: len(points) for name, points in result['series'].items()} == {
        'parameters': 4,
        'tensors': 3,
        'levels': 3,
    }
    *fitting, too_large = result['series']['parameters']
    assert all(len(point[kind]['seconds']) == 4 for point in fitting for kind in ('pull', 'fused SGD', 'single pass'))
    assert all(too_large[kind]['note'] == 'not measured: memory' for kind in ('pull', 'fused SGD', 'single pass'))
    # The pull is one operator a level, however many tensors there are.
    assert len({point['pull']['launches'] for point in result['series']['tensors']}) == 1
    assert (tmp_path / 'growth_cpu.md').read_text() in run.stdout
    monkeypatch.setattr(part('pages'), 'RESULTS', tmp_path)
    assert part('pages').block('growth, CPU') == (tmp_path / 'growth_cpu.md').read_text().rstrip()
