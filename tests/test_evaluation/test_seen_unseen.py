"""Accuracies on seen and unseen classes and the area under their curve: equal to argmax, ties and -inf included."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olor_mm.evaluation import Margins, ausuc, ausuc_curve, margin_curve, seen_unseen_accuracies

NAMES = ['Y/Y', 'S/Y', 'U/Y', 'S/S', 'U/U']


def argmax(values, classes):
    """The first class of the greatest value; None where none is above -inf."""
    best = max(values[c] for c in classes)
    return None if best == -math.inf else next(c for c in classes if values[c] == best)


def by_hand(logits, labels, seen, gamma):
    """Sample after sample, in Python's floats."""
    classes = range(logits.shape[1])
    right = {name: [] for name in NAMES}
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        shifted = [z + (0.0 if c in seen else gamma) for c, z in enumerate(row)]
        kind = 'S' if label in seen else 'U'
        over_all = argmax(shifted, classes) == label
        right['Y/Y'].append(over_all)
        right[f'{kind}/Y'].append(over_all)
        right[f'{kind}/{kind}'].append(argmax(row, [c for c in classes if (c in seen) == (kind == 'S')]) == label)
    return {name: 100 * np.mean(each) if each else math.nan for name, each in right.items()}


@st.composite
def problems(draw, both=False):
    """Logits of whole numbers, so that many are equal and sums with gamma are exact; some are -inf."""
    classes = draw(st.integers(2, 6))
    seen = draw(st.sets(st.integers(0, classes - 1), min_size=1, max_size=classes - 1))
    count = draw(st.integers(2 if both else 1, 25))
    value = st.one_of(st.integers(-4, 4).map(float), st.just(-math.inf)) if draw(st.booleans()) else st.integers(-4, 4)
    logits = draw(st.lists(st.lists(value, min_size=classes, max_size=classes), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    if both:
        labels[0], labels[1] = min(seen), min(set(range(classes)) - seen)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels), sorted(seen)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(-5, 5))
def test_equals_argmax_by_hand(problem, gamma):
    logits, labels, seen = problem
    found = seen_unseen_accuracies(logits, labels, seen, float(gamma))
    assert list(found) == NAMES
    assert found == pytest.approx(by_hand(logits, labels, seen, gamma), nan_ok=True)


def sweep(logits, labels, seen):
    """The curve by trying every gamma: a number between each two margins that occur, and one beyond all."""
    rows = logits.double()
    of_seen = torch.tensor([c in seen for c in range(logits.shape[1])])
    margins = rows[:, of_seen].max(1).values - rows[:, ~of_seen].max(1).values
    finite = sorted(set(margins[margins.isfinite()].tolist()))
    edges = [-1e6, *finite, 1e6]
    gammas = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    points = [by_hand(logits, labels, seen, gamma) for gamma in gammas]
    # With gamma at the infinities one part is out of the running.
    alone = by_hand(logits, labels, seen, 0.0)
    x = [alone['S/S'], *(point['S/Y'] for point in points), 0.0]
    y = [0.0, *(point['U/Y'] for point in points), alone['U/U']]
    return np.array(x) / 100, np.array(y) / 100, [point['Y/Y'] for point in points]


@settings(max_examples=150, deadline=None)
@given(problems(both=True))
def test_the_closed_form_equals_the_sweep(problem):
    logits, labels, seen = problem
    x, y, overall = sweep(logits, labels, seen)
    assert ausuc(logits, labels, seen) == pytest.approx(
        float(torch.trapezoid(torch.tensor(y), -torch.tensor(x))), abs=1e-9
    )
    curve = ausuc_curve(logits, labels, seen)
    assert {(round(float(a), 6), round(float(b), 6)) for a, b in zip(curve.seen, curve.unseen, strict=True)} == {
        (round(100 * a, 6), round(100 * b, 6)) for a, b in zip(x, y, strict=True)
    }
    gamma, best = curve.best
    if math.isfinite(gamma):
        assert best == pytest.approx(max(overall))


@settings(max_examples=100, deadline=None)
@given(problems(both=True))
def test_each_gamma_of_the_curve_gives_its_point(problem):
    logits, labels, seen = problem
    curve = ausuc_curve(logits, labels, seen)
    assert bool((curve.gammas.diff() >= 0).all())
    for i, gamma in enumerate(curve.gammas.tolist()):
        found = seen_unseen_accuracies(logits, labels, seen, gamma)
        assert found['S/Y'] == pytest.approx(float(curve.seen[i]))
        assert found['U/Y'] == pytest.approx(float(curve.unseen[i]))
        assert found['Y/Y'] == pytest.approx(float(curve.overall[i]))


