"""LoRA against W + s B A written out: outputs, gradients, rows, initialisation, and what is refused."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import get_state_dict, load_state_dict, weights_to_cpu
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from olor_mm.layers import assign_layers
from olor_mm.models.lora import LoRA

from ._attention import AttentionModel, adapted, fill

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
KINDS = ['fused', 'split', 'torch']


def delta(low_rank, of, parts, scale, shape):
    """S B A, row block by row block."""
    whole = torch.zeros(shape).flatten(1)
    rows = whole.shape[0] // of
    blocks = [
        (low_rank.b[parts.index(part)] @ low_rank.a[parts.index(part)].flatten(1)) * scale
        if part in parts
        else torch.zeros(rows, whole.shape[1])
        for part in range(of)
    ]
    return torch.cat(blocks).view(shape)


def low_ranks(model):
    """Plain name of each adapted weight, and its A and B."""
    found = {}
    for name in sorted(model.tuning.added):
        if name.endswith('.a'):
            path = name.removesuffix('.a')
            plain = path.replace('.parametrizations', '').removesuffix('.0')
            plain = f'{plain.removesuffix(".lora")}.weight' if plain.endswith('.lora') else plain
            found[plain] = model.get_submodule(path)
    return found


def changed(model, of=3, parts=(0, 2), scale=4.0):
    """The state of the model without LoRA whose weights are W + s B A; gradients reach A and B."""
    state = {key: value for key, value in model.state_dict().items() if key not in model.tuning.added}
    for name, low_rank in low_ranks(model).items():
        state[name] = state[name] + delta(low_rank, of, list(parts), scale, state[name].shape)
    return state


def plain(kind):
    return AttentionModel(backbone={'kind': kind}).eval()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('options', 'parts', 'scale'),
    [({}, (0, 2), 4.0), ({'rows': 'k', 'alpha': 3}, (1,), 1.5), ({'rows': 'vqk', 'scale': 0.8}, (0, 1, 2), 0.8)],
    ids=['q and v', 'k', 'all three'],
)
def test_outputs_and_gradients_are_those_of_the_sum(kind, options, parts, scale):
    model = adapted(kind, **options)
    params = [model.get_parameter(name) for name in sorted(model.tuning.added)]
    expected = functional_call(plain(kind), changed(model, 3, parts, scale), X)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(model(X).square().sum(), params)
    wanted = torch.autograd.grad(expected.square().sum(), params)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_it_starts_as_the_model_was(kind):
    model = adapted(kind, filled=False).eval()
    base = plain(kind).eval()
    base.load_state_dict({k: v for k, v in model.state_dict().items() if k not in model.tuning.added}, strict=True)
    assert torch.equal(model(X), base(X))


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_trained(kind):
    model = adapted(kind)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == model.tuning.added | {'head.weight', 'head.bias'}
    blocks, of_each, rank, width = 2, 2, 2, 8
    assert sum(model.get_parameter(n).numel() for n in model.tuning.added) == blocks * of_each * 2 * rank * width
    model(X).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_the_first_a_is_kaiming_uniform():
    low_rank = next(iter(low_ranks(adapted(filled=False, rank=8)).values()))
    torch.manual_seed(0)
    bound = torch.nn.init.kaiming_uniform_(torch.empty(64, 8), a=5**0.5).abs().max()
    assert 0.9 * bound < low_rank.a.abs().max() < 1.1 * bound
    assert not low_rank.b.any()


@pytest.mark.parametrize('kind', ['fused', 'torch'])
def test_svd(kind):
    first, second = (adapted(kind, init='svd', rank=3) for _ in range(2))
    first.init_weights()
    second.load_state_dict({k: v for k, v in first.state_dict().items() if k not in first.tuning.added})
    state = first.state_dict()
    for (name, one), other in zip(low_ranks(first).items(), low_ranks(second).values(), strict=True):
        assert torch.equal(one.a, other.a)
        assert not one.b.any()
        for i, part in enumerate((0, 2)):
            vectors = torch.linalg.svd(state[name].double().chunk(3)[part]).Vh[:3]
            signs = (vectors * one.a[i]).sum(1, keepdim=True).sign()
            assert (one.a[i].amax(1) == one.a[i].abs().amax(1)).all()
            torch.testing.assert_close(one.a[i].double(), vectors * signs, rtol=0, atol=1e-6)


def test_svd_of_weights_that_are_not_finite():
    model = adapted(init='svd')
    before = {name: low_rank.a.clone() for name, low_rank in low_ranks(model).items()}
    state = {k: v for k, v in model.state_dict().items() if k not in model.tuning.added}
    for name in before:
        state[name] = torch.full_like(state[name], float('nan'))
    model.load_state_dict(state)
    for name, low_rank in low_ranks(model).items():
        assert torch.equal(low_rank.a, before[name])


@pytest.mark.parametrize('init', ['kaiming', 'svd'])
def test_weights_without_lora_are_taken_as_they_are(init):
    model = adapted(init=init).eval()
    base = AttentionModel().eval()
    model.load_state_dict(base.state_dict(), strict=True)
    assert torch.equal(model(X), base(X))


# ---------------------------------------------------------------- other layers


class WeightStandardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        return nn.functional.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding)


LAYERS = {
    'linear': (lambda: nn.Linear(6, 5), (2, 3, 6), True),
    'convolution': (lambda: nn.Conv2d(4, 6, 3), (2, 4, 9, 9), True),
    'stride, padding, dilation': (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2)), (2, 4, 9, 9), True),
    'groups': (lambda: nn.Conv2d(4, 12, 3, padding='same', groups=2), (2, 4, 9, 9), True),
    'depthwise': (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 9, 9), False),
    'reflected': (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'), (2, 4, 9, 9), False),
    'one dimension': (lambda: nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9), True),
    'three dimensions': (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4), True),
    'transposed': (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), False),
    'a weight that is standardised': (lambda: WeightStandardised(4, 6, 3), (2, 4, 9, 9), False),
}


def one_layer(kind, **options):
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.layer = LAYERS[kind][0]()
    method = LoRA(targets='layer', rank=2, scale=0.7, **options)
    base = copy.deepcopy(model.backbone.layer)
    method.apply(model)
    return model.backbone.layer, base, method


@pytest.mark.parametrize('kind', LAYERS)
def test_any_layer(kind):
    layer, base, method = one_layer(kind)
    by_output = LAYERS[kind][2]
    assert ('backbone.layer.lora.a' in method.added) == by_output
    low_rank = layer.lora if by_output else layer.parametrizations.weight[0]
    x = torch.randn(LAYERS[kind][1], requires_grad=True)
    assert torch.equal(layer(x), base(x))
    torch.nn.init.normal_(low_rank.b)
    made = base.weight + delta(low_rank, 1, [0], 0.7, base.weight.shape)
    expected = functional_call(base, {'weight': made}, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    params = [low_rank.a, low_rank.b, x]
    for one, other in zip(
        torch.autograd.grad(layer(x).square().sum(), params),
        torch.autograd.grad(expected.square().sum(), params),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in (low_rank.a, low_rank.b)) == 2 * (base.weight.shape[0] + base.weight[0].numel())


class Shapes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        views = {'t', 'transpose', 'detach', 'view', '_unsafe_view', 'alias'}
        if isinstance(out, torch.Tensor) and function.__name__.partition('.')[0] not in views:
            self.made.add(tuple(sorted(out.shape)))
        return out


@pytest.mark.parametrize(('kind', 'expected'), [('fused', False), ('split', True)])
def test_nothing_of_the_size_of_the_weight_is_made(kind, expected):
    model = adapted(kind)
    with Shapes() as shapes:
        model(X).sum().backward()
    assert ((8, 24) in shapes.made) == expected
    assert all(p.grad is None for n, p in model.named_parameters() if n.endswith('qkv.weight'))


def test_dropout_is_of_what_a_sees():
    model = adapted(dropout=0.5)
    low_rank = model.backbone.blocks[0].attn.qkv.lora
    layer = model.backbone.blocks[0].attn.qkv
    x = torch.randn(3, 8)
    torch.manual_seed(3)
    made = model.train().backbone.blocks[0].attn.qkv(x)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    expected = nn.functional.linear(x, layer.weight, layer.bias) + dropped @ delta(low_rank, 3, [0, 2], 4.0, (24, 8)).T
    torch.testing.assert_close(made, expected)
    expected = functional_call(AttentionModel().eval(), changed(model), X)
    torch.testing.assert_close(model.eval()(X), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what goes with it


@pytest.mark.parametrize('kind', KINDS)
def test_a_copy_has_its_own(kind):
    model = adapted(kind).eval()
    twin = copy.deepcopy(model)
    before = model(X)
    fill(twin)
    assert torch.equal(model(X), before)
    assert not torch.allclose(twin(X), before)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(X), before)


@pytest.mark.parametrize('kind', KINDS)
def test_gradient_checkpointing(kind):
    model = adapted(kind)
    model(X).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.backbone.checkpointed = True
    model(X).square().sum().backward()
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad)


@pytest.mark.parametrize('kind', ['linear', 'convolution', 'depthwise'])
def test_the_dtype_is_that_of_the_layer(kind):
    layer, base, _ = one_layer(kind)
    x = torch.randn(LAYERS[kind][1])
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == base(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), base(x))
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_the_weight_itself_is_summed_in_its_own_dtype():
    layer, _, _ = one_layer('depthwise')
    nn.init.normal_(layer.parametrizations.weight[0].b)
    with torch.autocast('cpu', torch.bfloat16):
        found = layer.weight
    assert torch.equal(found, layer.weight)


@pytest.mark.parametrize('kind', ['fused', 'torch'])
def test_compiled(kind):
    model = adapted(kind).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model.backbone, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(X), model.backbone(X))


@pytest.mark.parametrize('kind', KINDS)
def test_layers_are_counted_as_without(kind):
    model = adapted(kind, train='norm')
    found = assign_layers(model, skip=model.tuning.added).index
    expected = assign_layers(plain(kind)).index
    assert {name.replace('.parametrizations', '').removesuffix('.original'): i for name, i in found.items()} == expected


def test_several_go_together():
    method = [{'type': 'LoRA', 'rank': 2}, {'type': 'LoRA', 'rank': 4, 'targets': r'fc[12]$'}]
    model = MODELS.build({'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'method': method})
    found = {name: tuple(low_rank.a.shape) for name, low_rank in low_ranks(model).items()}
    assert found == {
        f'backbone.blocks.{i}.{name}': shape
        for i in (0, 1)
        for name, shape in {
            'attn.qkv.weight': (2, 2, 8), 'fc1.weight': (1, 4, 8), 'fc2.weight': (1, 4, 16),
        }.items()
    }  # fmt: skip


def test_part_of_the_attention_by_name():
    model = adapted('torch', targets=r'blocks\.1\.attn\.attn\.out_proj')
    assert list(low_ranks(model)) == ['backbone.blocks.1.attn.attn.out_proj.weight']
    expected = functional_call(plain('torch'), changed(model, 1, (0,)), X)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


def test_all_rows_as_one():
    model = adapted(rows='all')
    assert tuple(next(iter(low_ranks(model).values())).b.shape) == (1, 24, 2)
    expected = functional_call(plain('fused'), changed(model, 1, (0,)), X)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('first', [True, False])
def test_subsets_know_weights_by_their_own_names(kind, first):
    """Whichever is named first, and where a weight is changed as it is read."""
    lora, top = (
        {'type': 'LoRA', 'rank': 2},
        {'type': 'TopK', 'k': 1, 'train': r'blocks\.0\.attn.*(qkv|in_proj_)?weight$'},
    )
    method = [lora, top] if first else [top, lora]
    options = {'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'backbone': {'kind': kind}}
    model, alone = (MODELS.build({**options, 'method': each}) for each in (method, top))
    found = {name.replace('.parametrizations', '').removesuffix('.original') for name in trained_in(model)}
    assert found == set(trained_in(alone)) | {name.replace('.parametrizations', '') for name in model.tuning.added}


def trained_in(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


OTHERS = {
    'targets': (
        {'targets': r'blocks\.1\.attn'},
        r'LoRA in \d layers that are not adapted in the model, such as .*blocks\.0',
    ),
    'rank': ({'rank': 3}, r'is \(2, 2, 8\) in the checkpoint and \(2, 3, 8\) in the model: set rank, rows and targets'),
    'scale': ({'alpha': 16}, r'has scale=4\.0, parts=\[0, 2\], of=3 in it and scale=8\.0'),
    'rows': ({'rows': 'qk'}, r'parts=\[0, 2\], of=3 in it and scale=4\.0, parts=\[0, 1\]'),
}


@pytest.mark.parametrize('load', [load_state_dict, nn.Module.load_state_dict])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('case', OTHERS)
def test_weights_of_other_options_are_refused(case, kind, load, tmp_path):
    """MMEngine's loader only warns of other shapes, and nobody sees another scale."""
    options, message = OTHERS[case]
    torch.save(weights_to_cpu(get_state_dict(adapted(kind))), tmp_path / 'saved.pth')
    saved = torch.load(tmp_path / 'saved.pth', weights_only=True)
    load(adapted(kind), saved)
    with pytest.raises(ValueError, match=message):
        load(adapted(kind, **options), saved, strict=False)


