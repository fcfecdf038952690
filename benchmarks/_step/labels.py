"""How variants and figures are written."""

from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    'fused': 'fused',
    'fused again': 'fused, once more',
    'foreach': 'foreach',
    'for-loop': 'for-loop',
    'rollback foreach': 'fused + rollback, `foreach` (default)',
    'rollback single_tensor': 'fused + rollback, `single_tensor`',
    'rollback single_pass': 'fused + rollback, `single_pass`',
    'spd': 'fused + SPD (`rule`)',
    'projection': 'fused + projection (`rule`)',
    'bare addition': 'fused + a bare addition',
    'paper loop': "the paper's algorithm, a loop",
    'L2-SP': 'fused + L2-SP in the loss',
    'EMA': 'fused + EMA',
}


def share_ratio(ratio: float, about: Mapping[str, int]) -> float:
    """The ratio to the fused step of the pulled parameters alone, whose time is taken to be their share by count."""
    return 1 + (ratio - 1) * about['parameters'] / about['pulled']


def ratio_text(quartiles: Sequence[float]) -> str:
    low, middle, high = quartiles
    return f'{middle:.2f} ({low:.2f} to {high:.2f})'


def size_text(size: int) -> str:
    """Bytes in a unit of their size, powers of 1000."""
    if size < 1000:
        return f'{size} B'
    return f'{size / 1e3:.1f} kB' if size < 10**6 else f'{size / 1e6:.1f} MB'


def verdict_text(row: Mapping[str, Any]) -> list[str]:
    """Limit, value and verdict of a target."""
    value, limit = row['value'], row['limit']
    if row['target'].startswith('bytes'):
        return [f'at most {size_text(limit)}', size_text(value), row['verdict']]
    if isinstance(value, dict):
        said = '; '.join(f'{LABELS[name]}: {", ".join(map(str, found.values()))}' for name, found in value.items())
        return ['the same', said, row['verdict']]
    if limit is None:
        return ['none', '-', row['verdict']]
    sign = 'at least' if 'times ours' in row['target'] else 'at most'
    return [f'{sign} {limit:.2f}', '-' if value is None else f'{value:.2f} times', row['verdict']]
