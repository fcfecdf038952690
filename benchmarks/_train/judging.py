"""What can be said of a ratio that is as noisy as the machine."""

import random
import statistics
from collections.abc import Sequence

PASS, FAIL, NOISY = 'pass', 'fail', 'too noisy to tell'


def interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """The median and the 95% interval of it, by the bootstrap; the same at every call."""
    dice = random.Random(0)
    medians = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], statistics.median(values), medians[int(0.975 * resamples) - 1]


def verdict(found: tuple[float, float, float], limit: float) -> str:
    """Whether a value is at most ``limit``; it says so only where all of its interval is on one side."""
    low, _, high = found
    return PASS if high <= limit else FAIL if low > limit else NOISY


def percent(found: tuple[float, float, float]) -> str:
    """A share of the plain iteration."""
    low, middle, high = (100 * value for value in found)
    return f'{middle:+.2f}% ({low:+.2f} to {high:+.2f})'
