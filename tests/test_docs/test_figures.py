"""The figures that the pages quote are those of the files that the benchmarks wrote."""

import json
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(('network', 'name'), [('deit-tiny', 'DeiT-tiny'), ('mobilenetv2', 'MobileNetV2')])
def test_pacs(network: str, name: str) -> None:
    result = json.loads((REPO / 'benchmarks' / 'results' / f'pacs_{network}.json').read_text())
    lines = (REPO / 'docs' / 'classification.md').read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f'| {name}, '))
    quoted = [line.strip('|').split('|') for line in lines[start : start + len(result['top1'])]]
    for (setting, row), (told, *figures) in zip(result['top1'].items(), quoted, strict=True):
        assert setting.replace('_', ' ') in told or (setting == 'mixed' and 'all domains' in told)
        assert [figure.strip() for figure in figures] == [
            f'{row[method][0]:.1f}' for method in ('Full', 'Linear', 'OLOR')
        ]


def test_precision() -> None:
    table = (REPO / 'benchmarks' / 'results' / 'precision_cpu.md').read_text().split('\n\n')[0]
    assert table in (REPO / 'docs' / 'precision.md').read_text()


def test_memory() -> None:
    """The table, and the bytes for each parameter that the page says besides."""
    table = (REPO / 'benchmarks' / 'results' / 'memory_cpu.md').read_text().split('\n\n')[0]
    text = (REPO / 'docs' / 'scaling.md').read_text()
    assert table in text
    rows = {
        'float32': '| float32, and AMP | 4 | 4 | 4 | 4 | 8 | 4 |',
        'bfloat16': '| bfloat16 | 2 | 2 | 2 | 2 | 4 | 2 |',
    }
    for run in json.loads((REPO / 'benchmarks' / 'results' / 'memory_cpu.json').read_text())['runs']:
        assert run['measured'] == run['computed']
        row = rows[run['dtype']]
        assert row in text.replace('weights in bfloat16', 'bfloat16')
        weights, gradients, _, sgd, adam, theta_0 = map(int, row.strip('| ').split(' | ')[1:])
        found, trained = run['measured'], run['trained']
        assert found['weights'] >= weights * trained
        assert found['gradients'] == gradients * trained
        assert found['state'] == {'SGD': sgd, 'Adam': adam}[run['optimizer']] * trained
        assert found['theta_0'] == theta_0 * run['rolled back']
