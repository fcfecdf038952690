"""Turning rollback on: names, wrapper types, inner constructors, and every mistake that can be seen when building."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope

from olor_mm.engine import AmpOLOROptimWrapper, ApexOLOROptimWrapper, OLOROptimWrapper
from olor_mm.engine.wrappers import RollbackMixin, promote
from olor_mm.rollback import ANCHOR_KEY

from ._toy import ToyModel

REPO = Path(__file__).resolve().parents[2]
CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'


def build(model=None, rollback=None, **wrapper):
    cfg = {'constructor': CONSTRUCTOR, 'optimizer': {'type': 'SGD', 'lr': 0.1}, **wrapper}
    if rollback is not None:
        cfg['rollback'] = rollback
    return build_optim_wrapper(model or ToyModel(), cfg)


def step(wrapper, model):
    loss = model(torch.randn(4, 4), torch.randn(4, 2), mode='loss')['loss']
    wrapper.update_params(loss)


@pytest.mark.parametrize(
    ('rollback', 'said'),
    [
        (None, r'optim_wrapper\.rollback=None must be a dict with max_level'),
        (0.01, r'optim_wrapper\.rollback=0\.01 must be a dict'),
        ({}, r'max_level is not set'),
        ({'max_level': 2}, r'rollback\.max_level=2 is not a rollback level'),
        ({'max_level': -1e-3}, r'rollback\.max_level=-0\.001'),
        ({'max_level': 'high'}, r"rollback\.max_level='high'"),
        ({'max_level': 0.1, 'min_level': 0.2}, r'rollback\.min_level=0\.2 is above max_level=0\.1'),
        ({'max_level': 0.1, 'min_level': -1}, r'rollback\.min_level=-1'),
        ({'max_level': 0.1, 'power': 0}, r'rollback\.power=0 must be'),
        ({'max_level': 0.1, 'power': '2x'}, r"rollback\.power='2x' must be"),
        ({'max_levle': 0.1}, r'rollback\.max_levle=0\.1 is not an option: did you mean max_level\?'),
        ({'max_level': 0.1, 'index': 'block'}, r"rollback\.index='block' is not known: choose one of layer, tensor"),
        ({'max_level': 0.1, 'form': 'fast'}, r"rollback\.form='fast' is not known"),
        ({'max_level': 0.1, 'roots': []}, r'rollback\.roots=\[\] must name'),
        ({'max_level': 0.1, 'roots': 3}, r'rollback\.roots=3 must name'),
        ({'max_level': 0.1, 'roots': ('bakbone',)}, r"'bakbone'"),
        ({'max_level': 0.1, 'roots': 'neck'}, r"'neck'"),
        ({'max_level': 0.1, 'anchor': 3}, r'rollback\.anchor=3 must be a file'),
        ({'max_level': 0.1, 'log': 'no'}, r"rollback\.log='no' must be True or False"),
        ({'max_level': 0.1, 'inner': 'Default'}, r"rollback\.inner='Default' must be the config"),
        ({'max_level': 0.1, 'layer_map': 'x'}, r"rollback\.layer_map='x' must be a dict"),
        ({'max_level': 0.1, 'layer_map': {'nothing': 1}}, r'nothing'),
    ],
)
def test_mistakes_are_errors_when_built(rollback, said):
    with pytest.raises(ValueError, match=said):
        build(rollback=rollback)


def test_frozen_roots_are_an_error_when_built():
    model = ToyModel()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"roots=\('backbone',\).*frozen"):
        build(model, {'max_level': 0.1})
    model.backbone.blocks[2].requires_grad_(True)
    wrapper = build(model, {'max_level': 0.1, 'min_level': 0.1})
    wrapper.initialize_count_status(model, 0, 4)
    step(wrapper, model)
    rolled = wrapper.rollback_session.rollback
    assert rolled.num_rolled_back == 2
    assert all(ANCHOR_KEY not in wrapper.optimizer.state[p] for p in model.backbone.patch_embed.parameters())


@pytest.mark.parametrize('wrapper_type', ['OLOROptimWrapper', 'olor_mm.OLOROptimWrapper', OLOROptimWrapper])
def test_the_wrapper_alone_is_an_error(wrapper_type):
    with pytest.raises(ValueError, match='alone rolls nothing back'):
        build_optim_wrapper(ToyModel(), {'type': wrapper_type, 'optimizer': {'type': 'SGD', 'lr': 0.1}})
    config = {'type': wrapper_type, 'optimizer': {'type': 'SGD', 'lr': 0.1}, 'rollback': {'max_level': 0.1}}
    with pytest.raises(ValueError, match='alone rolls nothing back'):
        build_optim_wrapper(ToyModel(), config)


@pytest.mark.parametrize(
    ('named', 'promoted'),
    [
        ('OptimWrapper', OLOROptimWrapper),
        ('mmengine.OptimWrapper', OLOROptimWrapper),
        (OptimWrapper, OLOROptimWrapper),
        ('AmpOptimWrapper', AmpOLOROptimWrapper),
        ('ApexOptimWrapper', ApexOLOROptimWrapper),
        ('olor_mm.AmpOLOROptimWrapper', AmpOLOROptimWrapper),
        ('OLOROptimWrapper', OLOROptimWrapper),
        ('olor_mm.ApexOLOROptimWrapper', ApexOLOROptimWrapper),
    ],
)
def test_promotion(named, promoted):
    assert promote(named) is promoted


def test_a_projects_own_wrapper_is_promoted_too():
    @OPTIM_WRAPPERS.register_module(force=True)
    class HalvingWrapper(OptimWrapper):
        def scale_loss(self, loss):
            return super().scale_loss(loss) / 2

    model = ToyModel()
    wrapper = build(model, {'max_level': 0.1}, type='HalvingWrapper', accumulative_counts=1)
    assert isinstance(wrapper, HalvingWrapper)
    assert isinstance(wrapper, RollbackMixin)
    assert promote('HalvingWrapper') is type(wrapper)
    wrapper.initialize_count_status(model, 0, 4)
    step(wrapper, model)
    assert wrapper.rollback_session.rollback.num_rolled_back == 6


@pytest.mark.parametrize(
    ('named', 'said'), [('OptimWraper', 'not in the registry'), ('DeepSpeedOptimWrapper', 'does not support')]
)
def test_wrapper_types_that_cannot_be_promoted(named, said):
    with pytest.raises(ValueError, match=said):
        build(rollback={'max_level': 0.1}, type=named)


def test_options_of_the_wrapper_reach_it():
    wrapper = build(rollback={'max_level': 0.1}, accumulative_counts=3, clip_grad={'max_norm': 1.0})
    assert wrapper._accumulative_counts == 3
    assert wrapper.clip_grad_kwargs == {'max_norm': 1.0}


def groups_of(wrapper, model):
    names = {p: name for name, p in model.named_parameters()}
    return [
        {k: [names[p] for p in v] if k == 'params' else v for k, v in g.items() if not k.startswith('rollback')}
        for g in wrapper.optimizer.param_groups
    ]


INNER = {
    'default': ('mmengine', None, {'custom_keys': {'backbone': {'lr_mult': 0.1}}, 'norm_decay_mult': 0.0}),
    'mmdet': ('mmdet', 'LearningRateDecayOptimizerConstructor', {'decay_rate': 0.7, 'num_layers': 6}),
    'mmseg': ('mmseg', 'mmseg.LearningRateDecayOptimizerConstructor', {'decay_rate': 0.7, 'num_layers': 6}),
    'mmpretrain': ('mmpretrain', 'mmpretrain.LearningRateDecayOptimWrapperConstructor', {'layer_decay_rate': 0.7}),
}


@pytest.mark.parametrize('case', INNER)
def test_groups_are_those_of_the_inner_constructor(case):
    scope, inner, paramwise = INNER[case]
    if scope != 'mmengine':
        pytest.importorskip(scope)
        __import__(f'{scope}.utils', fromlist=['x']).register_all_modules(init_default_scope=False)

    def model():
        if case == 'default':
            return ToyModel()
        from mmpretrain.models import ConvNeXt, ImageClassifier

        class Detector(ToyModel):
            def __init__(self):
                super().__init__()
                self.backbone = ConvNeXt('atto', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)

        head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 3, 'in_channels': 320}
        backbone = {'type': 'mmpretrain.ConvNeXt', 'arch': 'atto'}
        return ImageClassifier(backbone, head=head) if case == 'mmpretrain' else Detector()

    with DefaultScope.overwrite_default_scope(scope):
        config = {'optimizer': {'type': 'AdamW', 'lr': 0.1, 'weight_decay': 0.05}, 'paramwise_cfg': paramwise}
        plain_model, ours_model = model(), model()
        plain = build_optim_wrapper(plain_model, {**copy.deepcopy(config), **({'constructor': inner} if inner else {})})
        rollback = {'max_level': 0.1, **({'inner': {'type': inner}} if inner else {})}
        ours = build_optim_wrapper(ours_model, {**config, 'constructor': CONSTRUCTOR, 'rollback': rollback})
    assert type(ours) is OLOROptimWrapper
    assert groups_of(plain, plain_model) == groups_of(ours, ours_model)
    assert len(groups_of(ours, ours_model)) > 2


def test_losing_the_layer_decay_of_a_config_is_an_error():
    with pytest.raises(ValueError, match=r'paramwise_cfg has decay_rate, num_layers.*rollback\.inner\.type'):
        build(rollback={'max_level': 0.1}, paramwise_cfg={'decay_rate': 0.9, 'num_layers': 6})


def test_an_inner_constructor_that_ignores_the_wrapper_type_is_an_error():
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    @OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
    class Stubborn:
        def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
            pass

        def __call__(self, model):
            return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))

    with pytest.raises(ValueError, match=r"inner\.type='Stubborn' builds a OptimWrapper of its own"):
        build(rollback={'max_level': 0.1, 'inner': {'type': 'Stubborn'}})


@pytest.mark.parametrize('imported', ['olor_mm', 'olor_mm.engine', None])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_names_are_found(imported, scope):
    pytest.importorskip(scope)
    prefix = '' if imported else 'olor_mm.'
    code = f"""
