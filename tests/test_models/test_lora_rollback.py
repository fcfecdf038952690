"""LoRA and the rollback in one run: A and B are left alone, or B goes back to 0 by the share of the level."""

import pytest
import torch

from olor_mm.rollback import layerwise_penalty
from tests.test_engine._toy import make_runner, toy_config, weights

from ._attention import AttentionModel

LEVELS = {'max_level': 0.5, 'min_level': 0.1, 'power': 2}


def run(folder, method, rollback=None, **changes):
    model = {'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'method': {'type': 'LoRA', 'rank': 2, **method}}
    changes = {'param_scheduler': None, 'train_cfg': {'max_epochs': 1}, **changes}
    optimizer = {'type': 'SGD', 'lr': 0.05}
    runner = make_runner(toy_config(folder, model=model, rollback=rollback, optimizer=optimizer, **changes))
    steps = []
    step = type(runner.model).train_step

    def train_step(*args, **kwargs):
        out = step(runner.model, *args, **kwargs)
        steps.append(weights(runner))
        return out

    runner.model.train_step = train_step
    runner.train()
    return runner, steps


def test_a_and_b_are_left_alone(tmp_path):
    plain = run(tmp_path / 'plain', {'train': 'norm'})[1]
    runner, rolled = run(tmp_path / 'rolled', {'train': 'norm'}, LEVELS)
    names = dict(runner.model.named_parameters())
    added = {names[name] for name in runner.model.tuning.added}
    assert not added & set(runner.optim_wrapper.rollback_session.levels)
    for name in runner.model.tuning.added:
        assert torch.equal(plain[0][name], rolled[0][name])
    assert not torch.equal(plain[0]['backbone.blocks.0.norm.bias'], rolled[0]['backbone.blocks.0.norm.bias'])


def test_b_goes_back_to_zero(tmp_path):
    plain = run(tmp_path / 'plain', {})[1]
    runner, rolled = run(tmp_path / 'rolled', {'rollback': True}, LEVELS)
    for i in (0, 1):
        a = layerwise_penalty(i + 1, 2, **LEVELS)
        name = f'backbone.blocks.{i}.attn.qkv.lora'
        torch.testing.assert_close(rolled[0][f'{name}.b'], (1 - a) * plain[0][f'{name}.b'])
        assert torch.equal(rolled[0][f'{name}.a'], plain[0][f'{name}.a'])
    assert runner.optim_wrapper.rollback_session.measure()[0] > 0


@pytest.mark.parametrize('roots', [('backbone',), 'loaded'])
def test_with_weights_of_a_file(tmp_path, roots):
    file = tmp_path / 'plain.pth'
    torch.save({'state_dict': AttentionModel().state_dict()}, file)
    changes = {'load_from': str(file)}
    runner, _ = run(tmp_path / 'run', {'rollback': True}, {**LEVELS, 'roots': roots, 'anchor': str(file)}, **changes)
    levels = runner.optim_wrapper.rollback_session.levels
    pulled = {name for name, p in runner.model.named_parameters() if p.requires_grad and p in levels}
    # With roots='loaded' the head is among what was loaded.
    assert pulled - {'head.weight', 'head.bias'} == {f'backbone.blocks.{i}.attn.qkv.lora.b' for i in (0, 1)}
    again = {
        **changes,
        'resume': True,
        'load_from': str(tmp_path / 'run' / 'epoch_1.pth'),
        'train_cfg': {'max_epochs': 2},
    }
    run(tmp_path / 'run', {'rollback': True}, {**LEVELS, 'roots': roots, 'anchor': str(file)}, **again)


def test_nothing_to_pull_back_is_said(tmp_path):
    with pytest.raises(ValueError, match=r'there is nothing to pull back; unfreeze them .*model\.method'):
        run(tmp_path, {}, LEVELS)
