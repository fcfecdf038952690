"""NaN and infinity in training: said in the iteration they arise in, and never saved over good weights."""

import pytest
import torch
from mmengine.hooks import Hook

from olor_mm.engine import NonFiniteError, load_from_local
from olor_mm.engine.finite import non_finite

from ._toy import make_runner, toy_config, weights

INF, NAN = float('inf'), float('nan')


class Poison(Hook):
    """Makes the data of some iterations, counted from 1, what they should not be."""

    def __init__(self, value, iterations):
        self.value, self.iterations = value, iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            data_batch['target'][0].fill_(self.value)


class Lose(Hook):
    """The step is skipped, as by a GradScaler: no gradient arrives."""

    def before_train(self, runner):
        for param in runner.model.parameters():
            param.register_hook(lambda grad: torch.nan_to_num(grad, 0.0, 0.0, 0.0).clamp(-1, 1))


def runner_of(work_dir, hooks=(), accumulate=None, changes=None, **options):
    config = toy_config(work_dir, rollback={'max_level': 0.1, 'min_level': 0.01})
    config.default_hooks.checkpoint = {'type': 'olor_mm.DurableCheckpointHook', 'max_keep_ckpts': 1, **options}
    config.default_hooks.checkpoint.setdefault('interval', 1)
    if accumulate:
        config.optim_wrapper.accumulative_counts = accumulate
    runner = make_runner(config, **(changes or {}))
    for hook in hooks:
        runner.register_hook(hook)
    return runner


@pytest.mark.parametrize('value', [NAN, INF, -INF])
def test_the_iteration_is_named_and_the_last_good_checkpoint_stays(value, tmp_path):
    runner = runner_of(tmp_path, [Poison(value, {9})])
    with pytest.raises(NonFiniteError, match=r'loss is (nan|inf) in iteration 9, and it has reached .*epoch_1\.pth'):
        runner.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    saved = load_from_local(str(tmp_path / 'epoch_1.pth'))
    assert not non_finite(saved['state_dict'].items())


def test_before_the_first_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r'iteration 2.*no checkpoint yet: lower the learning rate'):
        runner_of(tmp_path, [Poison(NAN, {2})]).train()


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    """The checkpoint of a run's first epoch."""
    folder = tmp_path_factory.mktemp('first')
    runner_of(folder, changes={'train_cfg': {'by_epoch': True, 'max_epochs': 1}}).train()
    return folder / 'epoch_1.pth'


def test_after_a_resume_the_checkpoint_that_it_went_on_from_is_named(first, tmp_path):
    runner = runner_of(tmp_path, [Poison(NAN, {8})], changes={'load_from': str(first), 'resume': True})
    with pytest.raises(
        NonFiniteError,
        match=r'iteration 8.*The last checkpoint is \S*epoch_1\.pth, from before.*not come with --resume.*load_from',
    ):
        runner.train()


def test_a_checkpoint_of_nan_is_not_gone_on_from(first, tmp_path):
    checkpoint = load_from_local(str(first))
    checkpoint['state_dict']['head.weight'][0, 0] = NAN
    torch.save(checkpoint, tmp_path / 'bad.pth')
    runner = runner_of(tmp_path / 'run', changes={'load_from': str(tmp_path / 'bad.pth'), 'resume': True})
    with pytest.raises(NonFiniteError, match=r'from \S*bad\.pth, which holds NaN .*head\.weight.*an earlier one'):
        runner.train()


def test_accumulated_gradients_are_seen_when_they_are_used(tmp_path):
    with pytest.raises(NonFiniteError, match='iteration 5'):
        runner_of(tmp_path, [Poison(NAN, {3})], accumulate=4, interval=9).train()


def test_a_skipped_step_is_a_warning(tmp_path):
    runner = runner_of(tmp_path, [Lose(), Poison(NAN, {4, 5, 12})])
    runner.train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('the weights are finite') == 2
    assert 'loss is nan in iteration 4' in log
    assert not non_finite(weights(runner).items())


def test_steps_that_are_skipped_for_ever_are_an_error(tmp_path):
    runner = runner_of(tmp_path, [Lose(), Poison(NAN, range(4, 99))], max_invalid_losses=5)
    with pytest.raises(NonFiniteError, match=r'iteration 9, as in every iteration since 4\. The last checkpoint is'):
        runner.train()


@pytest.mark.parametrize(('name', 'value'), [('head.weight', INF), ('backbone.norm.running_mean', NAN)])
def test_weights_that_are_bad_without_a_bad_loss_are_not_saved(name, value, tmp_path):
    class Spoil(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == 12:
                runner.model.state_dict()[name].view(-1)[0] = value

    with pytest.raises(NonFiniteError, match=rf'epoch_2.pth was not saved.*{name}\).*epoch_1\.pth'):
        runner_of(tmp_path, [Spoil()]).train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def test_infinity_in_a_buffer_is_no_mistake(tmp_path):
    runner = runner_of(tmp_path)
    runner.model.register_buffer('mask', torch.full((2, 2), -INF))
    runner.train()
    assert (tmp_path / 'epoch_3.pth').exists()


def test_a_buffer_that_is_not_saved_is_not_looked_at(tmp_path):
    runner = runner_of(tmp_path)
    runner.model.register_buffer('scratch', torch.full((2,), NAN), persistent=False)
    runner.train()
    assert (tmp_path / 'epoch_3.pth').exists()


def test_off(tmp_path):
    runner_of(tmp_path, [Poison(NAN, {9})], check_finite=False).train()
    assert non_finite(load_from_local(str(tmp_path / 'epoch_3.pth'))['state_dict'].items())
