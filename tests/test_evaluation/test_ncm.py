"""Nearest class mean: equal to scikit-learn's and to a loop; classes without samples."""

import numpy as np
import pytest
import torch

from olor_mm.evaluation import class_means, ncm_accuracy, ncm_scores
from olor_mm.evaluation.ncm import is_right

from .test_knn import clusters


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize('seed', range(3))
def test_equals_a_loop(seed):
    bank, bank_labels, queries, labels = clusters(120, 70, 6, 5, seed)
    means = np.stack([unit(unit(bank[bank_labels == c]).mean(0)) for c in range(6)])
    torch.testing.assert_close(class_means(bank, bank_labels, 6), torch.from_numpy(means).float())
    scores = ncm_scores(queries, class_means(bank, bank_labels, 6))
    np.testing.assert_allclose(scores.numpy(), unit(queries) @ means.T, atol=1e-6)
    right = (unit(queries) @ means.T).argmax(1) == labels.numpy()
    assert ncm_accuracy(bank, bank_labels, queries, labels, 6) == pytest.approx(100 * right.mean())


def test_equals_scikit_learn_where_means_are_of_one_length():
    neighbors = pytest.importorskip('sklearn.neighbors')
    # Its nearest centroid is by distance: on the sphere that is the cosine where centroids are normalised, as ours are.
    bank, bank_labels, queries, labels = clusters(300, 100, 5, 8, seed=4)
    model = neighbors.NearestCentroid().fit(unit(bank), bank_labels.numpy())
    np.testing.assert_allclose(class_means(bank, bank_labels, 5).numpy(), unit(model.centroids_), atol=1e-6)
    model.centroids_ = unit(model.centroids_)
    found = ncm_accuracy(bank, bank_labels, queries, labels, 5)
    assert found == pytest.approx(100 * (model.predict(unit(queries)) == labels.numpy()).mean())


def test_a_class_without_samples_scores_minus_infinity():
    means = class_means(torch.eye(3), torch.tensor([0, 2, 2]), 4)
    assert means.isnan().all(dim=1).tolist() == [False, True, False, True]
    scores = ncm_scores(-torch.eye(3)[:1], means)
    assert scores[0, [1, 3]].tolist() == [float('-inf')] * 2
    assert scores[0, [0, 2]].isfinite().all()
    assert ncm_accuracy(torch.eye(3), torch.tensor([0, 2, 2]), torch.eye(3), torch.tensor([1, 3, 2]), 4) == (
        pytest.approx(100 / 3)
    )


def test_nothing_is_right_where_no_class_can_win():
    scores = ncm_scores(torch.ones(2, 2), torch.full((3, 2), float('nan')))
    assert is_right(scores, torch.tensor([0, 1])).tolist() == [False, False]


def test_a_mean_of_nothing_left_is_no_missing_class():
    means = class_means(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0]), 1)
    assert means.tolist() == [[0.0, 0.0]]
    assert ncm_scores(torch.ones(1, 2), means).tolist() == [[0.0]]


def test_of_equal_scores_the_lower_label_wins():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = [ncm_accuracy(bank, torch.tensor([1, 0]), bank[:1], torch.tensor([y]), 2) for y in (0, 1)]
    assert found == [100.0, 0.0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_more(dtype):
    bank, bank_labels, queries, _ = clusters(90, 30, 4, 6)
    bank, queries = bank.to(dtype), queries.to(dtype)
    means = class_means(bank, bank_labels, 4)
    assert means.dtype == torch.float32
    assert torch.equal(means, class_means(bank.float(), bank_labels, 4))
    assert torch.equal(ncm_scores(queries, means), ncm_scores(queries.float(), means))


def test_more_than_are_summed_at_a_time(monkeypatch):
    bank, bank_labels, _, _ = clusters(100, 1, 4, 6)
    whole = class_means(bank, bank_labels, 4)
    monkeypatch.setattr('olor_mm.evaluation.ncm._ROWS', 7)
    torch.testing.assert_close(class_means(bank, bank_labels, 4), whole)


X, Y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
MISTAKES = {
    'nothing': ((X[:0], Y[:0], X, Y, 2), '0 samples in the bank'),
    'no queries': ((X, Y, X[:0], Y[:0], 2), '0 queries'),
    'other features': ((X, Y, X[:, :1], Y, 2), 'have 1 features each'),
    'NaN': ((X * float('nan'), Y, X, Y, 2), 'NaN'),
    'a label too great': ((X, Y, X, Y + 5, 2), 'labels of the queries are 5 to 5'),
    'no classes': ((X, Y, X, Y, 0), 'num_classes=0'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(mistake):
    data, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        ncm_accuracy(*data)
