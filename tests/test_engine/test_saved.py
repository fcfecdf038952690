"""A run that goes on from the checkpoint of another run: what differs is said, and another model is refused."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS as HOOK_REGISTRY
from mmengine.registry import MODELS
from torch import nn

from olor_mm.engine import load_from_local
from olor_mm.engine.saved import WrongCheckpointError, changed_statement
from olor_mm.rollback import MissingAnchorError

from ._toy import ToyModel, make_runner, toy_config

ROLLBACK = {'max_level': 0.1, 'min_level': 0.01, 'power': 2}
HOOKS = {'checkpoint': {'type': 'olor_mm.DurableCheckpointHook', 'interval': 1}}


@MODELS.register_module(force=True)
class WiderToy(ToyModel):
    """With three classes instead of two."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 2))


@MODELS.register_module(force=True)
class ReshapedToy(ToyModel):
    """The same names in other shapes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.backbone.blocks[1] = nn.Linear(8, 8, bias=False)
        self.backbone.blocks[1].bias = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(8, 1)


@MODELS.register_module(force=True)
class RenamedToy(ToyModel):
    """The same parameters under other names."""

    def __init__(self, **options):
        super().__init__(**options)
        self.encoder = self.backbone
        del self.backbone

    def forward(self, inputs, target, mode='tensor'):
        return super().forward(inputs, target, mode)


@MODELS.register_module(force=True)
class FrozenStemToy(ToyModel):
    """With a stem that is not trained."""

    def __init__(self, **options):
        super().__init__(**options)
        self.backbone.patch_embed.requires_grad_(False)


def config_of(folder, rollback=ROLLBACK, **options):
    return toy_config(folder, rollback=rollback, default_hooks=HOOKS, **options)


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    """The checkpoint of the first of three epochs."""
    folder = tmp_path_factory.mktemp('first')
    config = config_of(folder)
    config.train_cfg.max_epochs = 1
    make_runner(config).train()
    return folder / 'epoch_1.pth'


def resume(folder, checkpoint, **options):
    """The log of a run of one more epoch."""
    config = config_of(folder, **options)
    config.train_cfg.max_epochs = 2
    make_runner(config, load_from=str(checkpoint), resume=True).train()
    return next(folder.glob('*/*.log')).read_text()


def test_the_same_run_says_nothing(first, tmp_path):
    log = resume(tmp_path, first)
    assert 'saved otherwise' not in log
    assert load_from_local(str(tmp_path / 'epoch_2.pth'))['optimizer']['rollback']['world_size'] == 1


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'max_level': 0.2}, ['max_level: 0.1 in the checkpoint, 0.2 now', 'other levels: 6 tensors']),
        ({'power': 1}, ['power: 2 in the checkpoint, 1 now', 'other levels']),
        ({'index': 'tensor'}, ["index: 'layer' in the checkpoint, 'tensor' now", 'other levels']),
        ({'layer_map': {r'backbone\.': 0}}, ['layer_map: None', 'other levels']),
        ({'roots': ('backbone.blocks',)}, ['roots: ', 'no longer pulled back: backbone.norm.bias', 'theta_0 is kept']),
    ],
)
def test_other_settings_are_told_and_hold(first, change, says, tmp_path):
    log = resume(tmp_path, first, rollback={**ROLLBACK, **change})
    assert 'saved otherwise' in log
    assert all(text in log for text in [*says, 'the present settings hold from here on']), log
    # The anchors are those of the first run all the same.
    states = [load_from_local(str(file))['optimizer']['state'] for file in (first, tmp_path / 'epoch_2.pth')]
    anchors = [{i: s['rollback_anchor'] for i, s in state.items() if 'rollback_anchor' in s} for state in states]
    assert anchors[0].keys() == anchors[1].keys()
    assert all(torch.equal(anchors[0][i], anchors[1][i]) for i in anchors[0])


def test_a_resume_that_turns_rollback_off_is_told(first, tmp_path):
    log = resume(tmp_path, first, rollback={**ROLLBACK, 'max_level': 0, 'min_level': 0})
    assert 'saved otherwise' in log
    assert 'max_level: 0.1 in the checkpoint, 0 now' in log
    assert 'no longer pulled back' in log


def test_more_roots_have_no_theta_0(first, tmp_path):
    with pytest.raises(MissingAnchorError, match=r'2 of 12 parameters.*head\.'):
        resume(tmp_path / 'a', first, rollback={**ROLLBACK, 'roots': ('backbone', 'head')})
    log = resume(tmp_path / 'b', first, rollback={**ROLLBACK, 'roots': ('backbone', 'head'), 'anchor': 'current'})
    assert 'pulled back from now on: head.bias, head.weight' in log


def test_a_checkpoint_of_an_older_version_has_names_alone(first, tmp_path):
    checkpoint = load_from_local(str(first))
    checkpoint['optimizer']['rollback'] = {'names': checkpoint['optimizer']['rollback']['names']}
    torch.save(checkpoint, tmp_path / 'old.pth')
    assert 'saved otherwise' not in resume(tmp_path, tmp_path / 'old.pth', rollback={**ROLLBACK, 'power': 1})


def test_another_learning_rate_is_told(first, tmp_path):
    log = resume(tmp_path, first, optimizer={'type': 'SGD', 'lr': 0.02, 'momentum': 0.9})
    assert "1 of 1 parameter groups is 0.02 in the config (times lr_mult), but the checkpoint's 0.05 goes on" in log
    group = load_from_local(str(tmp_path / 'epoch_2.pth'))['optimizer']['param_groups'][0]
    # What the pull is in proportion to: never the config's rate over the checkpoint's peak.
    assert group['initial_lr'] == 0.05
    assert group['lr'] <= 0.05


def test_another_schedule_is_told(first, tmp_path):
    log = resume(tmp_path, first, param_scheduler=[{'type': 'ConstantLR', 'factor': 0.5, 'by_epoch': False}])
    assert "param_scheduler is [dict(by_epoch=False, factor=0.5, type='ConstantLR')] in the config" in log
    assert 'CosineAnnealingLR' in log[log.index("but the checkpoint's") :]


@pytest.mark.parametrize(
    ('model', 'says'),
    [
        ('WiderToy', r'2 in another|4 not at all: head\.0\.weight'),
        (
            'ReshapedToy',
            r'3 in another shape: backbone\.blocks\.1\.bias \(8,\) there, \(1,\) here, head\.weight \(2, 8\)',
        ),
        ('RenamedToy', r'10 not at all: encoder\.patch_embed\.weight'),
    ],
)
@pytest.mark.parametrize('saved', ['with its optimizer', 'without'])
def test_the_checkpoint_of_another_model(first, model, says, saved, tmp_path):
    file = first
    if saved == 'without':
        checkpoint = load_from_local(str(first))
        del checkpoint['optimizer']
        file = tmp_path / 'weights.pth'
        torch.save(checkpoint, file)
    roots = ('encoder',) if model == 'RenamedToy' else ('backbone',)
    with pytest.raises(WrongCheckpointError, match=rf'cannot go on from .*another model.*({says}).*load_from'):
        resume(tmp_path / 'run', file, model={'type': model}, rollback={**ROLLBACK, 'roots': roots})
    assert not list((tmp_path / 'run').glob('*.pth'))


@HOOK_REGISTRY.register_module(force=True)
class CopyInMemory(Hook):
    """Keeps a copy of model and wrapper, and goes back to it."""

    def __init__(self, keep, restore):
        self.keep, self.restore = keep, restore

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.keep:
            self.kept = copy.deepcopy((runner.model.state_dict(), runner.optim_wrapper.state_dict()))
        if runner.iter == self.restore:
            runner.model.load_state_dict(self.kept[0])
            runner.optim_wrapper.load_state_dict(self.kept[1])


@pytest.mark.parametrize('weights', ['backbone', 'none'])
@pytest.mark.parametrize(('keep', 'restore'), [(3, 5), (0, 0)])
def test_a_copy_in_memory_is_no_checkpoint_of_another_model(weights, keep, restore, tmp_path):
    torch.save({'state_dict': ToyModel().backbone.state_dict()}, tmp_path / 'pretrained.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'pretrained.pth')}
    model = {'backbone': {'init_cfg': init_cfg if weights == 'backbone' else None}}
    config = config_of(tmp_path, model=model)
    config.train_cfg.max_epochs = 1
    config.custom_hooks = [{'type': 'CopyInMemory', 'keep': keep, 'restore': restore}]
    make_runner(config).train()
    assert (tmp_path / 'epoch_1.pth').exists()


def test_the_optimizers_state_alone_is_no_checkpoint_of_another_model(tmp_path):
    """Only the backbone was loaded from the file that was read last."""
    model = ToyModel()
    cfg = {'constructor': 'olor_mm.OLOROptimWrapperConstructor', 'optimizer': {'type': 'SGD', 'lr': 0.1}}
    wrapper = build_optim_wrapper(model, {**cfg, 'rollback': ROLLBACK})
    torch.save(model.backbone.state_dict(), tmp_path / 'backbone.pth')
    model.backbone.load_state_dict(load_from_local(str(tmp_path / 'backbone.pth')))
    wrapper.load_state_dict(wrapper.state_dict())
    model.load_state_dict(load_from_local(str(tmp_path / 'backbone.pth')), strict=False)
    with pytest.raises(WrongCheckpointError):
        wrapper.load_state_dict(wrapper.state_dict())


def test_configs_are_compared_as_text():
    assert changed_statement('a', 'a = 1\nb = 2', 'b = 3\na = (1)') is None
    assert changed_statement('b', 'a = 1\nb = 2', 'b = 3\na = 1') == ('2', '3')
    assert changed_statement('b', 'a = 1', 'b = dict(x=3)') == ('None', 'dict(x=3)')
    for broken in (None, b'b = 1', 'b = (', 'b = ' + '(' * 5000, '\0', 'b = ' + '1 + ' * 900 + '1'):
        assert changed_statement('b', broken, 'b = 1') is None


@pytest.mark.parametrize(('kept', 'told'), [(2, ''), (1, 'the state of 1 of 2 param_schedulers'), (None, '0 of 2')])
def test_a_schedule_that_begins_anew_is_told(first, kept, told, tmp_path):
    checkpoint = load_from_local(str(first))
    checkpoint['param_schedulers'] = checkpoint['param_schedulers'][:kept]
    if kept is None:
        del checkpoint['param_schedulers']
    torch.save(checkpoint, tmp_path / 'x.pth')
    log = resume(tmp_path / 'run', tmp_path / 'x.pth')
    assert ('begin anew' in log) == bool(told)
    assert told in log


@pytest.mark.parametrize('paramwise', [{'norm_decay_mult': 0.0}, {'custom_keys': {'head': {'lr_mult': 2.0}}}])
def test_other_parameter_groups_are_refused(first, paramwise, tmp_path):
    config = config_of(tmp_path)
    config.optim_wrapper.paramwise_cfg = paramwise
    config.optim_wrapper.optimizer.weight_decay = 0.1
    runner = make_runner(config, load_from=str(first), resume=True)
    with pytest.raises(WrongCheckpointError, match=r'12 parameters in 1 groups: here it has 12 in 12.*paramwise_cfg'):
        runner.train()


@pytest.mark.parametrize('epochs', [1, 2])
def test_a_run_that_is_at_its_end_says_so(first, epochs, tmp_path):
    config = config_of(tmp_path)
    config.train_cfg.max_epochs = epochs
    make_runner(config, load_from=str(first), resume=True).train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert ('(epoch 1 of 1): there is nothing left to train' in log) == (epochs == 1)


def test_what_was_frozen_all_along_is_not_counted_as_lost(tmp_path):
    frozen = dict(model={'type': 'FrozenStemToy'})
    config = config_of(tmp_path / 'a', **frozen)
    config.train_cfg.max_epochs = 1
    make_runner(config).train()
    log = resume(tmp_path / 'b', tmp_path / 'a' / 'epoch_1.pth', **frozen)
    assert 'theta_0: 8 of 8 tensors from the resumed checkpoint' in log
