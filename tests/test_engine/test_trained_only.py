"""Checkpoints of what was trained alone: what is in them, and that they go together with the pre-trained weights."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint

from olor_mm.engine import OtherWeightsError, SaveTrainedHook
from olor_mm.engine.trained_only import LEFT_OUT
from tests.test_models._attention import AttentionModel, adapted

from ._toy import make_runner, toy_config, weights

HOOKS = [{'type': 'olor_mm.ResumableRandomnessHook'}, {'type': 'olor_mm.SaveTrainedHook'}]
EMA = {'type': 'EMAHook', 'momentum': 0.1}
LORA = {'type': 'LoRA', 'rank': 2}


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp('pretrained') / 'plain.pth'
    torch.save({'state_dict': AttentionModel(backbone={'kind': 'torch'}).state_dict()}, file)
    return str(file)


def config(folder, file, method=None, hooks=(), **changes):
    init_cfg = {'type': 'Pretrained', 'checkpoint': file, 'prefix': 'backbone.'} if file else None
    model = {'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'method': method or LORA}
    model['backbone'] = {'kind': 'torch', 'init_cfg': init_cfg}
    return toy_config(folder, model=model, custom_hooks=[*HOOKS, *hooks], **changes)


@pytest.fixture(scope='module')
def trained(pretrained, tmp_path_factory):
    """A folder with the checkpoint of an epoch."""
    folder = tmp_path_factory.mktemp('trained')
    make_runner(config(folder, pretrained, train_cfg={'max_epochs': 1})).train()
    return folder


def saved(folder, epoch):
    return torch.load(folder / f'epoch_{epoch}.pth', weights_only=False)


def test_what_is_saved(pretrained, tmp_path):
    method = {**LORA, 'train': r'blocks\.1\.norm\.bias'}
    runner = make_runner(config(tmp_path, pretrained, method))
    runner.train()
    trained = {name for name, p in runner.model.named_parameters() if p.requires_grad}
    assert saved(tmp_path, 3)['state_dict'].keys() == {*trained, LEFT_OUT}
    assert trained > {'head.weight', 'backbone.blocks.1.norm.bias'}


def test_buffers_that_change_are_saved(pretrained, tmp_path):
    method = {'type': 'Subset', 'train': r'^backbone\.norm'}
    make_runner(config(tmp_path, pretrained, method)).train()
    stats = {f'backbone.norm.{name}' for name in ('running_mean', 'running_var', 'num_batches_tracked')}
    params = {'backbone.norm.weight', 'backbone.norm.bias', 'head.weight', 'head.bias'}
    assert saved(tmp_path, 3)['state_dict'].keys() == {*stats, *params, LEFT_OUT}


@pytest.mark.parametrize('hooks', [(), (EMA,)], ids=['plain', 'averaged'])
def test_resumed_equals_uninterrupted(pretrained, tmp_path, hooks):
    whole = make_runner(config(tmp_path / 'whole', pretrained, hooks=hooks))
    whole.train()
    make_runner(config(tmp_path / 'part', pretrained, hooks=hooks, train_cfg={'max_epochs': 2})).train()
    changes = {'load_from': str(tmp_path / 'part' / 'epoch_2.pth'), 'resume': True}
    resumed = make_runner(config(tmp_path / 'part', pretrained, hooks=hooks, **changes))
    resumed.train()
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[key]), key
    one, other = (saved(tmp_path / name, 3) for name in ('whole', 'part'))
    for kind in ('state_dict', *(['ema_state_dict'] if hooks else [])):
        assert one[kind].keys() == other[kind].keys()
        assert all(torch.equal(value, other[kind][key]) for key, value in one[kind].items())


@pytest.mark.parametrize('first', [HOOKS, HOOKS[:1]], ids=['from what was trained', 'from a whole checkpoint'])
def test_what_was_trained_earlier_is_kept(pretrained, tmp_path, first):
    method = {'type': 'Subset', 'train': r'^backbone\.norm'}
    make_runner(config(tmp_path, pretrained, method, train_cfg={'max_epochs': 1}), custom_hooks=first).train()
    assert (LEFT_OUT in saved(tmp_path, 1)['state_dict']) == (first is HOOKS)
    changes = {'load_from': str(tmp_path / 'epoch_1.pth'), 'resume': True, 'train_cfg': {'max_epochs': 2}}
    make_runner(config(tmp_path, pretrained, {'type': 'Linear'}, **changes)).train()
    stats = {f'backbone.norm.{name}' for name in ('running_mean', 'running_var', 'num_batches_tracked')}
    params = {'backbone.norm.weight', 'backbone.norm.bias', 'head.weight', 'head.bias'}
    assert saved(tmp_path, 2)['state_dict'].keys() == {*stats, *params, LEFT_OUT}


def test_what_is_trained_is_saved_though_it_has_not_changed(pretrained, tmp_path):
    options = {'optimizer': {'type': 'SGD', 'lr': 0.0}, 'train_cfg': {'max_epochs': 1}, 'param_scheduler': None}
    runner = make_runner(config(tmp_path, pretrained, **options))
    runner.train()
    trained = {name for name, p in runner.model.named_parameters() if p.requires_grad}
    assert saved(tmp_path, 1)['state_dict'].keys() == {*trained, LEFT_OUT}


def test_other_pretrained_weights_are_refused_before_training(pretrained, trained, tmp_path):
    changes = {'load_from': str(trained / 'epoch_1.pth'), 'resume': True}
    runner = make_runner(config(tmp_path, None, **changes))
    with pytest.raises(OtherWeightsError, match=r'other tensors .* have other values .* model\.backbone\.init_cfg='):
        runner.train()
    assert runner.iter == 0


def test_a_start_by_load_from(pretrained, tmp_path):
    make_runner(config(tmp_path, None, load_from=pretrained, train_cfg={'max_epochs': 1})).train()
    state = saved(tmp_path, 1)['state_dict']
    assert 'backbone.patch_embed.weight' not in state
    model = adapted('torch')
    model.load_state_dict(torch.load(pretrained)['state_dict'])
    model.load_state_dict(state)
    assert torch.equal(
        model.backbone.patch_embed.weight, torch.load(pretrained)['state_dict']['backbone.patch_embed.weight']
    )
    assert torch.equal(model.head.weight, state['head.weight'])


def test_a_test_finds_the_pretrained_weights(pretrained, trained, tmp_path):
    runner = make_runner(config(tmp_path, pretrained, load_from=str(trained / 'epoch_1.pth')))
    runner.load_or_resume()
    expected = torch.load(pretrained)['state_dict']
    for name in ('backbone.patch_embed.weight', 'backbone.blocks.0.attn.attn.in_proj_weight'):
        assert torch.equal(runner.model.state_dict()[name], expected[name])


@pytest.mark.parametrize('strict', [False, True])
def test_without_the_hook_it_is_refused_too(pretrained, trained, tmp_path, strict):
    with pytest.raises(OtherWeightsError, match='have other values in this model: backbone'):
        load_checkpoint(adapted('torch'), str(trained / 'epoch_1.pth'), strict=strict)
    model = MODELS.build(config(tmp_path, pretrained).model)
    model.init_weights()
    load_checkpoint(model, str(trained / 'epoch_1.pth'), strict=strict)
    state = saved(trained, 1)['state_dict']
    for name in ('head.weight', *model.tuning.added):
        assert torch.equal(model.state_dict()[name], state[name])


def test_strict_loading_into_another_model_says_what_is_missing(pretrained, trained):
    with pytest.raises(RuntimeError, match=r'in_proj_weight'):
        AttentionModel(backbone={'kind': 'torch'}).load_state_dict(saved(trained, 1)['state_dict'])
    other = adapted('torch', rank=2)
    other.load_state_dict(torch.load(pretrained)['state_dict'])
    state = saved(trained, 1)['state_dict']
    other.state_dict()['backbone.patch_embed.bias'].add_(1)
    with pytest.raises(OtherWeightsError, match=r'; 1 of them have other values .*: backbone\.patch_embed\.bias\.'):
        other.load_state_dict(state)


@pytest.mark.parametrize(('model', 'strategy'), [('MMFullyShardedDataParallel', 'object'), ('Toy', 'FSDPStrategy')])
def test_shards_are_refused(model, strategy):
    runner = SimpleNamespace(model=type(model, (), {})(), strategy=type(strategy, (), {})(), hooks=[])
    with pytest.raises(ValueError, match=r'SaveTrainedHook does not know the shards of .*(Fully|FSDP)'):
        SaveTrainedHook().before_run(runner)
