"""The parts of class-incremental learning: split, head, statistics and alignment, each against plain arithmetic."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn import functional as F

from olor_mm.models.incremental import (
    Alignment,
    ClassMoments,
    ClassStatistics,
    TaskSplit,
    align,
    normalised_logits,
)
from olor_mm.models.incremental.alignment import draw, factors

TASKS = [[4, 0], [2], [5, 1, 3]]


class Sample:
    """What the head uses of mmpretrain's DataSample."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __contains__(self, name):
        return name in self.__dict__

    def set_pred_score(self, value):
        self.pred_score = value
        return self

    def set_pred_label(self, value):
        self.pred_label = value
        return self


# ---------------------------------------------------------------- split


def test_split_is_the_permutation_of_the_seed():
    np.random.seed(1993)
    order = np.random.permutation(100).tolist()
    split = TaskSplit.make(100, num_tasks=10, seed=1993)
    assert split.tasks == tuple(tuple(order[i : i + 10]) for i in range(0, 100, 10))
    assert order[:4] == [68, 56, 78, 8]
    assert TaskSplit.make(100, num_tasks=10, seed=1996) != split
    assert TaskSplit.make(4, num_tasks=2).tasks == ((0, 1), (2, 3))


def test_split_into_uneven_tasks():
    split = TaskSplit.make(6, task_sizes=[2, 1, 3], seed=5)
    assert [len(task) for task in split.tasks] == [2, 1, 3]
    assert sorted(split.seen(2)) == list(range(6))
    assert split.seen(1) == split.tasks[0] + split.tasks[1]
    for label, task in enumerate(split.class_to_task):
        assert label in split.tasks[task]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_tasks': 4}, r'num_classes=10 cannot .* num_tasks=4: give the sizes, .* task_sizes=\[3, 3, 2, 2\]'),
        ({'num_tasks': 11}, 'num_tasks=11 is more than num_classes=10'),
        ({'num_tasks': 0}, 'num_tasks=0 must be a number of tasks'),
        ({}, 'num_tasks=None must be .* unless task_sizes is given'),
        ({'task_sizes': [5, 4]}, r'task_sizes=\[5, 4\] are 9 classes in all, but num_classes=10'),
        ({'task_sizes': [10, 0]}, r'task_sizes=\[10, 0\] must be numbers of classes'),
        ({'task_sizes': [5, 5], 'num_tasks': 3}, 'num_tasks=3, but task_sizes has 2'),
        ({'num_tasks': 2, 'seed': -1}, 'seed=-1 must be a whole number'),
    ],
)
def test_split_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        TaskSplit.make(10, **options)


@pytest.mark.parametrize('tasks', [[], [[0, 1], []], [[0, 2]], [[0, 1], [1]], 'ab'])
def test_tasks_that_are_none(tasks):
    with pytest.raises(ValueError, match='must share out the labels'):
        TaskSplit(tasks)


# ---------------------------------------------------------------- head


def make_head(task, **options):
    torch.manual_seed(task)
    head = MODELS.build(
        {'type': 'olor_mm.IncrementalClsHead', 'in_channels': 4, 'tasks': TASKS, 'task': task, **options}
    )
    head.init_weights()
    return head


def test_head_starts_as_a_truncated_normal_and_freezes_the_old_ones():
    head = make_head(2, in_channels=4000)
    for linear in head.heads:
        assert abs(float(linear.weight.detach().std()) - 0.02) < 1e-3
        assert float(linear.weight.abs().max()) < 0.12
        assert not linear.bias.any()
    assert [p.requires_grad for p in head.heads.parameters()] == [False] * 4 + [True] * 2


def test_head_predicts_over_what_was_seen_under_the_labels():
    head, features = make_head(1), torch.randn(7, 4)
    first, second = (F.linear(features, linear.weight, linear.bias) for linear in head.heads)
    logits = head((torch.zeros(7, 9), features))
    torch.testing.assert_close(logits[:, [4, 0, 2]], torch.cat([first, second], dim=1))
    assert bool((logits[:, [1, 3, 5]] == -math.inf).all())
    samples = head.predict((features,), [Sample() for _ in range(7)])
    for row, sample in enumerate(samples):
        torch.testing.assert_close(sample.pred_score[[4, 0, 2]], torch.cat([first, second], dim=1)[row].softmax(0))
        assert not sample.pred_score[[1, 3, 5]].any()
        assert int(sample.pred_label) == [4, 0, 2][int(torch.cat([first, second], dim=1)[row].argmax())]


