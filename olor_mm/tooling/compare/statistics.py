"""Means over seeds, and whether a difference from the reference is more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

__all__ = ['LEVEL', 'Difference', 'difference', 'holm', 'mean_and_std']

#: Error probability below which a difference is called significant.
LEVEL = 0.05
#: A spread that is less than this share of the values is one of their rounding.
_ROUNDING = 1e-9


@dataclass
class Difference:
    """A method's metric less the reference's.

    Attributes:
        n: How many seeds both have; of Welch's test, how many the method has.
        mean: Of the difference; None where there is no seed.
        low: Lower end of its 95% confidence interval; None where there is none.
        high: Upper end.
        p: Error probability of the test; None where none can be made.
        p_holm: The same, corrected for the number of methods.
        why: Why there is no test.
    """

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    why: str = ''

    @property
    def significant(self) -> bool:
        """Whether it is, at 5% and after the correction."""
        return self.p_holm is not None and self.p_holm < LEVEL


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and the sample standard deviation (n - 1); None where there are too few values."""
    if not values:
        return None, None
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def difference(values: Mapping[int, float], reference: Mapping[int, float], paired: bool = True) -> Difference:
    """A method against the reference.

    Args:
        values: Seed to metric, of the method.
        reference: Seed to metric, of the reference.
        paired: Whether runs of the same seed belong together: Student's paired t-test; else Welch's. Defaults to True.

    Returns:
        The difference, with a two-sided test where it can be made.
    """
    seeds = sorted({*values} & {*reference})
    if paired:
        differences = [values[seed] - reference[seed] for seed in seeds]
        found = Difference(len(seeds), mean_and_std(differences)[0])
        enough, spread = len(seeds) > 1, mean_and_std(differences)[1]
    else:
        means = mean_and_std([*values.values()])[0], mean_and_std([*reference.values()])[0]
        found = Difference(len(values))
        if means[0] is not None and means[1] is not None:
            found.mean = means[0] - means[1]
        enough = min(len(values), len(reference)) > 1
        spread = max((mean_and_std([*each.values()])[1] or 0.0 for each in (values, reference) if each), default=0.0)
    if found.mean is None:
        found.why = 'no seed in common' if paired else 'no values'
    elif not math.isfinite(found.mean):
        found.why = 'a value is not finite: no test'
    elif not enough:
        found.why = 'one seed: no test'
    elif not spread or spread <= _ROUNDING * max(map(abs, [*values.values(), *reference.values()])):
        found.why = 'the same difference with every seed: no test' if found.mean else 'no difference with any seed'
    elif paired:
        _paired(found, [values[seed] for seed in seeds], [reference[seed] for seed in seeds])
    else:
        _welch(found, [*values.values()], [*reference.values()])
    return found


def _paired(found: Difference, values: Sequence[float], reference: Sequence[float]) -> None:
    """Student's test of the differences, with n - 1 degrees of freedom."""
    stats = _scipy()
    found.p = float(stats.ttest_rel(values, reference).pvalue)
    spread = statistics.stdev(a - b for a, b in zip(values, reference, strict=True))
    _interval(found, stats, spread / math.sqrt(len(values)), len(values) - 1)


def _welch(found: Difference, values: Sequence[float], reference: Sequence[float]) -> None:
    """Welch's test, with the degrees of freedom of Welch and Satterthwaite."""
    stats = _scipy()
    found.p = float(stats.ttest_ind(values, reference, equal_var=False).pvalue)
    parts = [statistics.variance(each) / len(each) for each in (values, reference)]
    free = sum(parts) ** 2 / sum(
        part**2 / (len(each) - 1) for part, each in zip(parts, (values, reference), strict=True)
    )
    _interval(found, stats, math.sqrt(sum(parts)), free)


def _interval(found: Difference, stats: Any, error: float, free: float) -> None:
    half = float(stats.t.ppf(0.975, free)) * error
    found.low, found.high = (found.mean or 0.0) - half, (found.mean or 0.0) + half


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise InputError(
            f'the test of significance needs scipy: {error}', 'install it: pip install scipy, or give --test none'
        ) from error
    return stats


def holm(values: Sequence[float]) -> list[float]:
    """Error probabilities of several tests, so that the probability of one false find is kept below the level.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Args:
        values: Of each test by itself.

    Returns:
        Of each test among all: in order of size, the largest so far of (number left) x p, at most 1.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected
