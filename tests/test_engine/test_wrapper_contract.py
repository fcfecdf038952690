"""What MMEngine documents for OptimWrapper and AmpOptimWrapper holds for ours: with level 0 to the bit.

With rollback on the truth is MMEngine's own wrapper and the rollback by hand after each update. Tests of single
promises run on MMEngine's wrapper too, so that a promise that it does not keep is not asked of ours.
"""

import importlib.util
import logging

import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.optim import CosineAnnealingLR, LinearLR, LinearMomentum, OptimWrapperDict, build_optim_wrapper
from torch import nn

from ._wrappers import LEVEL, PLACES, Run, amp_on, batch, build, config_of, equal, without_rollback

KINDS = ['mmengine', 'off', 'on']
PAIRS = [pytest.param('off', 'mmengine', id='off'), pytest.param('on', 'by hand', id='on')]
GROUPS = {'custom_keys': {'head': {'lr_mult': 10.0}}, 'bias_lr_mult': 2.0}
ADAMW = {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.1}
OPTIONS = {
    'plain': {},
    'accumulate': {'accumulative_counts': 3},
    'accumulate, clip': {'accumulative_counts': 3, 'clip_grad': {'max_norm': 0.05, 'norm_type': 1}},
    'clip by inf norm': {'clip_grad': {'type': 'norm', 'max_norm': 0.01, 'norm_type': 'inf'}},
    'clip by value': {'accumulative_counts': 2, 'clip_grad': {'type': 'value', 'clip_value': 0.001}},
    'groups': {'paramwise_cfg': GROUPS, 'optimizer': ADAMW, 'accumulative_counts': 4},
}


@pytest.fixture(params=PLACES)
def place(request, monkeypatch):
    if request.param[0] == 'AmpOptimWrapper':
        amp_on(request.param[1], monkeypatch)
    return request.param