def test_loss_is_of_the_current_task_alone():
    head, features = make_head(2), torch.randn(4, 4)
    labels = [3, 5, 1, 1]
    loss = head.loss((features,), [Sample(gt_label=torch.tensor([label])) for label in labels])['loss']
    logits = F.linear(features, head.heads[2].weight, head.heads[2].bias)
    p, target = logits.softmax(1), torch.tensor([TASKS[2].index(label) for label in labels])
    rce = (1 - p.gather(1, target[:, None])).mean() * math.log(1e4)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target) + 0.1 * rce)
    loss.backward()
    assert head.heads[2].weight.grad is not None
    assert head.heads[0].weight.grad is None
    # Soft labels, as mixup makes them.
    scores = torch.eye(6)[labels]
    soft = head.loss((features,), [Sample(gt_score=score) for score in scores])['loss']
    torch.testing.assert_close(soft, loss)
    with pytest.raises(ValueError, match='1 of 2 images of a batch are not of task 2'):
        head.loss((features[:2],), [Sample(gt_label=torch.tensor([label])) for label in (1, 2)])


def test_norm_and_scaled_features():
    head, features = make_head(2, norm_eps=1e-6, feature_scale=0.02), torch.randn(3, 4)
    normed = F.layer_norm(features, (4,), eps=1e-6)
    torch.testing.assert_close(head.pre_logits((features,)), normed)
    for scales, aligned in (((1, 1, 1), False), ((1.04, 1.02, 1), True)):
        head.aligned.fill_(aligned)
        wanted = [F.linear(s * normed, h.weight, h.bias) for s, h in zip(scales, head.heads, strict=True)]
        torch.testing.assert_close(head((features,))[:, [4, 0, 2, 5, 1, 3]], torch.cat(wanted, dim=1))
    # The loss never sees it.
    loss = head.loss((features,), [Sample(gt_label=torch.tensor([1]))] * 3)
    head.aligned.fill_(False)
    torch.testing.assert_close(loss, head.loss((features,), [Sample(gt_label=torch.tensor([1]))] * 3))


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_checkpoint_of_a_task_loads_into_the_next(load):
    before, model = nn.ModuleDict({'head': make_head(1)}), nn.ModuleDict({'head': make_head(2)})
    new = model.head.heads[2].weight.clone()
    load(copy.deepcopy(model), before.state_dict(), strict=True)
    load(model, before.state_dict(), strict=True)
    for task in (0, 1):
        torch.testing.assert_close(model.head.heads[task].weight, before.head.heads[task].weight, rtol=0, atol=0)
    torch.testing.assert_close(model.head.heads[2].weight, new, rtol=0, atol=0)
    # What else is missing is still told.
    state = before.state_dict()
    del state['head.heads.0.bias']
    with pytest.raises(RuntimeError, match=r'heads\.0\.bias'):
        load(model, state, strict=True)
    # So is the new head, where the one before it is not there either.
    state = {key: value for key, value in before.state_dict().items() if 'heads.1' not in key}
    with pytest.raises(RuntimeError, match=r'heads\.2\.bias'):
        load(model, state, strict=True)


def test_checkpoint_of_another_split_is_refused():
    head = make_head(0)
    for tasks in ([[0, 4], [2], [5, 1, 3]], [[4, 0, 2], [5, 1, 3]]):
        other = MODELS.build({'type': 'olor_mm.IncrementalClsHead', 'in_channels': 4, 'tasks': tasks, 'task': 0})
        with pytest.raises(ValueError, match='another split of the classes'):
            head.load_state_dict(other.state_dict())


