"""kNN: equal to a loop over all pairs in float64 and to scikit-learn, whatever the chunks; ties; mistakes."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from olor_mm.evaluation import KNNBank, knn_accuracy
from olor_mm.evaluation.knn import _best_keys, _read


def brute_force(bank, bank_labels, queries, query_labels, num_classes, ks, temperature):
    """One query and one pair at a time, in Python's floats."""
    right = {f'top{top}/k={k}': 0 for k in ks for top in (1, 5)}
    unit = [row / max(np.linalg.norm(row), 1e-12) for row in np.asarray(bank, dtype=np.float64)]
    for query, label in zip(np.asarray(queries, dtype=np.float64), query_labels, strict=True):
        query = query / max(np.linalg.norm(query), 1e-12)
        cosines = [float(row @ query) for row in unit]
        order = sorted(range(len(unit)), key=lambda i: (-cosines[i], i))
        for k in ks:
            scores = {}
            for i in order[:k]:
                label_i = int(bank_labels[i])
                scores[label_i] = scores.get(label_i, 0.0) + np.exp(cosines[i] / temperature)
            ranking = sorted(scores, key=lambda c: (-scores[c], c))
            for top in (1, 5):
                right[f'top{top}/k={k}'] += int(label) in ranking[:top]
    return {name: 100 * count / len(queries) for name, count in right.items()}