@pytest.fixture
def said(caplog):
    """What the current logger writes."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize('max_counts', [None, 10], ids=['uncounted', 'counted'])
@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(('ours', 'truth'), PAIRS)
def test_ten_iterations(ours, truth, options, max_counts, place):
    runs = [Run(kind, place, max_counts, **options) for kind in (ours, truth)]
    start = runs[0].weights()
    for i in range(10):
        seen = []
        for run in runs:
            before = (run.wrapper.should_sync(), run.wrapper.inner_count)
            run.step(i)
            hub = run.wrapper.message_hub
            logged = {k: v.current() for k, v in hub.log_scalars.items() if k.startswith('train/grad_')}
            seen.append([before, run.wrapper.should_update(), run.wrapper.get_lr(), logged, run.weights(), run.grads()])
        assert equal(*seen)
    assert equal(*(without_rollback(run.wrapper.state_dict()) for run in runs))
    assert not equal(runs[0].weights(), start)


def test_level_0_adds_nothing_to_the_state():
    off, theirs = (Run(kind, max_counts=2, paramwise_cfg=GROUPS) for kind in ('off', 'mmengine'))
    for run in (off, theirs):
        run.step(0)
    assert equal(off.wrapper.state_dict(), theirs.wrapper.state_dict())
    assert off.wrapper.rollback_session.rollback is None
    assert not off.wrapper.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('accumulate', 'end'), [(1, 5), (3, 9), (3, 10), (3, 11), (4, 2), (3, None)])
def test_counting(kind, accumulate, end):
    """Updates at multiples and at the end, synchronisation just before them, a loss divided by what is accumulated."""
    run = Run(kind, max_counts=end, accumulative_counts=accumulate)
    updates = []
    run.wrapper.optimizer.register_step_post_hook(lambda *_: updates.append(run.wrapper.inner_count))
    for i in range(end or 11):
        last = end is not None and i + 1 == end
        assert run.wrapper.inner_count == i
        assert run.wrapper.should_sync() == ((i + 1) % accumulate == 0 or last)
        in_remainder = end is not None and i >= end - end % accumulate
        parts = end % accumulate if in_remainder else accumulate
        assert run.wrapper.scale_loss(torch.tensor(12.0)) == 12.0 / parts
        run.step(i)
        assert run.wrapper.should_update() == ((i + 1) % accumulate == 0 or last)
        assert all(g is None for g in run.grads()) == run.wrapper.should_update()
    expected = list(range(accumulate, (end or 11) + 1, accumulate))
    assert updates == expected + ([end] if end and end % accumulate else [])


@pytest.mark.parametrize('kind', KINDS)
def test_accumulating_is_the_step_on_all_of_it_and_the_remainder_counts(kind):
    run = Run(kind, max_counts=5, accumulative_counts=3, optimizer={'type': 'SGD', 'lr': 0.1})
    truth = Run('mmengine').model
    theta_0 = [p.detach().clone() for p in truth.parameters()]
    for i in range(5):
        run.step(i)
    for part in ([0, 1, 2], [3, 4]):
        truth.zero_grad()
        truth(torch.cat([batch(i) for i in part])).backward()
        with torch.no_grad():
            for p, start in zip(truth.parameters(), theta_0, strict=True):
                p -= 0.1 * p.grad
                p += (LEVEL if kind == 'on' else 0.0) * (start - p)
    for p, q in zip(run.model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize('kind', KINDS)
def test_warnings_at_the_start(kind, said):
    model, wrapper = build(kind, accumulative_counts=3)
    wrapper.initialize_count_status(model, 0, 9)
    assert 'not divisible' not in said.text
    assert 'BatchNorm' not in said.text
    if kind != 'on':
        wrapper.initialize_count_status(nn.Sequential(model, nn.BatchNorm1d(2)), 4, 10)
        assert 'not divisible' in said.text
        assert 'BatchNorm' in said.text
        assert wrapper.inner_count == 4


def test_a_count_beyond_the_end_is_an_error():
    messages = []
    for kind in KINDS:
        run = Run(kind, max_counts=3, accumulative_counts=3)
        for i in range(3):
            run.step(i)
        with pytest.raises(AssertionError, match='loss_factor should be larger than zero') as error:
            run.step(3)
        messages.append(str(error.value))
    assert len(set(messages)) == 1


@pytest.mark.parametrize(
    'options',
    [
        {'accumulative_counts': 0},
        {'clip_grad': {}},
        {'clip_grad': 0.1},
        {'clip_grad': {'type': 'norm'}},
        {'clip_grad': {'type': 'l2', 'max_norm': 1.0}},
        {'optimizer': {'type': 'SGD', 'lr': -1.0}},
        {'type': 'AmpOptimWrapper', 'loss_scale': 'static'},
        {'type': 'AmpOptimWrapper', 'loss_scale': 512},
        {'type': 'AmpOptimWrapper', 'loss_scale': {'scale': 2.0}},
        {'type': 'AmpOptimWrapper', 'dtype': 'fp16'},
        {'type': 'AmpOptimWrapper', 'dtype': 16},
    ],
    ids=str,
)
def test_mistakes_in_its_options_are_the_errors_that_they_were(options, monkeypatch):
    if options.get('type') == 'AmpOptimWrapper':
        amp_on('cpu', monkeypatch)
    errors = []
    for kind in KINDS:
        with pytest.raises((AssertionError, ValueError, TypeError, KeyError)) as error:
            build(kind, **options)
        errors.append((error.type, str(error.value)))
    assert len(set(errors)) == 1


@pytest.mark.parametrize('type_', ['AmpOptimWrapper', 'ApexOptimWrapper'])
def test_what_is_missing_is_one_plain_error(type_):
    if torch.cuda.is_available() if type_ == 'AmpOptimWrapper' else importlib.util.find_spec('apex'):
        pytest.skip('it is there')
    said = {'AmpOptimWrapper': 'only available training on gpu', 'ApexOptimWrapper': 'Apex is not installed'}[type_]
    with pytest.raises(AssertionError, match=said) as error:
        build('on', type=type_)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None


class Doubling(torch.optim.SGD):
    """Its step takes an argument of its own."""

    def step(self, closure=None, times=1):
        for _ in range(times):
            super().step(closure)


@pytest.mark.parametrize('kind', KINDS)
def test_arguments_reach_step_and_zero_grad(kind, place):
    weights = []
    for times in (1, 2):
        run = Run(kind, place, optimizer={'type': Doubling, 'lr': 0.1})
        with run.wrapper.optim_context(run.model):
            loss = run.model(batch(0, run.device))
        run.wrapper.update_params(loss, step_kwargs={'times': times}, zero_kwargs={'set_to_none': False})
        assert all(g is not None and not g.any() for g in run.grads())
        weights.append(run.weights())
        run.wrapper.zero_grad(set_to_none=True)
        assert all(g is None for g in run.grads())
    assert not equal(*weights)


def test_a_closure_that_evaluates_the_loss_again():
    """LBFGS: one step, many evaluations, one rollback."""
    weights = []
    for kind in ('on', 'by hand'):
        run = Run(kind, optimizer={'type': 'LBFGS', 'lr': 0.5, 'max_iter': 4})

        def closure(run=run):
            run.model.zero_grad()
            loss = run.model(batch(0))
            loss.backward()
            return loss

        for _ in range(2):
            run.wrapper.step(closure=closure)
            run.pull()
        weights.append(run.weights())
    assert equal(*weights)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('clip', 'key'), [({'max_norm': 0.01}, 'norm'), ({'type': 'value', 'clip_value': 1e-3}, None)])
def test_clipping(kind, clip, key, place):
    """Gradients are clipped just before the step, and a norm, that before clipping, is logged."""
    run = Run(kind, place, clip_grad=dict(clip))
    run.wrapper.message_hub.log_scalars.pop('train/grad_norm', None)
    plain = Run('mmengine', place)
    grads = {}
    for name, one in (('clipped', run), ('plain', plain)):
        store = lambda *_, name=name, one=one: grads.__setitem__(name, one.grads())  # noqa: E731
        one.wrapper.optimizer.register_step_pre_hook(store)
        one.step(0)
    norm = torch.cat([g.flatten() for g in grads['plain']]).norm().item()
    assert norm > 0.01
    if key is None:
        expected = [g.clamp(-1e-3, 1e-3) for g in grads['plain']]
        assert 'train/grad_norm' not in run.wrapper.message_hub.log_scalars
        assert 'train/grad_value' not in run.wrapper.message_hub.log_scalars
    else:
        expected = [g * (0.01 / norm) for g in grads['plain']]
        logged = run.wrapper.message_hub.get_scalar('train/grad_norm').current()
        assert logged == pytest.approx(norm, rel=1e-4)
    for g, truth in zip(grads['clipped'], expected, strict=True):
        torch.testing.assert_close(g, truth, rtol=1e-4, atol=1e-8)


@pytest.fixture
def one_rank(tmp_path):
    """A process group of one: DDP's real machinery."""
    if not dist.is_available() or dist.is_initialized():
        pytest.skip('needs a process group of its own')
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('end', [None, 7])
def test_gradients_are_synchronised_only_where_the_parameters_are_updated(kind, end, place, one_rank):
    run = Run(kind, place, max_counts=end, accumulative_counts=3)
    run.model = nn.parallel.DistributedDataParallel(run.model)
    reduced = []

    def hook(_, bucket):
        reduced.append(run.wrapper.inner_count)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    run.model.register_comm_hook(None, hook)
    for i in range(7):
        run.step(i)
    assert sorted(set(reduced)) == ([2, 5] if end is None else [2, 5, 6])