def test_heads_return_to_their_weights():
    head = make_head(1)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    with head.kept():
        head.heads[0].weight.data.add_(1)
        head.aligned.fill_(True)
    for key, value in head.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'tasks': None}, r'model\.head\.tasks is not set: run the config with tools/slca\.py'),
        ({'task': 3}, r'model\.head\.task=3 must be one of the tasks 0 to 2'),
        ({'in_channels': 0}, r'model\.head\.in_channels=0 must be'),
        ({'feature_scale': -1}, r'model\.head\.feature_scale=-1 must be'),
        ({'norm_eps': 0.0}, r'model\.head\.norm_eps=0\.0 must be'),
    ],
)
def test_head_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({'type': 'olor_mm.IncrementalClsHead', 'in_channels': 4, 'tasks': TASKS, **options})


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r'in_channels=4: features .* are \(2, 5\)'):
        make_head(0)((torch.zeros(2, 5),))


# ---------------------------------------------------------------- statistics


def reference_statistics(features, labels, classes, ridge):
    """Two passes, class by class, in NumPy."""
    means = np.stack([features[labels == c].mean(0) for c in classes])
    covariances = np.stack([np.cov(features[labels == c].T) + ridge * np.eye(features.shape[1]) for c in classes])
    return means, covariances


@pytest.mark.parametrize('batch', [1, 7, 64])
def test_statistics_are_those_of_two_passes(batch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, 5, 5, 8] * 16)[torch.randperm(64, generator=generator)]
    # A large mean: sums of squares would lose the covariance.
    features = torch.randn(64, 6, dtype=torch.float64, generator=generator) * 1e-2 + 1e3 + labels[:, None]
    moments = ClassMoments([8, 3, 5], 6)
    for part in torch.arange(64).split(batch):
        moments.update(features[part], labels[part])
    found = moments.statistics(ridge=1e-4)
    means, covariances = reference_statistics(features.numpy(), labels.numpy(), [8, 3, 5], 1e-4)
    assert found.classes == [8, 3, 5]
    assert found.counts == [16, 16, 32]
    np.testing.assert_allclose(found.means, means, rtol=1e-12)
    np.testing.assert_allclose(found.covariances, covariances, rtol=1e-6, atol=1e-12)
    assert found.means.dtype == found.covariances.dtype == torch.float64


class Together:
    """all_reduce of ranks that are threads."""

    def __init__(self, size):
        self.barrier, self.values, self.local = threading.Barrier(size, timeout=30), [None] * size, threading.local()

    def __call__(self, value):
        self.values[self.local.rank] = value.clone()
        self.barrier.wait()
        value.copy_(sum(self.values))
        self.barrier.wait()


def test_statistics_of_several_processes_are_those_of_one(monkeypatch):
    features, labels = torch.randn(20, 3), torch.tensor([0, 1, 0, 1, 2] * 4)
    # Class 2 is on one process alone.
    owner = torch.where(labels == 2, 0, torch.arange(20) % 3)
    together = Together(3)
    monkeypatch.setattr('olor_mm.models.incremental.statistics.get_world_size', lambda: 3)
    monkeypatch.setattr('olor_mm.models.incremental.statistics.all_reduce', together)

    def run(rank):
        together.local.rank = rank
        moments = ClassMoments([0, 1, 2], 3)
        moments.update(features[owner == rank], labels[owner == rank])
        moments.reduce()
        return moments.statistics()

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    means, covariances = reference_statistics(features.double().numpy(), labels.numpy(), [0, 1, 2], 1e-4)
    for found in results:
        assert found.counts == [8, 8, 4]
        np.testing.assert_allclose(found.means, means, rtol=1e-12)
        np.testing.assert_allclose(found.covariances, covariances, rtol=1e-9)


def test_one_image_leaves_the_ridge_and_none_is_refused():
    moments = ClassMoments([0, 1], 2)
    moments.update(torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match=r'no training image of the classes \[1\]'):
        moments.statistics()
    moments.update(torch.zeros(1, 2), torch.tensor([1]))
    torch.testing.assert_close(moments.statistics(0.5).covariances, torch.eye(2).double().expand(2, 2, 2) * 0.5)
    with pytest.raises(ValueError, match='NaN or infinite'):
        moments.update(torch.full((1, 2), math.nan), torch.tensor([0]))
    with pytest.raises(ValueError, match='label 7, which is none'):
        moments.update(torch.zeros(1, 2), torch.tensor([7]))


