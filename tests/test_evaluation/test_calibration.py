"""ALG and PCV against loops over samples, classes and gammas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olor_mm.evaluation.calibration import BestGamma, alg_gamma, best_gamma, pcv_fold, pcv_gamma


def drawn(seed, count=40, classes=7, seen=(1, 4, 5), only_seen=False, steps=None):
    """Logits that are right more often than by chance; with ``steps``, multiples of it, so that many are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(seen), count) if only_seen else rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    logits[:, list(seen)] += 1
    if steps:
        logits = np.round(logits / steps) * steps
    return torch.from_numpy(logits), torch.from_numpy(labels)


def plain_alg(z, y, seen):
    rows = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        others = [value for c, value in enumerate(row) if c in seen and c != label]
        absent = [value for c, value in enumerate(row) if c not in seen]
        rows.append((sum(others) / len(others), sum(absent) / len(absent)))
    return sum(a for a, _ in rows) / len(rows) - sum(b for _, b in rows) / len(rows)


def right(z, y, seen, gamma):
    """Counts of right samples of S and of U at a gamma."""
    found = [0, 0]
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        shifted = [value if c in seen else value + gamma for c, value in enumerate(row)]
        found[label not in seen] += shifted.index(max(shifted)) == label
    return found


def every_gamma(z, seen):
    """One below and one above each margin of any sample, and between each two."""
    rows = np.array(z.tolist())
    mask = np.isin(np.arange(rows.shape[1]), list(seen))
    margins = np.unique(rows[:, mask].max(1) - rows[:, ~mask].max(1))
    return [margins[0] - 1, *((margins[:-1] + margins[1:]) / 2), margins[-1] + 1]


@pytest.mark.parametrize('seed', range(3))
def test_alg(seed):
    z, y = drawn(seed, only_seen=True)
    assert alg_gamma(z, y, [1, 4, 5]) == pytest.approx(plain_alg(z, y, (1, 4, 5)), rel=1e-12)
    assert alg_gamma(z.log_softmax(1), y, [5, 1, 4]) == pytest.approx(alg_gamma(z, y, [1, 4, 5]), rel=1e-9)
    assert alg_gamma(z.float(), y, torch.tensor([1, 4, 5])) == pytest.approx(alg_gamma(z, y, [1, 4, 5]), rel=1e-5)


def test_alg_is_the_shift():
    z = torch.zeros(4, 5)
    z[:, :2] = 3.0
    y = torch.tensor([0, 1, 0, 1])
    z[torch.arange(4), y] += 50
    # The own class does not count.
    assert alg_gamma(z, y, [0, 1]) == 3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(4, 30), least=st.integers(0, 10), steps=st.sampled_from([None, 0.5])
)
def test_best_gamma_is_the_best_of_all(seed, count, least, steps):
    seen = (1, 4, 5)
    z, y = drawn(seed, count, steps=steps)
    absent = sum(label not in seen for label in y.tolist())
    if absent in (0, count):
        return
    floor = 100 * least / absent
    counts = {gamma: right(z, y, seen, gamma) for gamma in every_gamma(z, seen)}
    allowed = {gamma: sum(found) for gamma, found in counts.items() if found[1] >= least}
    best = best_gamma(z, y, seen, floor)
    if not allowed:
        assert best is None
        return
    assert best is not None
    found = right(z, y, seen, best.gamma)
    assert sum(found) == max(allowed.values())
    assert found[1] >= least
    assert best.overall == pytest.approx(100 * sum(found) / count)
    assert best.unseen == pytest.approx(100 * found[1] / absent)
    # Nothing as good is nearer to 0 by more than half a gap between margins that count.
    equals = [gamma for gamma, total in allowed.items() if total == sum(found)]
    widest = max(np.diff(every_gamma(z, seen)), default=0)
    assert abs(best.gamma) <= min(map(abs, equals)) + widest + 1 + 1e-9


