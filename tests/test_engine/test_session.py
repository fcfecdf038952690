"""Levels, theta_0, the report, the log and the checks over the life of a run."""

import gc
import json
import logging
import weakref

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import FlexibleRunner
from torch import nn

from olor_mm.engine import RollbackSession, RollbackSettings
from olor_mm.layers import assign_layers
from olor_mm.rollback import MissingAnchorError, layerwise_penalty
from tests._torch import grad_scaler

from ._toy import ToyModel, make_runner, toy_config, weights

CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'


def build(model, rollback, **wrapper):
    cfg = {'constructor': CONSTRUCTOR, 'optimizer': {'type': 'SGD', 'lr': 0.1}, 'rollback': rollback, **wrapper}
    return build_optim_wrapper(model, cfg)


def step(wrapper, model, inputs=None):
    loss = model(torch.randn(4, 4) if inputs is None else inputs, torch.randn(4, 2), mode='loss')['loss']
    wrapper.update_params(loss)


@pytest.mark.parametrize('roots', [('backbone',), ('backbone', 'head'), ('',)])
@pytest.mark.parametrize('index', ['layer', 'tensor'])
def test_levels_are_the_equation_on_the_table(roots, index):
    model = ToyModel()
    wrapper = build(model, {'max_level': 0.1, 'min_level': 0.01, 'power': 2, 'roots': roots, 'index': index})
    table = assign_layers(model, roots, index)
    levels = wrapper.rollback_session.rollback.levels
    names = {p: name for name, p in model.named_parameters()}
    expected = {k: layerwise_penalty(i, table.num_layers, 0.1, 0.01, 2) for k, i in table.index.items()}
    assert {names[p]: level for p, level in levels.items()} == expected


@pytest.mark.parametrize('wrap', [torch.nn.DataParallel, torch.compile])
def test_wrapped_models_have_the_same_levels(wrap):
    model = ToyModel()
    plain = build(model, {'max_level': 0.1}).rollback_session.rollback
    plain.detach()
    wrapped = wrap(model)
    assert build(wrapped, {'max_level': 0.1}).rollback_session.rollback.levels == plain.levels


def pretrained(tmp_path, drop=(), change=None):
    torch.manual_seed(5)
    state = {k: torch.randn_like(v) for k, v in ToyModel().state_dict().items() if v.dtype.is_floating_point}
    state = {k: v for k, v in state.items() if k not in drop}
    state.update(change or {})
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'pretrained.pth')
    return state


def test_roots_loaded_takes_what_a_checkpoint_delivered_and_nothing_else(tmp_path):
    state = pretrained(tmp_path, drop=('backbone.blocks.1.bias',), change={'head.weight': torch.zeros(5, 8)})
    config = toy_config(tmp_path / 'a', rollback={'max_level': 0.1, 'min_level': 0.1, 'roots': 'loaded'})
    runner = make_runner(config, load_from=str(tmp_path / 'pretrained.pth'))
    runner.train()
    session = runner.optim_wrapper.rollback_session
    names = {k: p for k, p in runner.model.named_parameters() if p in session.rollback.levels}
    loaded = {k for k, _ in runner.model.named_parameters()} - {'backbone.blocks.1.bias', 'head.weight'}
    assert names.keys() == loaded
    assert all(torch.equal(session.rollback.anchor(p), state[k]) for k, p in names.items())
    # Resumed: the same parameters, whatever the checkpoint of the run itself delivers.
    config.work_dir = str(tmp_path / 'b')
    again = make_runner(config, load_from=str(tmp_path / 'a' / 'epoch_1.pth'), resume=True)
    again.train()
    rollback = again.optim_wrapper.rollback_session.rollback
    assert {k for k, p in again.model.named_parameters() if p in rollback.levels} == loaded
    assert all(torch.equal(a, b) for a, b in zip(weights(runner).values(), weights(again).values(), strict=True))