def test_statistics_survive_a_checkpoint(tmp_path):
    moments = ClassMoments([1, 0], 3)
    moments.update(torch.randn(6, 3), torch.tensor([0, 1] * 3))
    found = moments.statistics()
    torch.save(found.state_dict(), tmp_path / 'file.pth')
    loaded = ClassStatistics.load(torch.load(tmp_path / 'file.pth', weights_only=True))
    assert (loaded.classes, loaded.counts) == ([1, 0], [3, 3])
    torch.testing.assert_close(loaded.covariances, found.covariances, rtol=0, atol=0)
    with pytest.raises(ValueError, match='no statistics of classes'):
        ClassStatistics.load({'means': 1})


# ---------------------------------------------------------------- alignment


def gaussians(split, dim=4):
    generator = torch.Generator().manual_seed(2)
    count = split.num_classes
    roots = torch.randn(count, dim, dim, dtype=torch.float64, generator=generator)
    means = 3 * torch.randn(count, dim, dtype=torch.float64, generator=generator)
    return ClassStatistics(list(range(count)), [9] * count, means, roots @ roots.mT + 1e-4 * torch.eye(dim))


def test_normalised_logits():
    parts = [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]])]
    torch.testing.assert_close(normalised_logits(parts, 0.1), torch.tensor([[3.0, 4.0, 1.0]]) / 3 / 0.1)
    assert not normalised_logits([torch.zeros(1, 2)], 0.1).any()


@pytest.mark.parametrize('scaling', ['mean', 'sample', 'none'])
def test_drawn_features_have_the_moments_and_the_scale(scaling):
    split = TaskSplit(TASKS)
    statistics = gaussians(split)
    options = Alignment(samples=20000, scaling=scaling)
    generator = torch.Generator().manual_seed(0)
    features, targets = draw(statistics, factors(statistics), split, 2, options, generator)
    assert targets.tolist() == [column for column in range(6) for _ in range(20000)]
    for column, label in enumerate(split.seen(2)):
        drawn, task = features[targets == column], split.class_to_task[label]
        mean, covariance = statistics.means[label], statistics.covariances[label]
        if scaling == 'mean':
            mean = mean * (0.9 + 0.1 * (task + 1) / 3)
        if scaling == 'sample':
            # The moments of 1 / (1 + s (T - t)) for s uniform in (0.01, 0.03), on a fine grid.
            factor = 1 / (1 + torch.linspace(0.01, 0.03, 10001, dtype=torch.float64) * (2 - task))
            covariance = factor.square().mean() * covariance + factor.var() * torch.outer(mean, mean)
            mean = factor.mean() * mean
        scale = covariance.diagonal().sqrt()
        torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.04 * float(scale.max()))
        torch.testing.assert_close(torch.cov(drawn.T), covariance, rtol=0, atol=0.06 * float(scale.max() ** 2))


def test_each_sample_has_a_scale_of_its_own():
    split = TaskSplit([[0], [1]])
    statistics = ClassStatistics([0, 1], [2, 2], torch.full((2, 1), 100.0).double(), torch.full((2, 1, 1), 1e-12))
    features, _ = draw(
        statistics, factors(statistics), split, 1, Alignment(samples=500, scaling='sample'), torch.Generator()
    )
    s = 100 / features[:500, 0] - 1
    assert 0.01 <= float(s.min()) < 0.0105
    assert 0.0295 < float(s.max()) <= 0.03
    torch.testing.assert_close(features[500:, 0], torch.full((500,), 100.0).double(), rtol=1e-5, atol=0)


