"""What the figures of a comparison say, in sentences: nothing is called a difference that is not significant."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row
from .statistics import LEVEL

__all__ = ['digits_of', 'plus_minus', 'probability', 'test_sentence', 'verdict']

_TESTS = {
    'paired': "Student's paired t-test over the seeds that both have",
    'welch': "Welch's t-test",
}


def plus_minus(mean: float | None, std: float | None, digits: int = 2) -> str:
    """Mean and sample standard deviation as they stand in a table."""
    if mean is None:
        return '-'
    return f'{mean:.{digits}f}' + ('' if std is None else f' ± {std:.{digits}f}')


def probability(p: float | None) -> str:
    """An error probability as it stands in a table."""
    if p is None:
        return '-'
    return '< 0.0001' if p < 1e-4 else f'{p:.4f}' if p < 0.01 else f'{p:.3f}'


def test_sentence(rows: Sequence[Row], against: str, test: str, seeds: Sequence[int]) -> str:
    """How differences were tested."""
    tested = sum(row.difference is not None and row.difference.p is not None for row in rows)
    if test == 'none':
        return 'Differences were not tested.'
    if len(seeds) == 1:
        return f'One seed: no test. Whether a difference from {against} is more than chance is not known.'
    if not tested:
        return f'No difference from {against} could be tested; the reasons are below.'
    correction = f", corrected by Holm's method for the {tested} tests" if tested > 1 else ''
    said = f'p is of {_TESTS[test]} against {against}, two-sided{correction}. '
    said += f'Significant means p < {LEVEL:g}. '
    if len(seeds) == 2:
        said += 'With two seeds only a large and steady difference can be. '
    return f'{said}The 95% intervals are each for itself.'


def digits_of(rows: Sequence[Row]) -> int:
    """Decimal places of the metric: 2 of percents, 4 of shares."""
    return 2 if max((abs(row.mean) for row in rows if row.mean is not None), default=0.0) >= 10 else 4


def verdict(row: Row, against: str, rule: str, digits: int = 2) -> str:
    """One method against the reference, in a line of a list.

    Args:
        row: The method.
        against: The reference.
        rule: Whether 'greater' or 'less' of the metric is better.
        digits: Decimal places. Defaults to 2.
    """
    found = row.difference
    if found is None or found.mean is None:
        return f'- {row.method}: {"no test was asked for" if found is None else found.why}'
    size = f'{found.mean:+.{digits}f}'
    if found.p is None:
        return f'- {row.method}: {size} against {against}; {found.why}'
    p = probability(found.p_holm)
    p = f'p {p}' if p.startswith('<') else f'p = {p}'
    interval = f'95% interval {found.low:+.{digits}f} to {found.high:+.{digits}f}, {p}, n = {found.n}'
    if not found.significant:
        return f'- {row.method}: no significant difference from {against}: {size} ({interval})'
    better = (found.mean > 0) == (rule == 'greater')
    return f'- {row.method}: significantly {"better" if better else "worse"} than {against}: {size} ({interval})'
