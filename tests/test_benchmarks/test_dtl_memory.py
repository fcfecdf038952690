"""`benchmarks/dtl_memory.py` measures, small: memory falls as M grows, and the page says what was measured."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def benchmark(part):
    pytest.importorskip('mmpretrain.models')
    return part('dtl_memory')


def test_it_measures_and_the_page_shows_it(benchmark, part, tmp_path, monkeypatch):
    found = {}
    methods = benchmark.methods('ViT-B/16', small=True)
    for label in ('Full', 'LoRA, r = 8', 'DTL, M = 1', 'DTL, M = 7', 'DTL, M = 12', 'Linear'):
        method, start = methods[label]
        found[label] = {**benchmark.training('ViT-B/16', method, True, 'cpu', 2), 'M': start}
    for what in ('saved', 'peak'):
        amounts = [one[what] for one in found.values()]
        # Of DTL that starts first and of LoRA, which needs less is not said.
        del amounts[1]
        assert amounts == sorted(amounts, reverse=True), what
        assert len(set(amounts)) == len(amounts)
    assert found['LoRA, r = 8']['saved'] > found['DTL, M = 7']['saved']
    assert all(one['peak'] >= one['saved'] for one in found.values())
    shared = [benchmark.sharing(tasks, 7, True, 'cpu', 1, 4) for tasks in (1, 3)]
    weights = [one['weights'] for one in shared]
    assert weights[0]['group'] == weights[0]['separate']
    assert weights[1]['separate'] == 3 * weights[0]['separate']
    assert weights[1]['group'] < 1.2 * weights[0]['separate']
    assert shared[1]['blocks'] == pytest.approx(36 / (7 + 15))
    result = {'device': 'cpu', 'machine': {'device': 'this'}, 'batch': 2, 'inference batch': 1, 'rounds': 4}
    result.update({'training': {'ViT-B/16': found}, 'sharing': shared})
    (tmp_path / 'dtl_memory_cpu.json').write_text(json.dumps(result))
    monkeypatch.setattr(part('pages'), 'RESULTS', tmp_path)
    page = part('pages').block('dtl memory, CPU')
    assert page == benchmark.page(result).rstrip('\n')
    assert all(f'| {label} | {one["trained"]:,} |' in page for label, one in found.items())
    assert part('pages').block('dtl memory, GPU') is None
