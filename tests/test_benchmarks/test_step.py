"""What `benchmarks/step.py` steps and counts, and that it runs, small; no time is asserted."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from olor_mm.rollback.reference import AdamOLORReference, SGDOLORReference

REPO = Path(__file__).resolve().parents[2]
ENV = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}


@pytest.fixture
def small(part):
    return part('_step.sets').load('UperNet, ViT-B', small=True, device='cpu')


def _loop(part, kind, p, level):
    paper = part('_step.paper')
    levels = {p: level} if level else {}
    d, m, v = ({p: torch.zeros_like(p)} for _ in range(3))
    if kind == 'SGD':
        return paper.SGDLoop([p], levels, d, m, lr=0.01)
    return paper.AdamLoop([p], levels, d, m, v, lr=0.01, decay=0.1 if kind == 'AdamW' else 0.0)


@pytest.mark.parametrize('level', [0.0, 0.05, 1.0])
@pytest.mark.parametrize('kind', ['SGD', 'Adam', 'AdamW'])
def test_the_loop_is_the_papers(part, kind, level):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    if kind == 'SGD':
        truth = SGDOLORReference(p, undamped=True)
    else:
        truth = AdamOLORReference(p, eps_in_sqrt=False, weight_decay=0.1 if kind == 'AdamW' else 0.0)
    loop = _loop(part, kind, p, level)
    for _ in range(6):
        p.grad = torch.randn_like(p)
        expected = truth.step(p.grad, 0.01, level)
        loop.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize('kind', ['AdamW', 'Adam', 'SGD'])
@pytest.mark.parametrize('name', ['fused', 'rollback foreach', 'rollback single_tensor', 'bare addition'])
def test_the_bytes_by_formula_are_those_of_the_operators(part, small, kind, name):
    variant = part('_step.variants').build(kind, name, small)
    counted = part('_step.counting').dispatched(variant.run)[1]
    # Counts of steps are read and written too.
    assert variant.moved <= counted <= variant.moved + 32 * len(small.params)


@pytest.mark.parametrize('kind', ['AdamW', 'SGD'])
def test_a_single_pass_is_counted_as_one_or_called_what_it_is(part, small, kind, monkeypatch):
    variants, counting = part('_step.variants'), part('_step.counting')
    pulled, trained = sum(p.numel() for p in small.levels), sum(p.numel() for p in small.params)
    base = variants.OPTIMIZERS[kind][1] * trained
    variant = variants.build(kind, 'rollback single_pass', small)
    assert not variant.note or shutil.which('g++') is None
    if not variant.note:
        assert variant.moved == base + variants.WITHIN * pulled
        # Its own kernel is no operator that torch dispatches: what is left to the optimizer is counted.
        rest = variant.moved - (variants.OPTIMIZERS[kind][1] + variants.WITHIN) * pulled
        assert rest <= counting.dispatched(variant.run)[1] <= rest + 1000 * len(small.params)
    monkeypatch.setattr('olor_mm.rollback.single_pass.cpu.load', _no_compiler)
    fallen = variants.build(kind, 'rollback single_pass', small)
    assert fallen.note.startswith('fell back to a pull of its own: ')
    assert 'no compiler today' in fallen.note
    assert fallen.moved == base + variants.APART * pulled


def _no_compiler(*_):
    from olor_mm.rollback.single_pass.cpu import BuildError

    raise BuildError('no compiler today')


def test_memory_that_a_step_takes_for_a_while(part):
    counting = part('_step.counting')
    x = torch.ones(1000)
    assert counting.peak(lambda: x.add_(x), 'cpu') == 0
    assert counting.peak(lambda: (x + x) * x, 'cpu') == 8000


def test_views_and_empty_tensors_move_nothing(part):
    counting = part('_step.counting')
    x = torch.ones(1000)
    assert counting.dispatched(lambda: x.view(10, 100).t()) == (2, 0)
    assert counting.dispatched(lambda: torch.empty_like(x)) == (1, 0)
    assert counting.dispatched(lambda: x.copy_(x)) == (1, 8000)
    assert counting.dispatched(lambda: x.add_(x)) == (1, 12_000)
    assert counting.dispatched(lambda: torch._foreach_add_([x, x], [x, x])) == (1, 24_000)
    assert counting.dispatched(lambda: x[:1].expand(1000) * x) == (3, 12_000)


@pytest.mark.parametrize(
    ('ratios', 'itself', 'noisy', 'verdict'),
    [
        ([1.3, 1.4, 1.5], [0.9, 1.0, 1.1], False, 'pass'),
        ([1.4, 1.5, 1.6], [0.9, 1.0, 1.1], False, 'fail'),
        ([1.3, 1.4, 1.5], [0.9, 1.0, 1.1], True, 'not told: too noisy'),
        ([1.1, 1.2, 1.3], [0.9, 1.0, 1.1], True, 'pass'),
        ([1.1, 1.2, 1.3], [0.8, 1.0, 1.1], True, 'not told: too noisy'),
        ([1.7, 1.8, 1.9], [0.9, 1.0, 1.1], True, 'fail'),
        ([1.7, 1.8, 1.9], [0.9, 1.0, 1.3], True, 'not told: too noisy'),
    ],
)
def test_verdicts(part, ratios, itself, noisy, verdict):
    noise = {'too noisy': noisy, 'base against itself': itself}
    found = {'variants': {'rollback foreach': {'ratio': ratios, 'note': ''}}, 'noise': noise}
    row = part('_step.measuring')._time_target('a set', 'AdamW', 'rollback foreach', 1.45, found)
    assert (row['verdict'], row['value']) == (verdict, ratios[1])
    found['variants']['rollback foreach']['note'] = 'fell back'
    row = part('_step.measuring')._time_target('a set', 'AdamW', 'rollback foreach', 1.45, found)
    assert (row['verdict'], row['value']) == ('not measured: fell back', None)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A small run: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp('results')
    command = [sys.executable, str(REPO / 'benchmarks' / 'step.py'), '--device', 'cpu', '--out', str(folder)]
    command += ['--small', '--rounds', '4', '--sets', 'ViT-B classifier']
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout


@pytest.mark.slow
def test_it_measures_every_variant(run):
    folder, printed = run
    result = json.loads((folder / 'step_cpu.json').read_text())
    assert {'device', 'torch', 'olor_mm'} <= result['machine'].keys()
    optimizers = result['sets']['ViT-B classifier']['optimizers']
    assert {kind: len(found['variants']) for kind, found in optimizers.items()} == {'AdamW': 13, 'Adam': 10, 'SGD': 10}
    weights = 4 * result['sets']['ViT-B classifier']['about']['pulled']
    for found in optimizers.values():
        assert isinstance(found['noise']['too noisy'], bool)
        for name, values in found['variants'].items():
            assert len(values['seconds']) == 4
            assert all(math.isfinite(value) and value > 0 for value in values['seconds'])
            assert values['launches'] > 0
            kept = name.startswith('rollback') or name in ('bare addition', 'paper loop', 'L2-SP', 'spd', 'projection')
            assert values['state bytes'] == (weights if kept else 0) or name == 'EMA'
    assert len(result['targets']) == 3 * 4 + 2
    assert (folder / 'step_cpu.md').read_text() in printed
    assert (folder / 'step_cpu.png').stat().st_size > 10_000


@pytest.mark.slow
def test_the_pages_take_what_there_is(run, part, tmp_path, monkeypatch):
    pages = part('pages')
    monkeypatch.setattr(pages, 'RESULTS', tmp_path)
    names = [name for name in pages.BLOCKS if name.startswith('step')]
    assert all(pages.block(name) is None for name in names)
    shutil.copy(run[0] / 'step_cpu.json', tmp_path)
    assert pages.block('step, summary').count('| not measured') == 6
    assert 'AdamW fused + rollback' in pages.block('step, CPU')
    assert 'fused + rollback' in pages.block('step, README')
    assert pages.block('step, GPU') is None
    result = json.loads((tmp_path / 'step_cpu.json').read_text())
    (tmp_path / 'step_cuda.json').write_text(json.dumps({**result, 'device': 'cuda'}))
    assert 'not measured' not in pages.block('step, summary')
    assert '| kernels |' in pages.block('step, GPU')
    text = 'a\n<!-- made by benchmarks/pages.py: step, summary -->\nold\n<!-- end -->\nb\n'
    made = pages.rendered(text)
    assert made == text.replace('old', pages.block('step, summary'))
    assert pages.rendered(made) == made
    for name in ('growth, GPU', 'means_cpu.md'):
        missing = text.replace('step, summary', name)
        assert pages.rendered(missing) == missing
    (tmp_path / 'means_cpu.md').write_text('| a |\n|---|\n\nthe machine\n')
    assert pages.block('means_cpu.md') == '| a |\n|---|'
    with pytest.raises(SystemExit, match='nor a block'):
        pages.rendered(text.replace('summary', 'sumary'))