@pytest.mark.parametrize('kind', KINDS)
def test_the_scaler_for_shards(kind, one_rank, monkeypatch):
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    amp_on('cpu', monkeypatch)
    wrapper = build(kind, type='AmpOptimWrapper', use_fsdp=True)[1]
    assert type(wrapper.loss_scaler) is ShardedGradScaler


@pytest.mark.parametrize('kind', KINDS)
def test_the_context_casts_with_amp_alone(kind, place):
    run = Run(kind, place)
    device = run.device

    def enabled():
        out = nn.functional.linear(*[torch.ones(1, 1, device=device)] * 2)
        return out.dtype != torch.float32

    assert not enabled()
    with run.wrapper.optim_context(run.model):
        assert enabled() == (place[0] == 'AmpOptimWrapper')
        out = nn.Linear(2, 2).to(device)(torch.ones(1, 2, device=device))
    low = torch.float16 if device == 'cuda' else torch.bfloat16
    assert out.dtype == (low if place[0] == 'AmpOptimWrapper' else torch.float32)
    assert not enabled()
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


@pytest.mark.parametrize(
    'optimizer', [{'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}, {'type': 'SGD', 'lr': 0.05}, ADAMW]
)
@pytest.mark.parametrize('paramwise', [None, GROUPS], ids=['one group', 'groups'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_state_dict_brings_everything_back(kind, optimizer, paramwise, place, tmp_path):
    options = {'optimizer': optimizer, 'paramwise_cfg': paramwise, 'accumulative_counts': 2}
    straight, first, second = (Run(kind, place, **options) for _ in range(3))
    for i in range(4):
        straight.step(i)
        first.step(i)
    state = first.wrapper.state_dict()
    assert {'state', 'param_groups'} <= state.keys()
    assert ('base_param_settings' in state) == (paramwise is not None)
    assert ('loss_scaler' in state) == (place[0] == 'AmpOptimWrapper')
    assert ('rollback' in state) == (kind == 'on')
    torch.save({'optimizer': state, 'model': first.model.state_dict()}, tmp_path / 'saved.pth')
    saved = torch.load(tmp_path / 'saved.pth', weights_only=True)
    second.model.load_state_dict(saved['model'])
    second.wrapper.load_state_dict(saved['optimizer'])
    second.wrapper.initialize_count_status(second.model, 4, 8)
    assert equal(second.wrapper.state_dict(), first.wrapper.state_dict())
    for i in range(4, 8):
        straight.step(i)
        second.step(i)
    assert equal(straight.weights(), second.weights())
    assert equal(straight.wrapper.state_dict(), second.wrapper.state_dict())


@pytest.mark.parametrize('kind', KINDS)
def test_learning_rates_momentum_groups_and_defaults(kind, place):
    optimizer = {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}
    wrapper = Run(kind, place, max_counts=4, optimizer=optimizer).wrapper
    assert wrapper.get_lr() == {'lr': [0.05]}
    assert wrapper.get_momentum() == {'momentum': [0.9]}
    assert wrapper.base_param_settings is None
    assert wrapper.param_groups is wrapper.optimizer.param_groups
    assert wrapper.defaults is wrapper.optimizer.defaults
    run = Run(kind, place, max_counts=4, optimizer=ADAMW, paramwise_cfg=GROUPS)
    run.step(0)
    wrapper = run.wrapper
    assert wrapper.get_lr() == {'base_lr': [0.01], 'lr': pytest.approx([0.01, 0.02, 0.01, 0.02, 0.1, 0.1])}
    assert wrapper.get_momentum() == {'momentum': [0.9] * 6}
    assert len(wrapper.param_groups) == 7
    assert wrapper.param_groups[-1] is wrapper.base_param_settings
    assert torch.equal(wrapper.base_param_settings['params'], torch.tensor([0.0]))
    assert {k: v for k, v in wrapper.base_param_settings.items() if k != 'params'} == wrapper.defaults
    wrapper = Run(kind, place, optimizer={'type': 'Adagrad', 'lr': 0.1}).wrapper
    assert wrapper.get_momentum() == {'momentum': [0]}
    assert f'Type: {type(wrapper).__name__}' in repr(wrapper)
    assert '_accumulative_counts: 1' in repr(wrapper)
    assert repr(wrapper.optimizer) in repr(wrapper)


@pytest.mark.parametrize('paramwise', [None, GROUPS], ids=['one group', 'groups'])
@pytest.mark.parametrize(('ours', 'truth'), PAIRS)
def test_schedulers_work_on_the_wrapper(ours, truth, paramwise, place):
    seen = []
    for kind in (ours, truth):
        run = Run(kind, place, max_counts=8, paramwise_cfg=paramwise)
        schedulers = [
            LinearLR(run.wrapper, start_factor=0.25, begin=0, end=4, by_epoch=False),
            CosineAnnealingLR(run.wrapper, T_max=4, begin=4, end=8, by_epoch=False),
            LinearMomentum(run.wrapper, start_factor=0.5, begin=0, end=4, by_epoch=False),
        ]
        values = []
        for i in range(8):
            values.append((run.wrapper.get_lr(), run.wrapper.get_momentum()))
            run.step(i)
            for scheduler in schedulers:
                scheduler.step()
        key = 'lr' if paramwise is None else 'base_lr'
        assert [round(lr[key][0] / 0.05, 4) for lr, _ in values[:4]] == [0.25, 0.5, 0.75, 1.0]
        seen.append((values, run.weights()))
    assert equal(*seen)


class Adversaries(nn.Module):
    """A generator and a discriminator, each with its optimizer."""

    def __init__(self):
        super().__init__()
        self.gen = nn.Linear(4, 4)
        self.disc = nn.Linear(4, 2)


def adversaries(kind, place):
    torch.manual_seed(0)
    model = Adversaries().to(place[1])
    parts = {'gen': model.gen, 'disc': model.disc}
    groups = {'gen': None, 'disc': {'bias_lr_mult': 2.0}}
    configs = {k: config_of(kind, type=place[0], paramwise_cfg=groups[k]) for k in parts}
    return model, OptimWrapperDict(**{k: build_optim_wrapper(v, configs[k]) for k, v in parts.items()})


def duel(model, wrappers, i, device, theta_0=None):
    """A step of each; with ``theta_0`` each is followed by the rollback of what it trains."""
    for name in ('disc', 'gen'):
        with wrappers[name].optim_context(model):
            loss = model.disc(model.gen(batch(i, device))).float().square().mean()
        wrappers[name].update_params(loss if name == 'disc' else -loss)
        wrappers.zero_grad()
        for key, p in getattr(model, name).named_parameters():
            if theta_0 is not None:
                p.detach().lerp_(theta_0[f'{name}.{key}'], LEVEL)


@pytest.mark.parametrize(('ours', 'truth'), PAIRS)
def test_a_dict_of_wrappers(ours, truth, place, tmp_path):
    model, wrappers = adversaries(ours, place)
    other, others = adversaries(truth, place)
    theta_0 = {k: v.clone() for k, v in other.state_dict().items()}
    for i in range(4):
        duel(model, wrappers, i, place[1])
        duel(other, others, i, place[1], theta_0 if truth == 'by hand' else None)
    assert equal(list(model.parameters()), list(other.parameters()))
    assert wrappers.get_lr() == {'gen.lr': [0.05], 'disc.base_lr': [0.05], 'disc.lr': [0.05, 0.1]}
    assert wrappers.get_momentum() == {'gen.momentum': [0.9], 'disc.momentum': [0.9, 0.9]}
    assert {k: len(v) for k, v in wrappers.param_groups.items()} == {'gen': 1, 'disc': 3}
    assert list(wrappers.keys()) == ['gen', 'disc']
    assert len(wrappers) == 2
    assert 'gen' in wrappers
    for call in (wrappers.update_params, wrappers.backward):
        with pytest.raises(NotImplementedError):
            call(torch.ones(()))
    with pytest.raises(NotImplementedError):
        wrappers.step()
    state = wrappers.state_dict()
    assert state.keys() == {'gen', 'disc'}
    assert equal(without_rollback(state), without_rollback(others.state_dict()))
    torch.save(state, tmp_path / 'saved.pth')
    again, again_wrappers = adversaries(ours, place)
    again.load_state_dict(model.state_dict())
    again_wrappers.load_state_dict(torch.load(tmp_path / 'saved.pth', weights_only=True))
    for one, some in ((model, wrappers), (again, again_wrappers)):
        duel(one, some, 5, place[1])
    assert equal(list(model.parameters()), list(again.parameters()))
    with pytest.raises(AssertionError, match='other'):
        wrappers.load_state_dict({'other': {}})
