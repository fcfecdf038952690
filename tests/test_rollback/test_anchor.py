"""theta_0: when it is taken, where it comes from, what a checkpoint without it leads to, what detach() leaves."""

import copy
import warnings

import pytest
import torch

from olor_mm.rollback import ANCHOR_KEY, INITIAL_LR_KEY, MissingAnchorError, Rollback, anchors_from_file


def make(optimizer='AdamW', level=0.1, rolled=True, **kwargs):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), level), **kwargs) if rolled else None
    return model, optimizer, rollback


def train(model, optimizer, steps=2, start=0):
    for t in range(start, start + steps):
        torch.manual_seed(t)
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()


def values(params):
    return [p.detach().clone() for p in params]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD', 'Adagrad'])
def test_taken_just_before_the_first_step_not_when_built(optimizer):
    model, optimizer, rollback = make(optimizer)
    assert all(rollback.anchor(p) is None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    train(model, optimizer)
    assert all(torch.all(rollback.anchor(p) == 0.5) for p in model.parameters())
    assert all(optimizer.state[p][ANCHOR_KEY] is rollback.anchor(p) for p in model.parameters())


def test_one_copy_of_the_anchored_parameters_and_nothing_else():
    model, optimizer, _ = make()
    base_model, base, _ = make(rolled=False)
    train(model, optimizer)
    train(base_model, base)

    def size(optimizer):
        return sum(v.numel() for s in optimizer.state.values() for v in s.values())

    assert size(optimizer) - size(base) == sum(p.numel() for p in model.parameters())


def test_given_anchors(tmp_path):
    model, optimizer, _ = make(rolled=False)
    given = {p: torch.full_like(p, 0.25) for p in model.parameters()}
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 1.0), anchor=given)
    train(model, optimizer)
    assert all(torch.all(p == 0.25) for p in model.parameters())
    rollback.detach()

    file = tmp_path / 'pretrained.pth'
    torch.save({'state_dict': {f'module.{k}': torch.full_like(v, 0.75) for k, v in model.state_dict().items()}}, file)
    names = {p: name for name, p in model.named_parameters()}
    Rollback(optimizer, dict.fromkeys(model.parameters(), 1.0), anchor=file, names=names)
    train(model, optimizer)
    assert all(torch.all(p == 0.75) for p in model.parameters())


def test_an_anchor_is_never_an_alias_of_the_weight():
    model, optimizer, _ = make(rolled=False)
    given = {p: p.detach() for p in model.parameters()}
    start = values(model.parameters())
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1), anchor=given)
    train(model, optimizer)
    assert equal([rollback.anchor(p) for p in model.parameters()], start)


def test_reading_a_file_reports_what_did_not_fit(tmp_path):
    model, _, _ = make(rolled=False)
    state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    state['backbone.1.bias'] = torch.zeros(7)
    del state['backbone.0.bias']
    torch.save(state, tmp_path / 'x.pth')
    found = anchors_from_file(tmp_path / 'x.pth', model.named_parameters(), prefix='backbone.')
    assert found.matched == ['0.weight', '1.weight']
    assert found.missing == ['0.bias']
    assert found.mismatched == {'1.bias': ((7,), (2,))}
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth'):
        anchors_from_file(tmp_path / 'nothing.pth', model.named_parameters())


@pytest.mark.parametrize('first', ['load', 'rollback'])
def test_a_checkpoint_brings_theta_0_whatever_comes_first(first, tmp_path):
    model, optimizer, _ = make()
    start = values(model.parameters())
    train(model, optimizer)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / 'x.pth')
    weights, state = torch.load(tmp_path / 'x.pth', weights_only=True)
    model, optimizer, _ = make(rolled=False)
    model.load_state_dict(weights)
    if first == 'load':
        optimizer.load_state_dict(state)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1))
    if first == 'rollback':
        optimizer.load_state_dict(state)
    train(model, optimizer)
    assert equal([rollback.anchor(p) for p in model.parameters()], start)


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD'])
def test_a_checkpoint_without_theta_0_is_an_error_unless_told(optimizer):
    model, base, _ = make(optimizer, rolled=False)
    train(model, base)
    weights, state = model.state_dict(), base.state_dict()

    def resume(**kwargs):
        model, fresh, rollback = make(optimizer, **kwargs)
        model.load_state_dict(weights)
        fresh.load_state_dict(state)
        return model, fresh, rollback

    model, fresh, _ = resume()
    # A second attempt, as in a notebook, must not take what the first one refused.
    for _ in range(2):
        with pytest.raises(MissingAnchorError, match=r"anchor='FILE'.*anchor='current'"):
            train(model, fresh)
    assert equal(model.state_dict().values(), weights.values())
    model, fresh, rollback = resume(anchor='current')
    train(model, fresh)
    assert equal([rollback.anchor(p) for p in model.parameters()], weights.values())