def test_roots_loaded_from_init_cfg(tmp_path):
    torch.save(ToyModel().backbone.state_dict(), tmp_path / 'backbone.pth')
    model = {'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'backbone.pth')}}}
    config = toy_config(tmp_path / 'a', model=model, rollback={'max_level': 0.1, 'min_level': 0.1, 'roots': 'loaded'})
    runner = make_runner(config)
    runner.train()
    rollback = runner.optim_wrapper.rollback_session.rollback
    names = {k for k, p in runner.model.named_parameters() if p in rollback.levels}
    assert names == {k for k, _ in runner.model.named_parameters() if k.startswith('backbone')}


def test_anchor_from_a_file_in_a_fresh_run(tmp_path):
    state = pretrained(tmp_path)
    file = str(tmp_path / 'pretrained.pth')
    runner = make_runner(toy_config(tmp_path / 'a', rollback={'max_level': 0.1, 'min_level': 0.1, 'anchor': file}))
    runner.train()
    rollback = runner.optim_wrapper.rollback_session.rollback
    names = {p: name for name, p in runner.model.named_parameters()}
    assert len(rollback.levels) == 10
    assert all(torch.equal(rollback.anchor(p), state[names[p]]) for p in rollback.levels)


def test_other_roots_after_a_resume_need_to_be_told_their_theta_0(tmp_path):
    state = pretrained(tmp_path)
    file = str(tmp_path / 'pretrained.pth')
    rollback = {'max_level': 0.1, 'min_level': 0.1}
    optimizer = {'type': 'AdamW', 'lr': 0.01}
    make_runner(toy_config(tmp_path / 'a', rollback=rollback, optimizer=optimizer, load_from=file)).train()
    options = {'load_from': str(tmp_path / 'a' / 'epoch_1.pth'), 'resume': True, 'optimizer': optimizer}
    rollback['roots'] = ('backbone', 'head')
    with pytest.raises(MissingAnchorError, match=r'head\.weight'):
        make_runner(toy_config(tmp_path / 'b', rollback=rollback, **options)).train()
    runner = make_runner(toy_config(tmp_path / 'b', rollback={**rollback, 'anchor': file}, **options))
    runner.train()
    found = runner.optim_wrapper.rollback_session.rollback
    assert all(torch.equal(found.anchor(p), state[name]) for name, p in runner.model.named_parameters())


def test_roots_loaded_without_any_checkpoint_is_an_error(tmp_path):
    runner = make_runner(toy_config(tmp_path, rollback={'max_level': 0.1, 'roots': 'loaded'}))
    with pytest.raises(ValueError, match=r"roots='loaded': no checkpoint delivered.*load_from"):
        runner.train()


def logged(caplog, runner):
    """What the run's logger wrote."""
    runner.logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        runner.train()
    return caplog.text


def test_the_report_says_layers_levels_and_where_theta_0_came_from(tmp_path, caplog):
    pretrained(tmp_path, drop=('backbone.norm.weight',), change={'backbone.blocks.0.bias': torch.zeros(3)})
    file = str(tmp_path / 'pretrained.pth')
    config = toy_config(tmp_path / 'a', rollback={'max_level': 0.1, 'min_level': 0.01, 'power': 1}, load_from=file)
    text = logged(caplog, make_runner(config))
    rows = [line.split() for line in text.splitlines()]
    assert ['0', 'stem', '2', '40', '0.1'] in rows
    assert ['1', 'backbone.blocks.0', '2', '72', '0.07'] in rows
    assert ['3', 'backbone.blocks.2', '4', '88', '0.01'] in rows
    assert f'theta_0: 8 of 10 tensors from {file}' in text
    assert '2 of 10 tensors came from no checkpoint' in text
    assert 'backbone.blocks.0.bias (there it has shape (3,))' in text
    assert 'backbone.norm.weight' in text


def scalars(runner):
    file = next(p for p in map(__import__('pathlib').Path, [runner.work_dir]) for p in p.rglob('scalars.json'))
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize('log', [True, False])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_discrepancy_is_logged_at_the_loggers_interval(log, by_epoch, tmp_path, monkeypatch):
    config = toy_config(tmp_path, by_epoch=by_epoch, rollback={'max_level': 0.1, 'min_level': 0.1, 'log': log})
    runner = make_runner(config)
    from olor_mm.engine.session import RollbackSession

    calls = []
    measure = RollbackSession.measure
    monkeypatch.setattr(RollbackSession, 'measure', lambda self: (calls.append(1), measure(self))[1])
    runner.train()
    lines = scalars(runner)
    overall = {line['step']: line['rollback/discrepancy'] for line in lines if 'rollback/discrepancy' in line}
    layers = [line for line in lines if 'rollback/discrepancy/000_stem' in line]
    if not log:
        assert not overall
        assert not layers
        assert not calls
        return
    assert list(overall) == [line['step'] for line in layers] == list(range(2, 19, 2))
    # Computed when the logger is due and at no other iteration.
    assert len(calls) == 9
    rollback = runner.optim_wrapper.rollback_session.rollback
    now = torch.cat([p.detach().flatten() for p in rollback.levels])
    then = torch.cat([rollback.anchor(p).flatten() for p in rollback.levels])
    assert overall[18] == pytest.approx(((now - then).norm() / then.norm()).item(), rel=1e-5)
    assert len([k for k in layers[0] if k.startswith('rollback/discrepancy/')]) == 4


def test_logging_leaves_the_checkpoint_as_it_was(tmp_path):
    make_runner(toy_config(tmp_path, rollback={'max_level': 0.1})).train()
    saved = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    assert not any('rollback' in key for key in saved['message_hub']['log_scalars'])


def test_a_step_without_gradients_at_the_roots_is_an_error():
    model = ToyModel()
    wrapper = build(model, {'max_level': 0.1})
    wrapper.initialize_count_status(model, 0, 4)
    loss = model.head(torch.randn(2, 8)).square().mean()
    with pytest.raises(RuntimeError, match=r'the first step pulled nothing back.*had a gradient'):
        wrapper.update_params(loss)


def test_a_learning_rate_of_0_at_the_roots_is_an_error(tmp_path):
    config = toy_config(tmp_path, rollback={'max_level': 0.1})
    config.optim_wrapper.paramwise_cfg = {'custom_keys': {'backbone': {'lr_mult': 0.0}}}
    with pytest.raises(ValueError, match=r'learning rate.*is 0 \(lr=0 or lr_mult=0\)'):
        make_runner(config).train()


def test_roots_loaded_puts_heads_last_wherever_they_are_registered():
    class Detr(ToyModel):
        def __init__(self):
            super().__init__()
            self.bbox_head = self._modules.pop('head')
            self.encoder = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2)])

    model = Detr()
    wrapper = build(model, {'max_level': 0.1, 'roots': 'loaded'})
    model.load_state_dict(Detr().state_dict())
    wrapper.initialize_count_status(model, 0, 4)
    index = wrapper.rollback_session.layers.index
    assert max(i for name, i in index.items() if 'encoder' in name) < index['bbox_head.weight']
    assert max(i for name, i in index.items() if 'backbone' in name) < min(
        i for name, i in index.items() if 'encoder' in name
    )