def test_of_equals_the_nearest_to_0():
    # Samples of S with margins -3 and 5, of U with -2 and 6: from -2 on one of each is right, or two of one.
    z = torch.tensor([[-3.0, 0.0], [5.0, 0.0], [-2.0, 0.0], [6.0, 0.0]])
    y = torch.tensor([0, 0, 1, 1])
    # Accuracies: below -3: 2; -3 to -2: 1; -2 to 5: 2; 5 to 6: 1; above: 2.
    assert best_gamma(z, y, [0]) == BestGamma(1.5, 50.0, 50.0, 0.0)
    assert best_gamma(z, y, [0], least_unseen=100.0) == BestGamma(7.0, 50.0, 100.0, 100.0)


def test_a_floor_that_no_gamma_reaches():
    # The sample of U is wrong within U.
    z = torch.tensor([[1.0, 0.0, 2.0], [0.0, 2.0, 1.0]])
    y = torch.tensor([0, 2])
    assert best_gamma(z, y, [0], least_unseen=1.0) is None
    assert best_gamma(z, y, [0]) is not None


@pytest.mark.parametrize('seed', range(4))
def test_pcv_fold(seed):
    # S is 1, 2, 4, 5 of 7 classes; 4 and 1 are pseudo-seen.
    inside, pseudo = [1, 2, 4, 5], [4, 1]
    z, y = drawn(seed, 60, seen=(1, 4))
    before, _ = drawn(seed + 100, 60, seen=())
    keep = torch.isin(y, torch.tensor(inside))
    z, before, y = z[keep], before[keep], y[keep]
    # Other classes would win everything.
    z[:, [0, 3, 6]] += 100
    before[:, [0, 3, 6]] += 100
    labels = torch.tensor([inside.index(label) for label in y.tolist()])
    seen = (0, 2)
    least = right(before[:, inside], labels, seen, 0)[1]
    counts = {gamma: right(z[:, inside], labels, seen, gamma) for gamma in every_gamma(z[:, inside], seen)}
    allowed = [sum(found) for found in counts.values() if found[1] >= least]
    fold = pcv_fold(z, before, y, pseudo, [2, 5])
    assert (fold is None) == (not allowed)
    if fold is not None:
        found = right(z[:, inside], labels, seen, fold.gamma)
        assert sum(found) == max(allowed)
        assert found[1] >= least
        absent = sum(label in (1, 3) for label in labels.tolist())
        assert fold.least_unseen == pytest.approx(100 * least / absent)


def test_pcv_is_the_mean_of_the_folds_that_have_one():
    assert pcv_gamma([BestGamma(1.0, 0, 0, 0), None, BestGamma(4.0, 0, 0, 0)]) == 2.5
    assert pcv_gamma([None, None]) is None
    assert pcv_gamma([]) is None


Z, Y = torch.zeros(3, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: alg_gamma(Z, Y + 1, [0, 1]), '3 samples, 1 of them of absent classes'),
        (lambda: alg_gamma(Z[:0], Y[:0], [0, 1]), '0 samples'),
        (lambda: alg_gamma(Z, Y * 0, [0]), '1 seen classes: ALG takes'),
        (lambda: alg_gamma(Z.masked_fill(torch.eye(3, 4).bool(), -math.inf), Y, [0, 1]), 'logits of -inf'),
        (lambda: alg_gamma(Z / 0, Y, [0, 1]), 'logits hold NaN'),
        (lambda: alg_gamma(Z, Y, [0, 1, 2, 3]), 'seen names 4 of 4 classes'),
        (lambda: best_gamma(Z, Y, [0, 1]), '3 of 3 samples are of seen classes'),
        (lambda: pcv_fold(Z, Z[:, :2], Y, [0], [1]), 'both must be of one head'),
        (lambda: pcv_fold(Z, Z, Y, [0], [2]), 'neither pseudo-seen nor'),
        (lambda: pcv_fold(Z, Z, Y, [0, 1], [1]), 'each once'),
        (lambda: pcv_fold(Z, Z, Y, [0, 1], [2]), 'no sample of pseudo-absent'),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