def reference_alignment(weights, biases, split, task, drawn, options):
    """SGD with momentum and weight decay, a cosine by epoch, the loss written out; gradients by autograd of it."""
    params = [p.clone().requires_grad_() for pair in zip(weights, biases, strict=True) for p in pair]
    velocity = [torch.zeros_like(p) for p in params]
    step = 0
    for epoch, batches in enumerate(drawn):
        lr = options.lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2
        for x, y in batches:
            z = [x @ params[2 * t].T + params[2 * t + 1] for t in range(task + 1)]
            norm = sum((part**2).sum(1).sqrt() + 1e-7 for part in z) / (task + 1)
            scaled = torch.cat(z, 1) / norm[:, None] / options.tau
            loss = (scaled.exp().sum(1).log() - scaled[torch.arange(len(y)), y]).mean()
            for i, grad in enumerate(torch.autograd.grad(loss, params)):
                grad = grad + options.weight_decay * params[i].detach()
                velocity[i] = grad.clone() if step == 0 else options.momentum * velocity[i] + grad
                params[i] = (params[i].detach() - lr * velocity[i]).requires_grad_()
            step += 1
    return params


@pytest.mark.parametrize('scaling', ['mean', 'sample'])
def test_alignment_is_the_plain_loop(scaling):
    from olor_mm.models.incremental.alignment import _seed

    split, head = TaskSplit(TASKS), make_head(2)
    statistics = gaussians(split)
    options = Alignment(epochs=3, samples=20, batch_size=32, scaling=scaling, lr=0.05)
    drawn, lower = [], factors(statistics)
    for epoch in range(3):
        generator = torch.Generator().manual_seed(_seed(7, 2, epoch))
        features, targets = draw(statistics, lower, split, 2, options, generator)
        order = torch.randperm(len(features), generator=generator)
        drawn.append([(features[part].float(), targets[part]) for part in order.split(32)])
    wanted = reference_alignment(
        [h.weight.detach() for h in head.heads], [h.bias.detach() for h in head.heads], split, 2, drawn, options
    )
    again = copy.deepcopy(head)
    loss = align(head.heads, split, statistics, options, seed=7)
    assert 0 < loss < 10
    for found, value in zip(head.heads.parameters(), wanted, strict=True):
        torch.testing.assert_close(found.detach(), value.detach(), rtol=1e-4, atol=1e-5)
    assert [p.requires_grad for p in head.heads.parameters()] == [False] * 4 + [True] * 2
    # The seed decides, and the state of the global generators does not.
    torch.manual_seed(99)
    align(again.heads, split, statistics, options, seed=7)
    for one, other in zip(head.heads.parameters(), again.heads.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    align(again.heads, split, statistics, options, seed=8)
    assert not torch.equal(again.heads[0].weight, head.heads[0].weight)


def test_alignment_needs_the_statistics_of_all_classes():
    split = TaskSplit(TASKS)
    statistics = gaussians(split)
    statistics.classes[4] = 77
    with pytest.raises(ValueError, match=r'no statistics of the classes \[4\]'):
        align(make_head(1).heads, split, statistics, Alignment(), 0)
    statistics = gaussians(split)
    statistics.covariances[3] = -torch.eye(4)
    with pytest.raises(ValueError, match=r'covariance of class 3 is not positive definite: .*ridge'):
        align(make_head(2).heads, split, statistics, Alignment(), 0)


def test_singular_covariances_are_factored():
    # 5 images of 64 features: rank 4, and the ridge.
    moments = ClassMoments([0], 64)
    moments.update(100 * torch.randn(5, 64), torch.zeros(5, dtype=torch.int64))
    statistics = moments.statistics()
    lower = factors(statistics)[0]
    torch.testing.assert_close(lower @ lower.T, statistics.covariances[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'taau': 1}, r'alignment\.taau=.* is not an option: did you mean tau'),
        ({'tau': 0}, r'alignment\.tau=0 must be'),
        ({'epochs': 0}, r'alignment\.epochs=0 must be'),
        ({'scaling': 'max'}, r"alignment\.scaling='max' is not known"),
        ({'spread': [0.03, 0.01]}, r'alignment\.spread=\[0\.03, 0\.01\] must be'),
        ({'spread': 1}, r'alignment\.spread=1 must be'),
        (3, 'alignment=3 must be a dict'),
    ],
)
def test_alignment_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Alignment.from_cfg(options)
