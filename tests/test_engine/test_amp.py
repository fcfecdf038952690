"""Mixed precision through the wrapper: skipped steps, the scaler's state, and --amp given or taken away at a resume.

On the CPU torch's scaler and autocast for the CPU stand in for those of a GPU; on a GPU nothing stands in.
"""

import contextlib
import copy
import logging
import types

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper

from olor_mm.engine import AmpOLOROptimWrapper, ApexOLOROptimWrapper, OLOROptimWrapper
from olor_mm.rollback import ANCHOR_KEY
from tests._torch import build_or_skip

from ._toy import make_runner, toy_config, weights
from ._wrappers import NEEDS_GPU, Run, amp_on, batch, equal

SCALES = {
    'dynamic': 'dynamic',
    'static': 512.0,
    'dict': {'init_scale': 1024.0, 'growth_interval': 2, 'backoff_factor': 0.25},
}


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=NEEDS_GPU)])
def place(request, monkeypatch):
    amp_on(request.param, monkeypatch)
    return 'AmpOptimWrapper', request.param


def optimizer_of(name, fused):
    options = {'lr': 0.01, **({'fused': True} if fused else {})}
    build_or_skip(getattr(torch.optim, name), [torch.nn.Parameter(torch.zeros(1))], **options)
    return {'type': name, **options}


