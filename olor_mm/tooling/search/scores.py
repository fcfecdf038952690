"""What the trials gave, and what can be concluded from it."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .metric import Metric
from .space import Point, Space

__all__ = ['ALPHA', 'Score', 'Verdict', 'as_dict', 'judge', 'score_of']

#: The level of the test.
ALPHA = 0.05


@dataclass
class Score:
    """What a point gave.

    Attributes:
        point: max_level and power.
        name: Of the trial, as its folders are called.
        values: Seed to metric, of the seeds that ended.
        state: 'complete', 'pruned', 'failed' or 'open' (not tried to the end).
        folders: Seed to work dir of the run.
        note: Why it failed, or when it was pruned. Defaults to ''.
    """

    point: Point
    name: str
    values: dict[int, float] = field(default_factory=dict)
    state: str = 'open'
    folders: dict[int, str] = field(default_factory=dict)
    note: str = ''

    @property
    def is_complete(self) -> bool:
        """Whether it can be compared."""
        return self.state == 'complete' and bool(self.values)

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where none ended."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None where there is one seed only."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass
class Verdict:
    """What can be concluded.

    Attributes:
        best: The best complete point, plain fine-tuning included; None where none is complete.
        plain: Plain fine-tuning; None where it is not complete.
        gain: How much better the best point is than plain fine-tuning, in the metric's unit; 0 where that is the best.
        p: Chance of such a gain, of the best of all points, if no point differed from plain fine-tuning (Dunnett's
            test, one-sided); None where it cannot be known.
        helps: True where the gain is significant, False where there is none or it is within the noise, None where it
            cannot be known.
        lines: The same in sentences.
    """

    best: Score | None
    plain: Score | None
    gain: float | None = None
    p: float | None = None
    helps: bool | None = None
    lines: list[str] = field(default_factory=list)


def judge(
    scores: Sequence[Score], metric: Metric, space: Space, free: bool = False, repeat: str = '--seeds'
) -> Verdict:
    """Compare all points with plain fine-tuning.

    Args:
        scores: All of them.
        metric: What they were compared by.
        space: Where the search looked.
        free: Whether levels between those of the space were tried. Defaults to False.
        repeat: Options that give the points more seeds, for the advice. Defaults to '--seeds'.
    """
    complete = [score for score in scores if score.is_complete]
    plain = next((score for score in complete if score.point.is_plain), None)
    # Of equals the smallest level: what is pulled less costs less.
    best = min(complete, key=lambda score: (-metric.sign * score.mean, score.point), default=None)
    if best is None:
        return Verdict(None, None, lines=['No trial is complete: nothing can be said.'])
    if plain is None:
        lines = [f'The best is {best.point.label}, {_told(best)}.']
        lines.append('Plain fine-tuning (level 0) is not complete: whether OLOR helps cannot be said.')
        return Verdict(best, None, lines=lines + _edge(best, space, free))
    found = Verdict(best, plain, metric.sign * (best.mean - plain.mean))
    if best is plain:
        found.helps = False
        found.lines = _not_helping(best, [score for score in complete if score is not plain], metric, repeat)
        return found
    found.lines = [
        f'The best is {best.point.label}: {metric.name} {_told(best)}; plain fine-tuning (level 0) {_told(plain)}. The '
        f'difference is {found.gain:.4g}.'
    ]
    _test(found, complete, metric, repeat)
    found.lines += _edge(best, space, free)
    return found


def _not_helping(best: Score, others: Sequence[Score], metric: Metric, repeat: str) -> list[str]:
    if not others:
        return ['Nothing but plain fine-tuning (level 0) is complete: whether OLOR helps cannot be said.']
    following = min(others, key=lambda score: (-metric.sign * score.mean, score.point))
    many = f'none of the {len(others)} points is' if len(others) > 1 else 'the one point tried is not'
    lines = [
        f'OLOR does not help here: {many} better than plain fine-tuning (level 0), {metric.name} {_told(best)}. The '
        f'next is {following.point.label}, {_told(following)}.'
    ]
    return lines if len(best.values) > 1 else [*lines, _one_seed(repeat)]


def _one_seed(repeat: str) -> str:
    return (
        'With one seed it cannot be known whether a difference is more than chance: a second run of the same point may '
        f'differ as much. To know it: {repeat} 0 1 2; what is done stays.'
    )


def _test(found: Verdict, complete: Sequence[Score], metric: Metric, repeat: str) -> None:
    """Add what a test says of the gain."""
    others = [score for score in complete if not score.point.is_plain]
    control = list(found.plain.values.values()) if found.plain else []
    if len(control) < 2 or found.best is None or len(found.best.values) < 2:
        found.lines.append(_one_seed(repeat))
        return
    p = dunnett([list(score.values.values()) for score in others], control, metric.sign)
    if p is None:
        found.lines.append('Each point gave one figure whatever the seed: a test over seeds has nothing to say.')
        return
    found.p = p[others.index(found.best)]
    found.helps = found.p < ALPHA
    many = f'{len(others)} points' if len(others) > 1 else 'one point'
    test = f"Dunnett's test of {many} against level 0, {len(control)} seeds, one-sided: p = {found.p:.2g}"
    if found.helps:
        found.lines.append(f'The gain is more than noise ({test}).')
    else:
        seeds = ' '.join(str(seed) for seed in range(len(control) + 2))
        found.lines.append(
            f'The gain is within the noise ({test}): these runs do not show that OLOR helps. More seeds may: {repeat} '
            f'{seeds}.'
        )
    found.lines.append(
        'The figure of the best point flatters it a little, because it was chosen by it: report one of data that the '
        'search has not seen.'
    )


def dunnett(samples: Sequence[Sequence[float]], control: Sequence[float], sign: int) -> list[float] | None:
    """p of each sample being better than the control by chance, all of them taken together; None without any spread.

    Source: Dunnett, 'A multiple comparison procedure for comparing several treatments with a control' (1955), by scipy.

    Args:
        samples: The values of each point.
        control: Those of plain fine-tuning.
        sign: 1 where more is better, -1 where less is.
    """
    from scipy import stats

    if all(len({*sample}) == 1 for sample in [*samples, control]):
        return None
    if not hasattr(stats, 'dunnett'):
        # Before scipy 1.11: a bound instead.
        tests = [stats.ttest_ind(sample, control, alternative='greater' if sign > 0 else 'less') for sample in samples]
        return [min(1.0, len(samples) * float(test.pvalue)) for test in tests]
    # The distribution function is integrated by random numbers: the same ones every time.
    known = inspect.signature(stats.dunnett).parameters
    options: dict[str, Any] = {'rng' if 'rng' in known else 'random_state': 0}
    side = 'greater' if sign > 0 else 'less'
    return [float(p) for p in stats.dunnett(*samples, control=control, alternative=side, **options).pvalue]


def _edge(best: Score, space: Space, free: bool) -> list[str]:
    found = space.edges(best.point, free)
    return [f'The best lies at the edge: {"; ".join(found)}. What is done stays.'] if found else []


def _told(score: Score) -> str:
    if score.sd is None:
        return f'{score.mean:.4g}'
    return f'{score.mean:.4g} (sd {score.sd:.2g}, {len(score.values)} seeds)'


def as_dict(score: Score) -> dict[str, Any]:
    """For results.json."""
    values: Mapping[str, Any] = {
        'trial': score.name,
        'max_level': score.point.level,
        'power': None if score.point.is_plain else score.point.power,
        'state': score.state,
        'mean': score.mean if score.values else None,
        'sd': score.sd,
        'values': {str(seed): value for seed, value in sorted(score.values.items())},
        'work_dirs': {str(seed): folder for seed, folder in sorted(score.folders.items())},
        'note': score.note,
    }
    return dict(values)


def score_of(trial: Mapping[str, Any]) -> Score:
    """From what :func:`as_dict` gave."""
    return Score(
        Point(float(trial['max_level']), 1.0 if trial['power'] is None else float(trial['power'])),
        trial['trial'],
        {int(seed): value for seed, value in trial['values'].items()},
        trial['state'],
        {int(seed): folder for seed, folder in trial['work_dirs'].items()},
        trial['note'],
    )