def logits_of(count=400, classes=12, seed=0, shift=2.0):
    """Logits of a model that was fine-tuned on the first half of the classes: those of the rest are too low."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + 2 * torch.eye(classes)[labels]
    logits[:, classes // 2 :] -= shift
    return logits, labels, list(range(classes // 2))


def test_equals_scikit_learns_area_on_real_numbers():
    metrics = pytest.importorskip('sklearn.metrics')
    logits, labels, seen = logits_of()
    x, y, _ = sweep(logits, labels, seen)
    assert 0.2 < ausuc(logits, labels, seen) == pytest.approx(metrics.auc(x, y), abs=1e-12)


def test_ends_and_log_softmax():
    logits, labels, seen = logits_of()
    curve, plain = ausuc_curve(logits, labels, seen), seen_unseen_accuracies(logits, labels, seen)
    assert (float(curve.seen[0]), float(curve.unseen[0])) == pytest.approx((plain['S/S'], 0.0))
    assert (float(curve.seen[-1]), float(curve.unseen[-1])) == pytest.approx((0.0, plain['U/U']))
    logged = torch.log_softmax(logits.double(), dim=1)
    assert ausuc(logged, labels, seen) == pytest.approx(curve.area, abs=1e-9)
    # The logits of unseen classes are 2 too low: that is about what the best gamma makes up for.
    gamma, best = curve.best
    assert abs(gamma - 2) < 1
    assert best > plain['Y/Y'] + 1
    assert seen_unseen_accuracies(logits, labels, seen, gamma)['Y/Y'] == pytest.approx(best)


def test_bounds():
    perfect = 20 * torch.eye(4)
    assert ausuc(perfect, torch.arange(4), [0, 1]) == 1.0
    assert ausuc(perfect.roll(1, 0), torch.arange(4), [0, 1]) == 0.0
    flat = torch.zeros(4, 2)
    # All margins are equal: one step from (1, 0) to (0, 1).
    assert ausuc(flat, torch.tensor([0, 0, 1, 1]), [0]) == 0.5


def test_infinite_gammas_leave_one_part():
    logits, labels, seen = logits_of()
    plain = seen_unseen_accuracies(logits, labels, seen)
    low, high = (seen_unseen_accuracies(logits, labels, seen, gamma) for gamma in (-math.inf, math.inf))
    assert (low['S/Y'], low['U/Y']) == (plain['S/S'], 0.0)
    assert (high['S/Y'], high['U/Y']) == (0.0, plain['U/U'])


def test_parts_joined_are_the_whole():
    logits, labels, seen = logits_of()
    parts = [Margins.of(logits[i : i + 130], labels[i : i + 130], seen) for i in range(0, 400, 130)]
    assert margin_curve(Margins.join(parts)).area == ausuc(logits, labels, seen)


def test_samples_of_one_kind_only():
    found = seen_unseen_accuracies(torch.eye(3), torch.tensor([0, 1, 1]), [0, 1])
    assert math.isnan(found['U/Y'])
    assert math.isnan(found['U/U'])
    assert found['S/S'] == found['Y/Y'] == pytest.approx(200 / 3)
    for labels, count in ((torch.tensor([0, 1, 1]), 3), (torch.tensor([2, 2, 2]), 0)):
        with pytest.raises(ValueError, match=f'{count} of 3 samples are of seen classes'):
            ausuc(torch.eye(3), labels, [0, 1])


Z, Y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
MISTAKES = {
    'NaN': ((Z * float('nan'), Y, [0]), 'NaN'),
    '+inf': ((Z + float('inf'), Y, [0]), r'\+inf'),
    'a label without a logit': ((Z, Y + 4, [0]), 'labels are 4 to 4, but there are 4 classes'),
    'other number of labels': ((Z, Y[:1], [0]), '1 labels for 3 samples'),
    'all seen': ((Z, Y, range(4)), 'seen names 4 of 4 classes'),
    'none seen': ((Z, Y, []), 'seen names 0 of 4 classes'),
    'a class twice': ((Z, Y, [1, 1]), 'each once'),
    'a class that is none': ((Z, Y, [1, 4]), 'labels from 0 to 3'),
    'logits of one dimension': ((Z[0], Y, [0]), r'logits \(N, C\)'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
@pytest.mark.parametrize('figure', [ausuc, seen_unseen_accuracies])
def test_mistakes(mistake, figure):
    data, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        figure(*data)


@pytest.mark.parametrize('gamma', [math.nan, None, 'best', True])
def test_gamma_must_be_a_number(gamma):
    with pytest.raises(ValueError, match=r'gamma=.* must be a number'):
        seen_unseen_accuracies(Z, Y, [0], gamma)
