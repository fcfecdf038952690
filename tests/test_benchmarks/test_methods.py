"""`benchmarks/methods.py` counts what methods train and keep; what it wrote is what formulas say."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).resolve().parents[2] / 'benchmarks' / 'results' / 'methods_cpu.json'
D, HEAD = 768, 768 * 100 + 100
BLOCK = 12 * D * D + 13 * D
#: ViT-B/16: the method's options to the parameters that it trains, by hand.
BY_HAND = {
    '{"type": "Linear"}': HEAD,
    '{"k": 3, "type": "TopK"}': 3 * BLOCK + 2 * D + HEAD,
    '{"type": "BitFit"}': D + 12 * (2 * D + 3 * D + D + 4 * D + D) + D + HEAD,
    '{"deep": false, "tokens": 10, "type": "VPT"}': 10 * D + HEAD,
    '{"deep": true, "tokens": 10, "type": "VPT"}': 12 * 10 * D + HEAD,
    '{"rank": 8, "type": "LoRA"}': 12 * 2 * 2 * 8 * D + HEAD,
    '{"blocks": 3, "type": "BlockExpansion"}': 3 * BLOCK + HEAD,
    '{"type": "DTL"}': 12 * 2 * 2 * D + HEAD,
}


def key(row):
    return json.dumps(row['method'], sort_keys=True)


def test_what_was_written_is_what_formulas_say():
    rows = {key(row): row for row in json.loads(RESULTS.read_text())['models']['ViT-B/16']}
    assert {method: rows[method]['trained'] for method in BY_HAND} == BY_HAND


def test_it_counts_and_the_table_shows_it(part, capsys, monkeypatch, tmp_path):
    pytest.importorskip('mmpretrain.models')
    benchmark = part('methods')
    chosen = {
        name: [method for method in given if method['type'] in ('Full', 'Linear', 'TopK', 'LoRA')]
        for name, given in benchmark.METHODS.items()
    }
    monkeypatch.setattr(benchmark, 'METHODS', chosen)
    monkeypatch.setattr('sys.argv', ['methods.py', '--small', '--out', str(tmp_path)])
    benchmark.main()
    models = json.loads((tmp_path / 'methods_cpu.json').read_text())['models']
    text = (tmp_path / 'methods_cpu.md').read_text()
    assert text in capsys.readouterr().out
    for name, rows in models.items():
        kept = {row['method']['type']: row for row in rows}
        assert kept['Linear']['saved'] < kept['TopK']['saved'] < kept['LoRA']['saved'] < kept['Full']['saved']
        assert kept['Full']['trained'] == kept['Full']['parameters'] == kept['Linear']['parameters']
        for row in rows:
            assert f'| {name} | {benchmark.line(row["method"])} | {row["trained"]:,} |' in text