WRONG = {
    'rank': ({'rank': 0}, 'rank=0 must be a whole number above 0'),
    'rank of another type': ({'rank': 2.5}, r'rank=2\.5 must be'),
    'rank above the size': ({'rank': 9}, r'qkv \(Linear\): rank=9 is more than its 8 x 8 weight'),
    'alpha': ({'alpha': -1}, 'alpha=-1 must be a number above 0'),
    'dropout': ({'dropout': 1}, r'dropout=1 must be in \[0, 1\)'),
    'init': ({'init': 'svg'}, "init='svg' must be 'kaiming' or 'svd'"),
    'scale': ({'scale': '1'}, "scale='1' must be a number, or None"),
    'rows': ({'rows': 'qx'}, "rows='qx' must be letters of 'qkv'"),
    'rows twice': ({'rows': 'qq'}, "rows='qq' must be"),
    'rollback': ({'rollback': 1}, 'rollback=1 must be True or False'),
    'no targets': ({'targets': []}, r'targets=\[\] must be regular expressions'),
    'not a pattern': ({'targets': '('}, r"targets='\(': '\(' is no regular expression"),
    'found in nothing': ({'targets': 'fc3'}, "targets='fc3' is found in no module; those .* backbone.patch_embed"),
    'one of them': ({'targets': ['fc1', 'fc3']}, "targets='fc3' is found in no module"),
    'no layer': ({'targets': 'norm'}, "targets='norm' finds backbone.blocks.0.norm .* but BatchNorm1d, LayerNorm"),
    'no such part': ({'part': 'bakbone'}, "part='bakbone'"),
    'no such option': ({'ranks': 3}, "no option 'ranks', did you mean 'rank'"),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said(case):
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        adapted(**options)


def test_dropout_where_a_hook_cannot_be():
    with pytest.raises(ValueError, match=r'dropout=0\.1 has no place'):
        adapted('split', dropout=0.1)


def test_layers_that_nobody_calls_are_told_of(monkeypatch):
    said = []
    monkeypatch.setattr('olor_mm.models.lora.print_log', lambda text, **_: said.append(text))
    model = adapted(targets='fc1|qkv')
    block = model.backbone.blocks[1]
    block.fc1.forward = None
    block.forward = lambda x: block.fc2(torch.relu(nn.functional.linear(block.attn(x), block.fc1.weight)))
    model.eval()(X)
    assert not said
    model.train()(X)
    model(X)
    assert [text.partition('. Either')[0] for text in said] == [
        'LoRA: 1 of 4 adapted layers were not called in the first forward pass, so LoRA does nothing there: '
        'backbone.blocks.1.fc1'
    ]


def test_no_attention():
    model = AttentionModel(backbone={'depth': 1})
    model.backbone.blocks[0].attn = nn.Identity()
    with pytest.raises(ValueError, match=r'has no attention .* it has 3 linear ones: backbone\.patch_embed, '):
        LoRA(rank=2).apply(model)


def test_twice():
    with pytest.raises(ValueError, match='is adapted already'):
        MODELS.build({'type': 'olor_mm.Tuned', 'of': 'AttentionModel', 'method': [{'type': 'LoRA', 'rank': 2}] * 2})


def test_a_weight_of_two_layers():
    model = AttentionModel()
    model.backbone.blocks[1].fc1.weight = model.backbone.blocks[0].fc1.weight
    with pytest.raises(ValueError, match=r'blocks\.0\.fc1\.weight and backbone\.blocks\.1\.fc1\.weight are one weight'):
        LoRA(targets='fc1').apply(model)
