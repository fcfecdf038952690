"""LoRA in several processes: the same weights as in one, equal on all ranks, with the rollback of B and small files."""

import torch

from tests.test_engine._ranks import on_ranks
from tests.test_engine._replicas import replica, replica_config
from tests.test_engine._toy import make_runner, weights

from ._attention import AttentionModel  # noqa: F401 - registers it

#: One that is changed where it is read, and one whose output is added to.
TARGETS = [r'attn\.attn$', 'fc1']


def config(work_dir, world):
    method = {'type': 'LoRA', 'rank': 2, 'init': 'svd', 'rollback': True, 'targets': TARGETS}
    model = {'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'method': method, 'backbone': {'kind': 'torch'}}
    hooks = [{'type': 'olor_mm.SaveTrainedHook'}]
    optimizer = {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}
    return replica_config(f'{work_dir}/{world}', world, model=model, optimizer=optimizer, custom_hooks=hooks)


def train(rank, work_dir):
    runner = replica(config(work_dir, 2))
    runner.train()
    return weights(runner)


def test_two_ranks_train_as_one(tmp_path):
    one, other = on_ranks(2, train, str(tmp_path))
    runner = make_runner(config(str(tmp_path), 1))
    runner.train()
    alone = weights(runner)
    found = {name.removeprefix('module.'): value for name, value in one.items()}
    assert found.keys() == alone.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    trained = {*runner.model.tuning.added, 'head.weight', 'head.bias'}
    assert len(trained) == 2 * 4 + 2
    assert all(alone[name].any() for name in trained)
    kept = torch.load(sorted(tmp_path.glob('2/*.pth'))[-1], weights_only=False)['state_dict'].keys()
    assert {name for name in kept if 'left_out' not in name} == trained
