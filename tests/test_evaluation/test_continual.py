"""Figures of a matrix of accuracies: by hand, by loops, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from olor_mm.evaluation import a_avg, a_last, backward_transfer, forgetting

NAN = math.nan
#: Three tasks: the first is learnt with 90, rises to 95 and falls to 70; the second goes from 80 to 85.
MATRIX = [[90.0, NAN, NAN], [95.0, 80.0, NAN], [70.0, 85.0, 60.0]]


def test_by_hand():
    assert a_last(MATRIX) == pytest.approx((70 + 85 + 60) / 3)
    assert a_avg(MATRIX) == pytest.approx((90 + 175 / 2 + 215 / 3) / 3)
    assert forgetting(MATRIX) == pytest.approx(((95 - 70) + (80 - 85)) / 2)
    assert backward_transfer(MATRIX) == pytest.approx(((70 - 90) + (85 - 80)) / 2)


def test_weights_make_it_the_accuracy_over_all_images():
    sizes = [10, 30, 60]
    assert a_last(MATRIX, sizes) == pytest.approx((700 + 2550 + 3600) / 100)
    assert a_avg(MATRIX, sizes) == pytest.approx((90 + (950 + 2400) / 40 + 68.5) / 3)


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 100), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_loops(square):
    tasks = len(square)
    last = tasks - 1
    assert a_last(square) == pytest.approx(sum(square[last]) / tasks)
    assert a_avg(square) == pytest.approx(sum(sum(square[t][: t + 1]) / (t + 1) for t in range(tasks)) / tasks)
    if tasks > 1:
        drops = [max(square[t][j] for t in range(j, last)) - square[last][j] for j in range(last)]
        assert forgetting(square) == pytest.approx(sum(drops) / last)
        moves = [square[last][j] - square[j][j] for j in range(last)]
        assert backward_transfer(square) == pytest.approx(sum(moves) / last)


@pytest.mark.parametrize('figure', [a_last, a_avg, forgetting, backward_transfer])
def test_what_stands_above_the_diagonal_does_not_matter(figure):
    full = torch.tensor(MATRIX).nan_to_num(99.0)
    rows = [row[: t + 1] for t, row in enumerate(MATRIX)]
    assert figure(MATRIX) == figure(full) == figure(rows) == figure(torch.tensor(MATRIX))


def test_one_task():
    assert a_last([[42.0]]) == a_avg([[42.0]]) == 42.0
    assert math.isnan(forgetting([[42.0]]))
    assert math.isnan(backward_transfer([[42.0]]))


@pytest.mark.parametrize(
    ('matrix', 'message'),
    [
        ([], '0 tasks'),
        ([[1.0], [1.0]], 'row t with t to 2 values'),
        ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], 'they have'),
        ([[1.0], [NAN, 2.0]], 'after task 1 the accuracies on tasks 0 to 1 must be known'),
    ],
)
def test_mistakes(matrix, message):
    for figure in (a_last, a_avg, forgetting, backward_transfer):
        with pytest.raises(ValueError, match=message):
            figure(matrix)


@pytest.mark.parametrize('weights', [[1.0], [1.0, 0.0, 1.0], [1.0, NAN, 1.0]])
def test_weights_must_be_one_for_each_task(weights):
    with pytest.raises(ValueError, match='must be 3 numbers above 0'):
        a_last(MATRIX, weights)