def test_an_optimizer_that_skips_its_hooks_is_an_error():
    class Hookless(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            self.step = self.bare_step

        def bare_step(self, closure=None):
            for group in self.param_groups:
                for p in group['params']:
                    p.data.add_(p.grad, alpha=-group['lr'])

        def step(self, closure=None):
            raise NotImplementedError

    model = ToyModel()
    wrapper = build(model, {'max_level': 0.1}, optimizer={'type': Hookless, 'lr': 0.1})
    with pytest.raises(RuntimeError, match='without calling its step hooks'):
        step(wrapper, model)


def test_an_optimizer_put_in_place_of_the_first_is_followed_or_refused():
    model = ToyModel()
    wrapper = build(model, {'max_level': 0.5, 'min_level': 0.5})
    wrapper.optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(wrapper, model)
    assert wrapper.rollback_session.rollback.optimizer is wrapper.optimizer
    assert wrapper.rollback_session.rollback.num_rolled_back == 10
    wrapper.optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(RuntimeError, match='trains other tensors'):
        wrapper.step()


def test_overflow_at_the_first_step_is_no_error():
    """AmpOptimWrapper needs an accelerator; its scaler does not."""
    from mmengine.optim import OptimWrapper

    class Scaled(OptimWrapper):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.loss_scaler = grad_scaler('cpu', init_scale=64.0)

        def backward(self, loss, **kwargs):
            self.loss_scaler.scale(loss).backward(**kwargs)
            self._inner_count += 1

        def step(self, **kwargs):
            self.loss_scaler.step(self.optimizer, **kwargs)
            self.loss_scaler.update()

    model = ToyModel()
    wrapper = build(model, {'max_level': 0.1}, type=Scaled)
    start = weights_of(model)
    step(wrapper, model, torch.full((4, 4), float('inf')))
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model), start, strict=True))
    step(wrapper, model)
    rollback = wrapper.rollback_session.rollback
    assert rollback.num_steps == 1
    assert all(
        torch.equal(rollback.anchor(p), t)
        for p, t in zip(model.parameters(), start, strict=True)
        if p in rollback.levels
    )


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize('source', ['load_from', 'init_cfg'])
@pytest.mark.parametrize('roots', [('backbone',), 'loaded'])
def test_flexible_runner(source, roots, tmp_path, caplog):
    """Its strategy initialises before the wrapper is built, loads after, and never calls initialize_count_status."""
    state = pretrained(tmp_path)
    file = str(tmp_path / 'pretrained.pth')
    config = toy_config(tmp_path / 'a', rollback={'max_level': 0.1, 'min_level': 0.1, 'roots': roots})
    if source == 'load_from':
        config.load_from = file
    else:
        config.model.backbone = {'init_cfg': {'type': 'Pretrained', 'checkpoint': file, 'prefix': 'backbone.'}}
    config.strategy = {'type': 'SingleDeviceStrategy'}
    config.env_cfg = {'dist_cfg': {'backend': 'gloo'}}
    config.experiment_name = f'toy_flexible_{source}_{roots[0]}'
    runner = FlexibleRunner.from_cfg(config)
    assert 'came from no checkpoint' not in logged(caplog, runner)
    rollback = runner.optim_wrapper.rollback_session.rollback
    assert rollback.num_steps == 18
    for name, param in runner.model.named_parameters():
        if param in rollback.levels:
            assert torch.equal(rollback.anchor(param), state[name])