def test_an_optimizer_that_has_trained_already_is_not_anchored_silently():
    model, optimizer, _ = make(rolled=False)
    train(model, optimizer)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1))
    with pytest.raises(MissingAnchorError):
        train(model, optimizer)
    rollback.detach()
    Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1), anchor='current')
    train(model, optimizer)


def test_a_step_on_nothing_takes_nothing():
    model, optimizer, rollback = make()
    optimizer.step()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    train(model, optimizer)
    assert all(torch.all(rollback.anchor(p) == 0.5) for p in model.parameters())


def test_an_optimizer_that_fills_its_state_before_the_first_step_is_not_taken_for_trained():
    model, optimizer, rollback = make(rolled=False)
    for p in model.parameters():
        optimizer.state[p]['hessian_step'] = 0
        optimizer.state[p]['hessian'] = torch.zeros_like(p)
    rollback = Rollback(optimizer, dict.fromkeys(model.parameters(), 0.1))
    rollback.capture()
    assert all(torch.equal(rollback.anchor(p), p) for p in model.parameters())


@pytest.mark.parametrize('resume', [False, True])
def test_unfreezing_later_anchors_to_the_frozen_value(resume):
    model, optimizer, rollback = make()
    model[0].requires_grad_(False)
    start = values(model.parameters())
    train(model, optimizer)
    assert rollback.anchor(model[0].weight) is None
    if resume:
        weights, state = model.state_dict(), optimizer.state_dict()
        model, optimizer, rollback = make()
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    model[0].requires_grad_(True)
    train(model, optimizer)
    assert equal([rollback.anchor(p) for p in model.parameters()], start)


def test_no_gradient_no_pull():
    model, optimizer, rollback = make(level=0.5)
    train(model, optimizer)
    before = values(model[0].parameters())
    optimizer.zero_grad()
    model[1](torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    assert equal(model[0].parameters(), before)
    assert rollback.num_rolled_back == 2


def test_detach_undoes_it():
    model, optimizer, rollback = make()
    train(model, optimizer)
    rollback.detach()
    rollback.detach()
    assert not any(ANCHOR_KEY in s for s in optimizer.state.values())
    assert not any(INITIAL_LR_KEY in g for g in optimizer.param_groups)
    base_model, base, _ = make(rolled=False)
    base_model.load_state_dict(model.state_dict())
    base.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(base_model, base)
    assert equal(model.parameters(), base_model.parameters())


@pytest.mark.parametrize(
    ('build', 'said'),
    [
        (lambda o, p: Rollback(o, {p: 2.0}, names={p: 'w'}), r'levels\[w\]=2.0'),
        (lambda o, p: Rollback(o, {p: float('nan')}), r'=nan'),
        (lambda o, p: Rollback(o, {torch.nn.Parameter(torch.ones(2)): 0.1}), r'\(2,\) is not a parameter of this'),
        (lambda o, p: Rollback(o, {p: 0.1}, anchor={p: torch.ones(9)}), r'anchor \(9,\)'),
        (lambda o, p: Rollback(o, {p: 0.1}, anchor='x.pth'), r'give names='),
        (lambda o, p: Rollback(o, {p: 0.1}, form='fast'), r"form='fast'"),
        (lambda o, p: (Rollback(o, {p: 0.1}), Rollback(o, {p: 0.1})), r'has a Rollback already'),
    ],
)
def test_errors(build, said):
    model, optimizer, _ = make(rolled=False)
    with pytest.raises(ValueError, match=said):
        build(optimizer, model[0].weight)


def test_sparse_gradients_are_refused_at_the_first_step():
    model = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Rollback(optimizer, {model.weight: 0.1}, names={model.weight: 'emb'})
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match='emb has a sparse gradient'):
        optimizer.step()


