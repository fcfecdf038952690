"""Any model with a method switched on: what is built, what is trained, when weights are in, and what is refused."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from olor_mm.models import Method, Tuning
from olor_mm.registry import METHODS
from tests.test_engine._toy import make_runner, toy_config

from ._toy import NoisyModel, tuned


@METHODS.register_module(force=True)
class Scaled(Method):
    """Adds a parameter that stands for the mean of the head's weights."""

    def __init__(self, start=0.0, part='backbone'):
        super().__init__(part)
        self.start = start
        self.calls = 0

    def apply(self, model):
        model.backbone.register_parameter('mean', nn.Parameter(torch.full((1,), float(self.start))))
        self.added.append('backbone.mean')

    def weights_are_in(self, model):
        self.calls += 1
        with torch.no_grad():
            model.backbone.mean.fill_(model.head.weight.mean())


def method_of(model):
    return model.tuning.methods[0]


def test_the_model_itself_is_returned():
    torch.manual_seed(0)
    plain = NoisyModel()
    torch.manual_seed(0)
    model = tuned('Full')
    assert type(model) is NoisyModel
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=0, atol=0)
    assert all(p.requires_grad for p in model.parameters())


def test_full_trains_as_without(tmp_path):
    runs = []
    for model in ({'type': 'NoisyModel'}, {'type': 'olor_mm.Tuned', 'of': 'NoisyModel'}):
        runner = make_runner(toy_config(tmp_path / str(len(runs)), model=model))
        runner.train()
        runs.append(runner.model.state_dict())
    for key, value in runs[0].items():
        torch.testing.assert_close(runs[1][key], value, rtol=0, atol=0)


def test_options_of_the_model_stay_where_they_were():
    assert len(tuned('Linear', backbone={'depth': 2}).backbone.blocks) == 2


def test_weights_are_in_after_the_initialisation():
    model = tuned('Scaled')
    assert method_of(model).calls == 0
    model.init_weights()
    assert method_of(model).calls == 1
    torch.testing.assert_close(model.backbone.mean, model.head.weight.mean().reshape(1))


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_weights_of_before_the_method_are_taken(prefix, caplog):
    model = tuned('Scaled')
    state = {prefix + key: value + 1 for key, value in NoisyModel().state_dict().items()}
    target = model if not prefix else nn.ModuleDict({'module': model})
    target.load_state_dict(state, strict=True)
    torch.testing.assert_close(model.backbone.mean, state[prefix + 'head.weight'].mean().reshape(1))


def test_weights_of_after_the_method_are_taken_as_they_are():
    model = tuned('Scaled')
    state = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    torch.testing.assert_close(model.backbone.mean, torch.ones(1))
    assert method_of(model).calls == 0


@pytest.mark.parametrize('part', ['backbone', ''])
def test_what_was_trained_before_stays_where_init_cfg_delivers_it(part):
    model = tuned('Scaled')
    target = model.get_submodule(part)
    target.load_state_dict({key: value + 1 for key, value in target.state_dict().items()})
    model.init_weights()
    torch.testing.assert_close(model.backbone.mean, torch.ones(1))
    assert method_of(model).calls == 0
    with torch.no_grad():
        model.backbone.mean.mul_(2)
    model.tuning.init_weights()
    assert method_of(model).calls == 1


@pytest.mark.parametrize('lacking', [(), ('norm.bias',)])
def test_a_part_by_itself_is_taken_too(lacking):
    """As init_cfg of a backbone loads it."""
    model = tuned('Scaled')
    twin = copy.deepcopy(model)
    state = {key: value for key, value in NoisyModel().backbone.state_dict().items() if key not in lacking}
    assert twin.backbone.load_state_dict(state, strict=False).missing_keys == list(lacking)
    assert [method_of(each).calls for each in (model, twin)] == [0, 1]
    torch.testing.assert_close(twin.backbone.mean, twin.head.weight.mean().reshape(1))


def test_what_is_new_is_not_pulled_back():
    """It has a place in the model, but no pre-trained values; and it moves nothing else to another layer."""
    subset = {'type': 'Subset', 'train': 'fc1'}
    for index in ('layer', 'tensor'):
        sessions = []
        for model in (tuned(['Scaled', subset]), tuned(subset)):
            cfg = {
                'constructor': 'olor_mm.OLOROptimWrapperConstructor',
                'optimizer': {'type': 'SGD', 'lr': 0.1},
                'rollback': {'max_level': 0.1, 'index': index},
            }
            session = build_optim_wrapper(nn.ModuleDict({'module': model}), cfg).rollback_session
            names = {p: name for name, p in model.named_parameters()}
            sessions.append(({names[p]: level for p, level in session.levels.items()}, session.layers))
        assert sessions[0] == sessions[1]
        assert any(sessions[0][0].values())


@pytest.mark.parametrize('roots', ['backbone', 'loaded'])
def test_a_rollback_of_nothing_that_is_trained_is_refused(roots, tmp_path):
    """The deepest layer has level 0."""
    source = tmp_path / 'pretrained.pth'
    torch.save({k: v for k, v in NoisyModel().state_dict().items() if k.startswith('backbone')}, source)
    rollback = {'max_level': 0.1, 'roots': roots if roots == 'loaded' else (roots,)}
    method = {'type': 'TopK', 'k': 1}
    model = {'type': 'olor_mm.Tuned', 'of': 'NoisyModel', 'method': method}
    config = toy_config(tmp_path, model=model, rollback=rollback, load_from=str(source))
    with pytest.raises(ValueError, match=r'tensors there that are trained have level 0.*min_level'):
        make_runner(config).train()
    config.optim_wrapper.rollback.min_level = 0.05
    make_runner(config).train()