def state_of(run):
    """All that a skipped step must leave alone: weights, the optimizer's state with theta_0, the learning rates."""
    rollback = run.wrapper.rollback_session.rollback
    return copy.deepcopy(
        {
            'weights': run.weights(),
            'optimizer': run.wrapper.optimizer.state_dict()['state'],
            'theta_0': [rollback.anchor(p) for p in run.model.parameters()],
            'steps': rollback.num_steps,
        }
    )


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('name', ['SGD', 'AdamW'])
@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
def test_an_overflow_in_the_middle_changes_nothing(scale, name, fused, place):
    optimizer = optimizer_of(name, fused)
    run = Run('on', place, loss_scale=copy.deepcopy(scale), optimizer=optimizer)
    truth = Run('by hand', place, loss_scale=copy.deepcopy(scale), optimizer=optimizer)
    for i, bad in enumerate([False, False, True, False, True, True, False]):
        before = state_of(run) if i else None
        for one in (run, truth):
            one.step(i, bad)
        if bad:
            assert equal(state_of(run), before)
        assert run.wrapper.loss_scaler.get_scale() == truth.wrapper.loss_scaler.get_scale()
    assert run.wrapper.rollback_session.rollback.num_steps == 4
    for ours, theirs in zip(run.weights(), truth.weights(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('name', ['SGD', 'AdamW'])
@pytest.mark.parametrize('counted', [False, True], ids=['uncounted', 'counted'])
@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
def test_overflows_from_the_first_step_on_keep_the_right_theta_0(scale, counted, name, fused, place):
    optimizer = optimizer_of(name, fused)
    run = Run('on', place, 9 if counted else None, loss_scale=copy.deepcopy(scale), optimizer=optimizer)
    start = run.weights()
    for i in range(3):
        run.step(i, bad=True)
        assert not run.wrapper.rollback_session.verified
    assert equal(run.weights(), start)
    run.step(3)
    session = run.wrapper.rollback_session
    assert session.verified
    assert session.rollback.num_steps == 1
    assert not equal(run.weights(), start)
    assert equal([run.wrapper.optimizer.state[p][ANCHOR_KEY] for p in run.model.parameters()], start)


@pytest.mark.parametrize('clip', [None, {'max_norm': 0.01}, {'type': 'value', 'clip_value': 1e-3}], ids=str)
@pytest.mark.parametrize('fused', [False, True])
def test_one_overflow_among_accumulated_losses_skips_their_update(fused, clip, place):
    """Also where clipping by value would make a finite number of an infinite one after the scaler has seen it."""
    options = {'accumulative_counts': 3, 'loss_scale': 512.0, 'optimizer': optimizer_of('AdamW', fused)}
    run, truth = (Run(kind, place, 12, clip_grad=clip and dict(clip), **options) for kind in ('on', 'by hand'))
    for i in range(12):
        for one in (run, truth):
            one.step(i, bad=i == 4, overflows=i == 5)
    assert run.wrapper.rollback_session.rollback.num_steps == 3
    for ours, theirs in zip(run.weights(), truth.weights(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
def test_overflow_at_the_first_step_after_a_resume(scale, fused, place, tmp_path):
    options = {'loss_scale': scale, 'optimizer': optimizer_of('AdamW', fused)}
    straight, first, second = (Run('on', place, 8, **copy.deepcopy(options)) for _ in range(3))
    start = straight.weights()
    for i in range(3):
        straight.step(i)
        first.step(i)
    saved = {'model': first.model.state_dict(), 'optimizer': first.wrapper.state_dict()}
    torch.save(saved, tmp_path / 'saved.pth')
    saved = torch.load(tmp_path / 'saved.pth', weights_only=True)
    second.model.load_state_dict(saved['model'])
    second.wrapper.load_state_dict(saved['optimizer'])
    second.wrapper.initialize_count_status(second.model, 3, 8)
    for i in range(3, 8):
        for run in (straight, second):
            run.step(i, bad=i in (3, 6))
        assert equal(straight.wrapper.state_dict(), second.wrapper.state_dict())
    assert equal(straight.weights(), second.weights())
    assert equal([second.wrapper.optimizer.state[p][ANCHOR_KEY] for p in second.model.parameters()], start)


class Hookless(torch.optim.SGD):
    """An optimizer whose step does not go through torch's, so that no hook of it is called."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.data.add_(p.grad, alpha=-group['lr'])

    step.hooked = True


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
def test_no_scale_hides_a_rollback_that_never_happens(scale, place):
    run = Run('on', place, loss_scale=scale, optimizer={'type': Hookless, 'lr': 0.1})
    run.step(0, bad=True)
    with pytest.raises(RuntimeError, match='without calling its step hooks'):
        run.step(1)


@pytest.mark.parametrize(
    ('options', 'warned'),
    [({'fused': True, 'momentum': 0.9}, True), ({'fused': True}, False), ({'momentum': 0.9}, False)],
)
def test_fused_momentum_under_a_scaler_is_warned_of(options, warned, place, caplog):
    build_or_skip(torch.optim.SGD, [torch.nn.Parameter(torch.zeros(1))], lr=0.1, **options)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING)
    Run('on', place, optimizer={'type': 'SGD', 'lr': 0.1, **options})
    assert ('leaves the momentum uninitialised' in caplog.text) == (len(options) == 2)
    caplog.clear()
    Run('on', place, optimizer={'type': 'SGD', 'lr': 0.1, **options}, loss_scale={'enabled': False})
    logger.removeHandler(caplog.handler)
    assert not caplog.text


def test_what_is_built_and_what_is_documented_of_it(place):
    run = Run('on', place, dtype='bfloat16', loss_scale={'init_scale': 8.0, 'growth_interval': 1})
    assert type(run.wrapper) is AmpOLOROptimWrapper
    assert isinstance(run.wrapper, AmpOptimWrapper)
    assert run.wrapper.cast_dtype is torch.bfloat16
    run.step(0)
    assert run.wrapper.loss_scaler.get_scale() == 16.0
    state = run.wrapper.state_dict()
    assert state['loss_scaler']['scale'] == 16.0
    assert len(state['rollback']['names']) == 6
    static = Run('on', place, loss_scale=8.0)
    for i, bad in enumerate([False, True, False]):
        static.step(i, bad)
        assert static.wrapper.loss_scaler.get_scale() == 8.0


@pytest.mark.parametrize('before', ['OptimWrapper', 'AmpOptimWrapper'])
@pytest.mark.parametrize('optimizer', [{'type': 'SGD', 'lr': 0.05}, {'type': 'AdamW', 'lr': 0.01}], ids=str)
def test_amp_given_or_taken_away_at_a_resume(before, optimizer, place):
    """theta_0, the optimizer's state and the weights go on; the scaler's state is dropped, or begins anew."""
    after = 'AmpOptimWrapper' if before == 'OptimWrapper' else 'OptimWrapper'
    first = Run('on', (before, place[1]), 8, **({'loss_scale': 256.0} if 'Amp' in before else {}), optimizer=optimizer)
    start = first.weights()
    for i in range(3):
        first.step(i)
    second = Run('on', (after, place[1]), **({'loss_scale': 64.0} if 'Amp' in after else {}), optimizer=optimizer)
    second.model.load_state_dict(first.model.state_dict())
    second.wrapper.load_state_dict(first.wrapper.state_dict())
    second.wrapper.initialize_count_status(second.model, 3, 8)
    assert equal(second.wrapper.optimizer.state_dict(), first.wrapper.optimizer.state_dict())
    if 'Amp' in after:
        assert second.wrapper.loss_scaler.get_scale() == 64.0
    assert ('loss_scaler' in second.wrapper.state_dict()) == ('Amp' in after)
    second.step(3)
    assert second.wrapper.rollback_session.verified
    assert equal([second.wrapper.optimizer.state[p][ANCHOR_KEY] for p in second.model.parameters()], start)


def test_a_scaler_that_was_off_is_torchs_own_error_at_a_resume(place):
    """As with MMEngine's wrapper: a run with ``loss_scale=dict(enabled=False)`` saved no scaler to go on with."""
    off = Run('on', place, loss_scale={'enabled': False})
    off.step(0)
    for kind in ('mmengine', 'on'):
        with pytest.raises(RuntimeError, match='saved from a disabled instance of GradScaler'):
            Run(kind, place, loss_scale=64.0).wrapper.load_state_dict(off.wrapper.state_dict())
    again = Run('on', place, loss_scale={'enabled': False})
    again.wrapper.load_state_dict(off.wrapper.state_dict())


def train(folder, amp, **options):
    optim = {'type': 'AmpOptimWrapper', 'loss_scale': 'dynamic'} if amp else {}
    config = toy_config(folder, rollback={'max_level': 0.1}, optimizer={'type': 'AdamW', 'lr': 0.01}, **options)
    config.optim_wrapper.update(optim)
    runner = make_runner(config)
    runner.train()
    return runner


def test_runs_in_mixed_precision_resume_exactly_and_switch(tmp_path, monkeypatch):
    amp_on('cpu', monkeypatch)
    straight = train(tmp_path / 'straight', amp=True)
    assert type(straight.optim_wrapper) is AmpOLOROptimWrapper
    resumed = {'load_from': str(tmp_path / 'straight' / 'epoch_1.pth'), 'resume': True}
    again = train(tmp_path / 'again', amp=True, **resumed)
    assert equal(weights(again), weights(straight))
    assert equal(again.optim_wrapper.state_dict(), straight.optim_wrapper.state_dict())
    without = train(tmp_path / 'without', amp=False, **resumed)
    assert type(without.optim_wrapper) is OLOROptimWrapper
    with_ = train(tmp_path / 'with', amp=True, load_from=str(tmp_path / 'without' / 'epoch_2.pth'), resume=True)
    for run in (without, with_):
        rollback = run.optim_wrapper.rollback_session.rollback
        expected = straight.optim_wrapper.rollback_session.rollback
        pairs = zip(rollback.levels, expected.levels, strict=True)
        assert all(torch.equal(rollback.anchor(p), expected.anchor(q)) for p, q in pairs)
        assert not equal(weights(run), weights(straight))


# ---------------------------------------------------------------- apex, which cannot be installed here


@pytest.fixture
def apex(monkeypatch):
    """What apex.amp does to an optimizer, as it documents it: one call of a step replaced after an overflow.

    A stand-in: it shows what our wrapper makes of it, not that apex works.
    """

    def skip(optimizer):
        step = optimizer.step

        def once(closure=None):
            optimizer.step = step

        optimizer.step = once

    @contextlib.contextmanager
    def scale_loss(loss, optimizer):
        yield loss * 64.0
        grads = [p.grad for group in optimizer.param_groups for p in group['params']]
        for grad in grads:
            grad /= 64.0
        if not all(g.isfinite().all() for g in grads):
            skip(optimizer)

    def initialize(model, optimizer, master_weights=None, **_):
        optimizer._amp_stash = True
        if master_weights:
            for group in optimizer.param_groups:
                group['params'] = [torch.nn.Parameter(p.detach().clone()) for p in group['params']]
        return model, optimizer

    amp = types.SimpleNamespace(
        initialize=initialize, scale_loss=scale_loss, state_dict=lambda: {'loss_scaler0': 64.0}, load_state_dict=len
    )
    monkeypatch.setattr('mmengine.optim.optimizer.apex_optimizer_wrapper.apex_amp', amp)


def test_apex_skips_its_first_steps_without_an_error(apex):
    run, truth = (Run(kind, ('ApexOptimWrapper', 'cpu'), 8) for kind in ('on', 'by hand'))
    assert type(run.wrapper) is ApexOLOROptimWrapper
    for i, bad in enumerate([True, True, False, True, False]):
        for one in (run, truth):
            one.step(i, bad)
    assert equal(run.weights(), truth.weights())
    assert run.wrapper.rollback_session.rollback.num_steps == 2
    state = run.wrapper.state_dict()
    assert state['apex_amp'] == {'loss_scaler0': 64.0}
    again = Run('on', ('ApexOptimWrapper', 'cpu'))
    again.wrapper.load_state_dict(state)
    assert equal(again.wrapper.optimizer.state_dict(), run.wrapper.optimizer.state_dict())


def test_master_weights_of_apex_are_refused(apex):
    run = Run('on', ('ApexOptimWrapper', 'cpu'), 8, opt_level='O2', master_weights=True)
    with run.wrapper.optim_context(run.model):
        loss = run.model(batch(0))
    loss.backward()
    for group in run.wrapper.optimizer.param_groups:
        for p in group['params']:
            p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match='trains other tensors than the parameters of the model'):
        run.wrapper.step()