@pytest.mark.parametrize('source', ['load_from', 'init_cfg', None])
def test_flexible_runner_that_accumulates(source, tmp_path):
    """Its strategy then calls initialize_count_status, but before it loads."""
    state, file = pretrained(tmp_path), str(tmp_path / 'pretrained.pth')
    config = toy_config(tmp_path / 'a', rollback={'max_level': 0.1, 'min_level': 0.1, 'roots': 'loaded'})
    config.optim_wrapper.accumulative_counts = 2
    if source == 'load_from':
        config.load_from = file
    elif source == 'init_cfg':
        config.model.backbone = {'init_cfg': {'type': 'Pretrained', 'checkpoint': file, 'prefix': 'backbone.'}}
    config.strategy = {'type': 'SingleDeviceStrategy'}
    config.env_cfg = {'dist_cfg': {'backend': 'gloo'}}
    config.experiment_name = f'toy_flexible_accumulating_{source}'
    runner = FlexibleRunner.from_cfg(config)
    if source is None:
        with pytest.raises(ValueError, match=r"roots='loaded': no checkpoint delivered"):
            runner.train()
        return
    runner.train()
    rollback = runner.optim_wrapper.rollback_session.rollback
    assert rollback.num_steps == 9
    names = {param: name for name, param in runner.model.named_parameters()}
    assert rollback.levels
    assert all(torch.equal(rollback.anchor(p), state[names[p]]) for p in rollback.levels)


def test_a_vit_under_foreign_names_is_told_what_would_load(tmp_path, caplog):
    """Nothing matches then, and no loader complains."""
    VisionTransformer = pytest.importorskip('mmpretrain.models').VisionTransformer  # noqa: N806
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    file = tmp_path / 'timm.pth'
    torch.save(TimmViT(embed_dim=24, depth=2, num_heads=3).state_dict(), file)
    for scheme, hint in (('', True), ('vit2mmpretrain:', False)):
        model = torch.nn.Module()
        init_cfg = dict(type='Pretrained', checkpoint=f'{scheme}{file}')
        model.backbone = VisionTransformer(arch=arch, init_cfg=init_cfg)
        session = RollbackSession(RollbackSettings(max_level=0.1), model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session.attach(optimizer)
        model.backbone.init_weights()
        caplog.clear()
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        session.start(optimizer)
        logger.removeHandler(caplog.handler)
        assert ("loads with 'vit2mmpretrain:' before it" in caplog.text) == hint


def test_a_run_that_is_over_is_freed(tmp_path):
    """Message hubs live as long as the process; theta_0 and the optimizer's state must not with them."""
    held = []
    for i in range(2):
        runner = make_runner(toy_config(tmp_path / str(i), rollback={'max_level': 0.1, 'power': 1}))
        runner.train()
        held += [weakref.ref(runner.optim_wrapper.optimizer), weakref.ref(runner.optim_wrapper.rollback_session)]
        hub = runner.message_hub
        del runner
    gc.collect()
    assert [ref() for ref in held] == [None] * 4
    # The last value can still be asked for.
    assert 0 < hub.get_scalar('train/rollback/discrepancy').current() < 1
