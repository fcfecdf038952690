"""A resumed run ends with the weights of the uninterrupted one, bit for bit; theta_0 comes from the checkpoint."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from olor_mm.rollback import ANCHOR_KEY, MissingAnchorError

from ._toy import make_runner, toy_config, weights

REPO = Path(__file__).resolve().parents[2]
ROLLBACK = {'max_level': 0.1, 'min_level': 0.01, 'power': 2}
ADAM = {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.05}

CASES = {
    'SGD': {},
    'Adam': {'optimizer': ADAM},
    'Adam, the pull in the same pass': {'optimizer': ADAM, 'form': 'single_pass'},
    'plain SGD without state': {'optimizer': {'type': 'SGD', 'lr': 0.05}},
    'no schedule': {'param_scheduler': None},
    'accumulation': {'accumulate': 2},
    'accumulation with a remainder': {'accumulate': 4},
    'EMA': {'custom_hooks': [{'type': 'olor_mm.ResumableRandomnessHook'}, {'type': 'EMAHook'}]},
    'iterations': {'by_epoch': False, 'workers': 1},
    'groups': {'paramwise': {'custom_keys': {'backbone': {'lr_mult': 0.1}, 'head': {'lr_mult': 2.0}}}},
}


def config_of(work_dir, accumulate=None, paramwise=None, rollback=ROLLBACK, form='foreach', **options):
    rollback = {**rollback, 'form': form} if rollback else None
    config = toy_config(work_dir, rollback=rollback, **options)
    if accumulate:
        config.optim_wrapper.accumulative_counts = accumulate
    if paramwise:
        config.optim_wrapper.paramwise_cfg = paramwise
    return config


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('case', CASES)
def test_resumed_equals_uninterrupted(case, tmp_path):
    config = config_of(tmp_path / 'straight', **CASES[case])
    straight = make_runner(config)
    straight.train()
    found = weights(straight)

    by_epoch = CASES[case].get('by_epoch', True)
    # MMEngine drops gradients that were being accumulated when it saved; 12 iterations end on an optimizer step.
    first = tmp_path / 'straight' / ('epoch_2.pth' if by_epoch else 'iter_12.pth')
    resumed = make_runner(config, work_dir=str(tmp_path / 'resumed'), load_from=str(first), resume=True)
    resumed.train()
    assert same(weights(resumed), found)
    plain = make_runner(config_of(tmp_path / 'plain', rollback=None, **CASES[case]))
    plain.train()
    assert not same(weights(plain), found)
    # The anchors of both runs are the weights that the first one started with.
    states = [r.optim_wrapper.rollback_session.rollback for r in (straight, resumed)]
    anchors = [[s.anchor(p) for p in s.levels] for s in states]
    assert all(torch.equal(a, b) for a, b in zip(*anchors, strict=True))


def test_off_is_bit_identical_and_keeps_nothing(tmp_path):
    off = make_runner(toy_config(tmp_path / 'off', rollback={'max_level': 0.0}))
    plain = make_runner(toy_config(tmp_path / 'plain'))
    off.train()
    plain.train()
    assert same(weights(off), weights(plain))
    optimizer = off.optim_wrapper.optimizer
    assert not any(ANCHOR_KEY in s for s in optimizer.state.values())
    assert not optimizer._optimizer_step_post_hooks
    assert optimizer.param_groups[0].keys() == plain.optim_wrapper.optimizer.param_groups[0].keys()


def test_theta_0_is_what_was_loaded_not_what_was_built(tmp_path):
    config = config_of(tmp_path / 'a')
    first = make_runner(config)
    first.train()
    start = weights(first)
    config = config_of(tmp_path / 'b', rollback={**ROLLBACK, 'max_level': 1.0, 'min_level': 1.0})
    second = make_runner(config, load_from=str(tmp_path / 'a' / 'epoch_3.pth'))
    second.train()
    after = weights(second)
    # A level of 1 at the peak learning rate; warm-up and decay pull less. The last step has lr 0 and moves nothing.
    rollback = second.optim_wrapper.rollback_session.rollback
    for name, param in second.model.named_parameters():
        if name.startswith('backbone'):
            assert torch.equal(rollback.anchor(param), start[name])
    assert not torch.equal(after['head.weight'], start['head.weight'])


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD without state'])
@pytest.mark.parametrize('saved', ['without OLOR', 'without optimizer'])
def test_a_checkpoint_without_theta_0(optimizer, saved, tmp_path):
    optimizer = ADAM if optimizer == 'AdamW' else {'type': 'SGD', 'lr': 0.05}
    hooks = {'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'save_optimizer': saved == 'without OLOR'}}
    config = config_of(tmp_path / 'first', rollback=None if saved == 'without OLOR' else ROLLBACK, optimizer=optimizer)
    config.default_hooks.update(hooks)
    first = make_runner(config)
    start = {k: v.clone() for k, v in first.model.named_parameters()}
    torch.save({'state_dict': first.model.state_dict()}, tmp_path / 'pretrained.pth')
    torch.save(first.model.backbone.state_dict(), tmp_path / 'backbone.pth')
    config.load_from = str(tmp_path / 'pretrained.pth')
    first = make_runner(config)
    first.train()
    checkpoint = str(tmp_path / 'first' / 'epoch_1.pth')
    middle = torch.load(checkpoint, weights_only=False)['state_dict']

    def resume(**rollback):
        config = config_of(tmp_path / 'second', rollback={**ROLLBACK, **rollback}, optimizer=optimizer)
        runner = make_runner(config, load_from=checkpoint, resume=True)
        runner.train()
        found = runner.optim_wrapper.rollback_session.rollback
        return {k: found.anchor(p) for k, p in runner.model.named_parameters() if p in found.levels}

    with pytest.raises(MissingAnchorError, match=r"rollback.anchor to the file.*'init_cfg'.*'current'"):
        resume()
    for file in ('pretrained.pth', 'backbone.pth'):
        anchors = resume(anchor=str(tmp_path / file))
        assert anchors
        assert all(torch.equal(v, start[k]) for k, v in anchors.items())
    assert all(torch.equal(v, middle[k]) for k, v in resume(anchor='current').items())
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth'):
        resume(anchor=str(tmp_path / 'nothing.pth'))


def test_anchor_from_init_cfg_on_resume(tmp_path):
    runner = make_runner(toy_config(tmp_path / 'x'))
    torch.save(runner.model.backbone.state_dict(), tmp_path / 'backbone.pth')
    start = {k: v.clone() for k, v in runner.model.named_parameters()}
    model = {
        'type': 'ToyModel',
        'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'backbone.pth')}},
    }
    make_runner(toy_config(tmp_path / 'plain', model=model)).train()
    config = toy_config(tmp_path / 'olor', model=model, rollback={**ROLLBACK, 'anchor': 'init_cfg'})
    runner = make_runner(config, load_from=str(tmp_path / 'plain' / 'epoch_1.pth'), resume=True)
    runner.train()
    rollback = runner.optim_wrapper.rollback_session.rollback
    for name, param in runner.model.named_parameters():
        if param in rollback.levels:
            assert torch.equal(rollback.anchor(param), start[name])


SCRIPT = """
    import sys, torch
    sys.path.insert(0, {repo!r})
    from tests.test_engine._toy import make_runner, toy_config, weights
    from mmengine.hooks import Hook
    import os, signal

    class Kill(Hook):
        priority = 'LOWEST'
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)

    config = toy_config(sys.argv[1], rollback=dict(max_level=0.1, min_level=0.01))
    runner = make_runner(config, resume=sys.argv[3] == 'resume')
    runner.register_hook(Kill())
    runner.train()
    torch.save(weights(runner), sys.argv[1] + '/final.pth')
"""


def run_script(*args):
    code = textwrap.dedent(SCRIPT).format(repo=str(REPO))
    return subprocess.run(
        [sys.executable, '-c', code, *map(str, args)], cwd=REPO, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed_by_auto(tmp_path):
    straight = run_script(tmp_path / 'straight', 0, 'no')
    assert straight.returncode == 0, straight.stderr
    killed = run_script(tmp_path / 'killed', 9, 'no')
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / 'killed' / 'final.pth').exists()
    again = run_script(tmp_path / 'killed', 0, 'resume')
    assert again.returncode == 0, again.stderr
    assert 'resumed epoch: 1' in again.stdout + again.stderr
    final = [torch.load(tmp_path / d / 'final.pth', weights_only=True) for d in ('straight', 'killed')]
    assert same(*final)