def clusters(samples, queries, classes, dim, seed=0, spread=1.0):
    """Points about the centres of classes, so that neither all nor none are right."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator)
    sets = []
    for count in (samples, queries):
        labels = torch.randint(classes, (count,), generator=generator)
        sets += [centres[labels] + spread * torch.randn(count, dim, generator=generator), labels]
    return sets


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 60),
    queries=st.integers(1, 20),
    classes=st.integers(1, 12),
    dim=st.integers(2, 9),
    chunk=st.integers(1, 70),
    temperature=st.sampled_from([0.02, 0.07, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_a_loop_over_all_pairs(samples, queries, classes, dim, chunk, temperature, seed):
    data = clusters(samples, queries, classes, dim, seed)
    ks = [k for k in (3, 1, 7, 40) if k <= samples] or [1]
    expected = brute_force(*data, classes, ks, temperature)
    found = knn_accuracy(*data, classes, ks=ks, temperature=temperature, chunk_size=chunk)
    assert found == pytest.approx(expected)
    assert list(found) == list(expected)


@pytest.mark.parametrize('k', [1, 10, 50])
def test_equals_scikit_learn(k):
    neighbors = pytest.importorskip('sklearn.neighbors')
    bank, bank_labels, queries, labels = clusters(400, 150, 9, 8, spread=1.5)
    model = neighbors.KNeighborsClassifier(
        k, weights=lambda distances: np.exp((1 - distances) / 0.07), metric='cosine', algorithm='brute'
    ).fit(bank.numpy(), bank_labels.numpy())
    found = knn_accuracy(bank, bank_labels, queries, labels, 9, ks=(k,), chunk_size=64)
    assert found[f'top1/k={k}'] == pytest.approx(100 * model.score(queries.numpy(), labels.numpy()))
    held = KNNBank(9, chunk_size=64)
    held.add(bank, bank_labels)
    scores = held.scores(queries, k)
    torch.testing.assert_close(
        scores / scores.sum(1, keepdim=True),
        torch.from_numpy(model.predict_proba(queries.numpy())),
        rtol=1e-4,
        atol=1e-6,
    )
    distances, indices = model.kneighbors(queries.numpy())
    cosines, mine = held.neighbours(queries, k)
    assert np.array_equal(mine.numpy(), indices)
    np.testing.assert_allclose(1 - cosines.numpy(), distances, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 3, 7, 100])
def test_of_equal_cosines_the_earlier_sample_is_nearer(chunk):
    # Whole numbers with a power of two for a length: the cosines are exact, and equal in every chunk.
    rows = torch.tensor([[0.0, 2.0], [2.0, 0.0], [4.0, 0.0], [-2.0, 0.0]])
    order = torch.tensor([0, 1, 2, 1, 3, 2, 1, 0, 1, 3])
    bank = KNNBank(10, chunk)
    bank.add(rows[order], torch.arange(10))
    cosines, indices = bank.neighbours(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), 7)
    assert indices.tolist() == [[1, 2, 3, 5, 6, 8, 0], [0, 7, 1, 2, 3, 4, 5]]
    assert cosines.tolist() == [[1.0] * 6 + [0.0], [1.0] * 2 + [0.0] * 5]
    # 0.0 and -0.0 are the same cosine.
    keys = _best_keys(torch.tensor([[-0.0, 0.0, -0.0, -1.0, 0.0]]), 10, 5)
    assert _read(keys.sort(descending=True).values)[1].tolist() == [[10, 11, 12, 14, 13]]


def test_of_equal_scores_the_lower_label_wins():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    query = torch.tensor([[1.0, 0.0]])
    for labels in ([4, 2], [2, 4]):
        found = [knn_accuracy(bank, torch.tensor(labels), query, torch.tensor([y]), 6, ks=(2,)) for y in (2, 4)]
        assert [each['top1/k=2'] for each in found] == [100.0, 0.0]
        assert [each['top5/k=2'] for each in found] == [100.0, 100.0]


def test_a_class_without_a_neighbour_is_not_among_the_five():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    found = knn_accuracy(bank, labels, torch.eye(3)[:1], torch.tensor([3]), 4, ks=(3,))
    assert found == {'top1/k=3': 0.0, 'top5/k=3': 0.0}


def test_a_k_greater_than_the_bank_takes_all_of_it_and_says_so():
    bank, bank_labels, queries, labels = clusters(30, 20, 4, 5)
    with pytest.warns(UserWarning, match=r'k=\[100, 200\]: the bank has 30 samples'):
        found = knn_accuracy(bank, bank_labels, queries, labels, 4, ks=(100, 30, 200))
    assert found['top1/k=100'] == found['top1/k=30'] == found['top1/k=200']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        knn_accuracy(bank, bank_labels, queries, labels, 4, ks=(30,))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype):
    bank, bank_labels, queries, labels = clusters(200, 80, 5, 6)
    bank, queries = bank.to(dtype), queries.to(dtype)
    found = knn_accuracy(bank, bank_labels, queries, labels, 5, ks=(5, 20))
    assert found == knn_accuracy(bank.float(), bank_labels, queries.float(), labels, 5, ks=(5, 20))
    held = KNNBank(5)
    held.add(bank, bank_labels)
    assert held.neighbours(queries, 3)[0].dtype == torch.float32


def test_scale_and_batches_do_not_matter():
    bank, bank_labels, queries, labels = clusters(150, 60, 5, 6)
    whole = knn_accuracy(bank, bank_labels, queries, labels, 5, ks=(9,))
    held = KNNBank(5, chunk_size=40)
    for start in range(0, 150, 17):
        part = slice(start, start + 17)
        held.add(bank[part] * (start + 1), bank_labels[part])
        held.neighbours(queries[:2], 1)
    assert len(held) == 150
    assert held.accuracy(1e3 * queries, labels, ks=(9,)) == whole
    assert knn_accuracy(torch.zeros(3, 2), torch.tensor([1, 0, 0]), torch.zeros(1, 2), torch.tensor([0]), 2, ks=(3,))


def test_a_small_temperature_does_not_overflow():
    bank, bank_labels, queries, labels = clusters(50, 30, 4, 5)
    nearest = knn_accuracy(bank, bank_labels, queries, labels, 4, ks=(1,))['top1/k=1']
    assert knn_accuracy(bank, bank_labels, queries, labels, 4, ks=(50,), temperature=1e-6)['top1/k=50'] == nearest


X, Y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
MISTAKES = {
    'no bank': ((X[:0], Y[:0], X, Y, 2), {}, 'the bank is empty'),
    'no queries': ((X, Y, X[:0], Y[:0], 2), {}, 'there are no queries'),
    'other features': ((X, Y, X[:, :1], Y, 2), {}, 'have 1 features each, those of the bank 2'),
    'NaN in the bank': ((X * float('nan'), Y, X, Y, 2), {}, 'the bank hold NaN'),
    'infinite queries': ((X, Y, X + float('inf'), Y, 2), {}, 'the queries hold NaN or infinite'),
    'labels of another number': ((X, Y[:2], X, Y, 2), {}, '2 labels for 3 samples'),
    'a label too great': ((X, Y + 2, X, Y, 2), {}, 'labels of the bank are 2 to 2, but there are 2 classes'),
    'a label below 0': ((X, Y, X, Y - 1, 2), {}, 'labels of the queries are -1 to -1'),
    'labels as floats': ((X, Y, X, Y.float(), 2), {}, 'must be an integer tensor'),
    'features as integers': ((Y[:, None], Y, X, Y, 2), {}, r'floating point tensor, features \(N, d\)'),
    'no k': ((X, Y, X, Y, 2), {'ks': ()}, r'ks=\(\) must be'),
    'k of 0': ((X, Y, X, Y, 2), {'ks': (0,)}, r'ks=\(0,\) must be'),
    'a k twice': ((X, Y, X, Y, 2), {'ks': (1, 1)}, 'each once'),
    'a number for ks': ((X, Y, X, Y, 2), {'ks': 20}, 'ks=20 must be'),
    'no temperature': ((X, Y, X, Y, 2), {'ks': (1,), 'temperature': 0}, 'temperature=0 must be'),
    'no classes': ((X, Y, X, Y, 0), {}, 'num_classes=0 must be'),
    'no chunk': ((X, Y, X, Y, 2), {'chunk_size': 0}, 'chunk_size=0 must be'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(mistake):
    data, options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*data, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_with_the_bank_on_the_cpu():
    bank, bank_labels, queries, labels = clusters(3000, 500, 20, 32)
    expected = knn_accuracy(bank, bank_labels, queries, labels, 20, chunk_size=700)
    for where in ('cpu', 'cuda'):
        found = knn_accuracy(bank.to(where), bank_labels.to(where), queries.cuda(), labels.cuda(), 20, chunk_size=700)
        assert found == pytest.approx(expected, abs=0.5)
        assert found == knn_accuracy(bank.to(where), bank_labels, queries.cuda(), labels, 20, chunk_size=700)