def test_a_head_alone_leaves_the_part_as_it_is():
    model = tuned('Scaled')
    model.load_state_dict(
        {key: value for key, value in NoisyModel().state_dict().items() if 'head' in key}, strict=False
    )
    model.backbone.load_state_dict({}, strict=False)
    assert method_of(model).calls == 0


def test_what_else_is_missing_is_still_told():
    state = NoisyModel().state_dict()
    del state['head.bias']
    with pytest.raises(RuntimeError, match=r'Missing key.*"head\.bias"') as error:
        tuned('Scaled').load_state_dict(state)
    assert 'backbone.mean' not in str(error.value)


def test_a_copy_is_a_model_of_its_own():
    model = tuned('Scaled')
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.weight.fill_(3.0)
    twin.init_weights()
    torch.testing.assert_close(twin.backbone.mean, torch.full((1,), 3.0))
    torch.testing.assert_close(model.backbone.mean, torch.zeros(1))


def test_several_methods_train_what_each_trains_alone():
    model = tuned(['Scaled', {'type': 'Subset', 'train': r'blocks\.1\.fc1'}])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        'backbone.mean', 'backbone.blocks.1.fc1.weight', 'backbone.blocks.1.fc1.bias', 'head.weight', 'head.bias',
    }  # fmt: skip


def test_the_log_says_what_is_trained(tmp_path):
    config = toy_config(tmp_path, model={'type': 'olor_mm.Tuned', 'of': 'NoisyModel', 'method': 'Linear'})
    make_runner(config).train()
    (log,) = tmp_path.rglob('*.log')
    model = NoisyModel()
    of = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in model.head.parameters())
    rows = [line.split() for line in log.read_text().splitlines()]
    assert 'Fine-tuning by Linear' in log.read_text()
    assert ['all', f'{of:,}', str(head), f'{100 * head / of:.3g}%', '2', 'of', str(len([*model.parameters()]))] in rows


WRONG = {
    'no such method': ({'method': 'Lineer'}, "no method 'Lineer', did you mean 'Linear'"),
    'no such option': ({'method': {'type': 'TopK', 'kk': 3}}, "no option 'kk', did you mean 'k'.*it has: k, part"),
    'no type': ({'method': {'k': 3}}, 'must be a dict with a type'),
    'in other letters': ({'method': 'Lora'}, "no method 'Lora', did you mean 'LoRA'"),
    'an option missing': ({'method': {'type': 'TopK'}}, 'TopK needs k: set model.method.k'),
    'no methods': ({'method': []}, 'names no method'),
    'not a method': ({'method': 3}, 'must be a dict with a type'),
    'no such part': ({'method': {'type': 'Linear', 'part': 'bakbone'}}, "part='bakbone': NoisyModel has no 'bakbone'"),
    'nothing in the part': (
        {'method': {'type': 'Linear', 'part': 'data_preprocessor'}}, "part='data_preprocessor' has no parameters",
    ),
    'part is no path': ({'method': {'type': 'Linear', 'part': 3}}, 'part=3 must be the path'),
    'no such model': ({'of': ''}, "model.of='' must be the type"),
    'not a pattern': ({'method': {'type': 'Linear', 'train': '('}}, r"train='\(': '\(' is no regular expression"),
    'not a name': ({'method': {'type': 'Linear', 'train': 3}}, 'train=3 must be a regular expression'),
    'k': ({'method': {'type': 'TopK', 'k': 0}}, 'k=0 must be a number of blocks'),
    'k too large': ({'method': {'type': 'TopK', 'k': 5}}, 'k=5, but .* has 4 blocks'),
    'nothing found': ({'method': {'type': 'Subset', 'train': 'atn'}}, "train='atn' is found in no parameter of"),
    'nothing found beside the blocks': (
        {'method': {'type': 'TopK', 'k': 1, 'train': ['norm', 'head']}}, "TopK: train='head' is found in no parameter",
    ),
    'nothing is trained': (
        {'method': {'type': 'Linear', 'part': ''}}, 'Linear would train nothing of NoisyModel: say with part=',
    ),
    'nothing given': ({'method': {'type': 'Subset', 'train': []}}, 'would be Linear'),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said(case):
    changes, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message):
        MODELS.build({'type': 'olor_mm.Tuned', 'of': 'NoisyModel', **changes})


def test_the_type_of_the_model_must_be_given():
    with pytest.raises(ValueError, match=r"model\.of='' must be the type of the model"):
        MODELS.build({'type': 'olor_mm.Tuned', 'method': 'Linear'})


def test_of_a_model_that_is_not_tuned():
    from olor_mm.models.tuned import tuning_of

    with pytest.raises(ValueError, match='NoisyModel is not tuned'):
        tuning_of(NoisyModel())
    assert isinstance(tuning_of(tuned('Full')), Tuning)
