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