from mmengine.config import Config
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, init_default_scope
if {scope!r} == 'mmdet':
    import mmdet.models
init_default_scope({scope!r})
if {imported!r}:
    Config.fromstring("custom_imports = dict(imports=[{imported!r}], allow_failed_imports=False)", '.py')
for registry, names in ((OPTIM_WRAPPERS, ('OLOROptimWrapper', 'AmpOLOROptimWrapper', 'ApexOLOROptimWrapper')),
                        (OPTIM_WRAPPER_CONSTRUCTORS, ('OLOROptimWrapperConstructor',)),
                        (HOOKS, ('ResumableRandomnessHook',))):
    for name in names:
        with registry.switch_scope_and_registry(None) as found:
            assert found.get({prefix!r} + name).__name__ == name
print('found')
"""
    run = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip().endswith('found'), run.stderr


def test_amp_wrapper_is_promoted_up_to_its_own_check_for_an_accelerator():
    if torch.cuda.is_available():
        assert type(build(ToyModel().cuda(), {'max_level': 0.1}, type='AmpOptimWrapper')) is AmpOLOROptimWrapper
    else:
        with pytest.raises(AssertionError, match='only available training'):
            build(rollback={'max_level': 0.1}, type='AmpOptimWrapper')
    assert issubclass(AmpOLOROptimWrapper, AmpOptimWrapper)