@pytest.mark.parametrize(
    ('lrs', 'initial', 'strengths'),
    [
        ((0.1, 0.05, 0.0, 0.4), None, (0.5, 0.25, 0.0, 1.0)),
        ((0.0, 0.1, 0.05), None, (0.0, 0.5, 0.25)),
        ((0.1, 0.05), 0.2, (0.25, 0.125)),
        ((0.0, 0.0), 0.0, (0.0, 0.0)),
    ],
)
@pytest.mark.parametrize('as_tensor', [False, True])
@pytest.mark.filterwarnings('ignore:the learning rate 0.4 is above')
def test_strength_follows_the_learning_rate(lrs, initial, strengths, as_tensor):
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([p], lr=lrs[0])
    if initial is not None:
        optimizer.param_groups[0]['initial_lr'] = initial
    Rollback(optimizer, {p: 0.5}, anchor={p: torch.ones(1, dtype=torch.float64)})
    for lr, a in zip(lrs, strengths, strict=True):
        optimizer.param_groups[0]['lr'] = torch.tensor(lr, dtype=torch.float64) if as_tensor else lr
        before = p.item()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert p.item() == pytest.approx(before + a * (1 - before), abs=1e-12)


def test_a_warm_up_by_hand_is_warned_of_unless_the_peak_is_said():
    def run(initial):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([p], lr=0.01)
        if initial:
            optimizer.param_groups[0]['initial_lr'] = initial
        Rollback(optimizer, {p: 0.1}, anchor={p: torch.ones(1)})
        for lr in (0.01, 0.1):
            optimizer.param_groups[0]['lr'] = lr
            p.grad = torch.zeros_like(p)
            optimizer.step()
        return p.item()

    with pytest.warns(UserWarning, match=r'learning rate is above 0\.01.*initial_lr'):
        assert run(None) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert run(0.1) == pytest.approx(1 - 0.99 * 0.9)


def test_discrepancy_is_its_definition():
    model, optimizer, rollback = make()
    start = values(model.parameters())
    train(model, optimizer, 3)
    found = rollback.discrepancy({i: list(model[i].parameters()) for i in range(2)} | {'none': []})
    for i in range(2):
        now = torch.cat([p.flatten() for p in model[i].parameters()])
        then = torch.cat([t.flatten() for t in start[2 * i : 2 * i + 2]])
        assert found[i] == pytest.approx(((now - then).norm() / then.norm()).item(), rel=1e-6)
    assert 'none' not in found


def test_a_file_that_was_changed_after_it_was_written_is_no_anchor(tmp_path):
    param = torch.nn.Parameter(torch.arange(1000.0))
    file = tmp_path / 'x.pth'
    torch.save({'w': param.detach()}, file)
    data = bytearray(file.read_bytes())
    data[data.index(param.detach().numpy().tobytes()) + 2001] ^= 1
    file.write_bytes(data)
    optimizer = torch.optim.SGD([param], lr=0.1)
    with pytest.raises(RuntimeError, match=r"x\.pth' .*changed after it was written"):
        Rollback(optimizer, {param: 0.1}, anchor=file, names={param: 'w'})


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize(
    ('values', 'taken'),
    [
        ([], True),
        ([1.0, -2.0], True),
        # Their sum is not finite, in no dtype.
        (['max', 'max', 'max'], True),
        (['max', '-max'], True),
        (['nan', 1.0], False),
        ([1.0, 'inf'], False),
        (['inf', '-inf', 0.0], False),
    ],
)
def test_theta_0_is_finite(dtype, values, taken):
    largest = torch.finfo(dtype).max
    numbers = {'max': largest, '-max': -largest, 'nan': float('nan'), 'inf': float('inf'), '-inf': -float('inf')}
    param = torch.nn.Parameter(torch.tensor([numbers.get(v, v) for v in values], dtype=dtype))
    optimizer = torch.optim.SGD([param], lr=0.1)
    rollback = Rollback(optimizer, {param: 0.1})
    if taken:
        rollback.capture()
        assert torch.equal(rollback.anchor(param), param)
    else:
        with pytest.raises(ValueError, match='has NaN or infinite values'):
            rollback.capture()
