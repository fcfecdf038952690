"""Mistakes of users as data: what is given, when it is found out, and what the error says.

``when`` is 'build', where the wrapper or the Rollback is built; 'start', before the first step, for what only the files
and the weights that are in place then can tell; 'step', in the first step and before it changes anything, for what only
gradients tell. ``by`` names who refuses it: 'us', or the library whose own error it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from olor_mm.layers import assign_layers
from olor_mm.rollback import Rollback, anchors_from_file, layerwise_levels, layerwise_penalty

from ._toy import ToyModel

CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'
LEVEL = {'max_level': 0.1}
NAN, INF = float('nan'), float('inf')


@dataclass
class Mistake:
    """One mistake: ``make`` is called with a folder of files and has to raise ``error`` that says ``said``."""

    name: str
    make: Callable[[Path], object]
    said: str
    error: type[Exception] = ValueError
    when: str = 'build'
    by: str = 'us'


MISTAKES: list[Mistake] = []


def _add(name: str, make: Callable[[Path], object], said: str, **more: Any) -> None:
    MISTAKES.append(Mistake(name, make, said, **more))


# ---------------------------------------------------------------- configs


def build(model: nn.Module, cfg: Any, start: bool) -> Any:
    wrapper = build_optim_wrapper(model, cfg)
    if start:
        wrapper.initialize_count_status(model, 0, 4)
    return wrapper


@dataclass
class Given:
    """A config: changes to ``optim_wrapper``, to its rollback, and the model."""

    rollback: Any = field(default_factory=dict)
    wrapper: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module] = ToyModel
    start: bool = False

    def __call__(self, folder: Path) -> object:
        settings = {**LEVEL, **self.rollback} if isinstance(self.rollback, dict) else self.rollback
        if isinstance(settings, dict) and isinstance(settings.get('anchor'), str):
            settings['anchor'] = settings['anchor'].replace('HERE', str(folder))
        settings = {k: v for k, v in settings.items() if v is not ...} if isinstance(settings, dict) else settings
        cfg = {'constructor': CONSTRUCTOR, 'optimizer': {'type': 'SGD', 'lr': 0.1}, 'rollback': settings}
        cfg.update(self.wrapper)
        return build(self.model(), {k: v for k, v in cfg.items() if v is not ...}, self.start)


def _setting(option: str, *values: Any, said: str) -> None:
    """Values that an option of the rollback cannot have."""
    for value in values:
        shown = repr(value) if len(repr(value)) < 40 else f'{repr(value)[:30]}... {len(MISTAKES)}'
        _add(f'{option}={shown}', Given({option: value}), said)


LEVELS = r'rollback\.{}=.* is not a rollback level: give a number from 0 .* to 1'
_setting('max_level', 2, -1e-3, NAN, INF, '0.1', 'high', True, None, [0.1], 1j, said=LEVELS.format('max_level'))
_setting('min_level', -1, NAN, '0', False, said=LEVELS.format('min_level'))
_setting('min_level', 0.2, said=r'rollback\.min_level=0\.2 is above max_level=0\.1.*give min_level <= max_level')
_setting('power', 0, -1, NAN, INF, '2', True, None, 1j, said=r'rollback\.power=.* must be a finite number above 0')
_setting('index', 'block', 0, None, ['layer'], said=r'rollback\.index=.* is not known: choose one of layer, tensor')
_setting('form', 'fast', True, None, said=r'rollback\.form=.* is not known: choose one of foreach, single_tensor')
_setting('log', 'no', 1, None, said=r'rollback\.log=.* must be True or False')
_setting('roots', [], 3, None, ('backbone', 3), {'backbone'}, b'backbone', said=r'rollback\.roots=.* must name sub-mod')
_setting('roots', ['loaded'], ('backbone', 'loaded'), said=r"rollback\.roots=.*give roots='loaded' alone")
_setting('roots', 'bakbone', ('backbone', 'neck'), said=r"optim_wrapper\.rollback\.roots: there is no '.*has backbone,")
_setting('roots', 'backbone.blokcs', said=r"there is no 'backbone\.blokcs'.*'backbone' has patch_embed, blocks, norm")
_setting('roots', 'dropout', said=r"there is no 'dropout' with parameters")
_setting('roots', ('backbone', 'backbone'), said=r"roots: 'backbone' and 'backbone' overlap; keep one")
_setting('roots', ('backbone', 'backbone.blocks'), ('', 'head'), said=r"roots: '.*' and '.*' overlap; keep one")
_setting('anchor', 3, True, {}, said=r"rollback\.anchor=.* must be a file, 'init_cfg', 'current' or None")
_setting('anchor', '', ' ', said=r"rollback\.anchor='\s?' must be a file, 'init_cfg', 'current' or None")
_setting('layer_map', 'x', [('x', 1)], 3, said=r'rollback\.layer_map=.* must be a dict of patterns to layer indices')
_setting('layer_map', {'(': 1}, {3: 1}, said=r'optim_wrapper\.rollback\.layer_map: .* is not a regular expression')
_setting('layer_map', {'x': -1}, {'x': 1.0}, {'x': '1'}, {'x': True}, said=r'the layer of .* give an integer from 0')
_setting('layer_map', {'nothing': 1}, {}, said=r'layer_map=.*: no pattern is found in any parameter')
_setting('layer_map', {'blocks': 1}, said=r"layer_map=.* has no pattern for 4 of 10 parameters.*end the map with ''")
_setting('layer_map', {'': None}, said=r'layer_map leaves every parameter out; give at least one pattern')
_setting('layer_map', {'blocks': 10**9, '': 0}, said=r'layer_map: .* 1000000000 is far more than .* parameters')
_setting('layer_map', {'': 3}, said=r'all 10 .* have level 0.*min_level')
_setting('inner', 'Default', None, {}, [], said=r'rollback\.inner=.* must be the config of a constructor')
_setting('inner', {'type': 'Nothing'}, {'type': 'SGD'}, said=r"rollback\.inner\.type='\w+' is no constructor .*Default")
_setting('inner', {'type': OptimWrapper}, {'type': 3}, said=r'rollback\.inner\.type=.* is no constructor')
_setting('inner', {'type': CONSTRUCTOR}, said=r'inner\.type=.*OLOR.* cannot be inside itself: .* inner out')
_setting('inner', {'type': 'OLOROptimWrapperConstructor', 'rollback': LEVEL}, said=r'cannot be inside itself')
_setting(
    'inner',
    {'type': 'DefaultOptimWrapperConstructor', 'decay': 0.9},
    said=r'rollback\.inner\.decay=0\.9 is no option of DefaultOptimWrapperConstructor',
)
_setting(
    'inner',
    {'type': 'DefaultOptimWrapperConstructor', 'paramwise_cfg': {}},
    said=r'rollback\.inner\.paramwise_cfg=\{\} does not belong there: .* optim_wrapper\.paramwise_cfg',
)
_add('no rollback', Given(...), r'optim_wrapper\.rollback=None must be a dict with max_level')
_add('rollback is a number', Given(0.01), r'optim_wrapper\.rollback=0\.01 must be a dict with max_level')
_add('rollback is a list', Given([('max_level', 0.1)]), r'optim_wrapper\.rollback=.* must be a dict with max_level')
_add('rollback is empty', Given({'max_level': ...}), r'rollback\.max_level is not set: give the level')
_add('a misspelt key', Given({'max_levle': 0.1}), r'max_levle=0\.1 is not an option: did you mean max_level\?')
_add('an unknown key', Given({'zzz': 1}), r'rollback\.zzz=1 is not an option: known are max_level, min_level')
_add('a key that is no text', Given({3: 1}), r'rollback\.3=1 is not an option')
_add(
    'index and layer_map',
    Given({'index': 'tensor', 'layer_map': {'': 0}}),
    r"index='tensor' and layer_map=.* exclude each other: drop one",
)

# ---------------------------------------------------------------- the config around the rollback

for wrong in ('OptimWraper', 'CheckpointHook', 'mmdet.OLOROptimWraper', 'olor_mm.Nothing', 'no.such.OptimWrapper'):
    _add(f'wrapper type {wrong}', Given(wrapper={'type': wrong}), rf"type='{wrong}' is not in the registry.*use OptimW")
for strange in (3, torch.optim.SGD, None):
    _add(
        f'wrapper type {strange}',
        Given(wrapper={'type': strange}),
        r'optim_wrapper\.type=.* is no OptimWrapper.*: use OptimWrapper',
    )
_add(
    'a wrapper of DeepSpeed',
    Given(wrapper={'type': 'DeepSpeedOptimWrapper'}),
    r"type='DeepSpeedOptimWrapper': weight rollback does not support DeepSpeed.*use DistributedDataParallel",
)
_add(
    'the wrapper without the constructor',
    Given(wrapper={'type': 'OLOROptimWrapper', 'constructor': ...}),
    r"type='OLOROptimWrapper' alone rolls nothing back.*set optim_wrapper\.constructor=",
)
_add(
    'the rollback without the constructor',
    Given(wrapper={'constructor': ...}),
    r"unexpected keyword argument 'rollback'",
    error=TypeError,
    by='mmengine',
)
_add(
    'a misspelt constructor',
    Given(wrapper={'constructor': 'olor_mm.OLOROptimWraperConstructor'}),
    r'olor_mm\.OLOROptimWraperConstructor',
    error=Exception,
    by='mmengine',
)
_add(
    'options of a layer decay without its constructor',
    Given(wrapper={'paramwise_cfg': {'decay_rate': 0.9, 'num_layers': 6}}),
    r'paramwise_cfg has decay_rate, num_layers.*rollback\.inner\.type',
)
_add('no optimizer', Given(wrapper={'optimizer': ...}), r'optim_wrapper\.optimizer is not set: give .*type=')
_add('an optimizer without type', Given(wrapper={'optimizer': {'lr': 1}}), r'optim_wrapper\.optimizer=.*type=')
_add(
    'an unknown optimizer',
    Given(wrapper={'optimizer': {'type': 'SGDD', 'lr': 0.1}}),
    r"optimizer\.type='SGDD' is not in the registry of optimizers: did you mean .*SGD",
)
_add(
    'a negative learning rate',
    Given(wrapper={'optimizer': {'type': 'SGD', 'lr': -0.1}}),
    r'Invalid learning rate: -0\.1',
    by='torch',
)
_add(
    'a learning rate of 0',
    Given(wrapper={'optimizer': {'type': 'SGD', 'lr': 0.0}}),
    r'learning rate .*rollback\.roots.* is 0.*lr_mult',
)
_add(
    'lr_mult of the backbone is 0',
    Given(wrapper={'paramwise_cfg': {'custom_keys': {'backbone': {'lr_mult': 0}}}}),
    r'learning rate .*rollback\.roots.* is 0.*lr_mult',
)
_add(
    'an option for another wrapper',
    Given(wrapper={'loss_scale': 'dynamic'}),
    r"unexpected keyword argument 'loss_scale'",
    error=TypeError,
    by='mmengine',
)

# ---------------------------------------------------------------- models


class _Small(ToyModel):
    """ToyModel with its backbone changed by a function."""

    def __init__(self, change: Callable[[nn.Module], object]) -> None:
        super().__init__()
        change(self)


def _model(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    return lambda: _Small(change)


def _freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def _as_ints(model: Any) -> None:
    for module in model.backbone.modules():
        for key, p in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(p.detach().to(torch.int8), requires_grad=False))


def _tie_first(model: Any) -> None:
    model._modules = {'head': nn.Linear(8, 8), 'backbone': model.backbone}
    model.backbone.blocks[1].weight = model.head.weight


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        owner, _, key = path.rpartition('.')
        setattr(model.get_submodule(owner), key, value)

    return change


def _fill(value: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        with torch.no_grad():
            model.backbone.blocks[0].weight[0, 0] = value

    return change


for name, make, said in (
    ('all is frozen', _model(_freeze), r"roots=\('backbone',\): all 10 parameters there are frozen"),
    ('the root is frozen', _model(lambda m: _freeze(m.backbone)), r"roots=\('backbone',\).*frozen.*unfreeze"),
    ('the root holds integers', _model(_as_ints), r"roots=\('backbone',\).*frozen"),
    ('no parameters at all', _model(lambda m: setattr(m, '_modules', {})), r"there is no 'backbone' with parameters"),
    ('a lazy layer', _model(_set('backbone.blocks.0', nn.LazyLinear(8))), r'blocks\.0\.weight .* no shape yet.* batch'),
    (
        'a sparse embedding',
        _model(_set('backbone.patch_embed', nn.Embedding(4, 8, sparse=True))),
        r'backbone\.patch_embed\.weight .*sparse.*sparse=False',
    ),
    (
        'a sparse embedding bag',
        _model(_set('backbone.patch_embed', nn.EmbeddingBag(4, 8, sparse=True))),
        r'backbone\.patch_embed\.weight .*sparse.*sparse=False',
    ),
    ('tied to a head in front', _model(_tie_first), r'backbone\.blocks\.1\.weight is shared with head\.weight.*roots'),
):
    _add(name, Given(model=make), said)

# ---------------------------------------------------------------- what only the start of a run can tell

for name, rollback, said in (
    ('no anchor file', {'anchor': 'nowhere.pth'}, r"rollback\.anchor='nowhere\.pth': no such file; give a checkpoint"),
    ('an anchor that is a folder', {'anchor': 'HERE'}, r"rollback\.anchor='.*' is a folder; give a checkpoint file"),
    (
        'an anchor of other shapes',
        {'anchor': 'HERE/shapes.pth'},
        r'anchor=.* has no value of the right shape for 6 of 6',
    ),
    ('an anchor of other names', {'anchor': 'HERE/names.pth'}, r'anchor=.* has no value of the right shape for 6 of'),
    ('an anchor of nothing', {'anchor': 'HERE/empty.pth'}, r'anchor=.* has no value of the right shape for 6 of 6'),
    ('an anchor that is a list', {'anchor': 'HERE/list.pth'}, r'anchor=.* holds a list, no weights by name; give a'),
    ('an anchor that is text', {'anchor': 'HERE/text.pth'}, r'text\.pth is no checkpoint of torch\.save'),
    ('an anchor with NaN', {'anchor': 'HERE/nan.pth'}, r'theta_0 of backbone\.\S+ has NaN or infinite.*anchor'),
    ('an anchor of complex numbers', {'anchor': 'HERE/complex.pth'}, r'anchor=.*: backbone\.\S+ is complex there'),
    (
        'an anchor under an unknown scheme',
        {'anchor': 'torchvision://resnet5'},
        r'torchvision://resnet5: MMEngine knows',
    ),
    ('init_cfg without a file', {'anchor': 'init_cfg'}, r"anchor='init_cfg': no init_cfg of the model is of type 'Pre"),
):
    error: type[Exception] = ValueError
    if 'no such file' in said or 'folder' in said or 'MMEngine knows' in said:
        error = FileNotFoundError
    elif 'torch' in said:
        error = RuntimeError
    _add(name, Given(rollback, start=True), said, error=error, when='start')
_add(
    'nothing was loaded',
    lambda folder: Given({'roots': 'loaded'}, start=True)(folder).step(),
    r"roots='loaded': no checkpoint delivered any parameter.*load_from",
    when='step',
)
_add(
    'NaN in the weights',
    Given(model=_model(_fill(NAN)), start=True),
    r'theta_0 of backbone\.blocks\.0\.weight has NaN',
    when='start',
)
_add(
    'inf in the weights',
    Given(model=_model(_fill(INF)), start=True),
    r'theta_0 of backbone\.blocks\.0\.weight has NaN',
    when='start',
)
_add(
    'weights on the meta device',
    Given(model=lambda: ToyModel().to('meta'), start=True),
    r'backbone\.\S+ is on the meta device.*no values.*before',
    when='start',
)


def write_files(folder: Path) -> None:
    """The files that the anchors above name."""
    state = ToyModel().state_dict()
    torch.save({k: torch.ones(3, 3, 3) for k in state}, folder / 'shapes.pth')
    torch.save({f'x.{k}': v for k, v in state.items()}, folder / 'names.pth')
    torch.save({}, folder / 'empty.pth')
    torch.save(list(state.values()), folder / 'list.pth')
    (folder / 'text.pth').write_text('weights')
    torch.save({k: v * NAN if v.is_floating_point() else v for k, v in state.items()}, folder / 'nan.pth')
    torch.save({k: v * 1j if v.is_floating_point() else v for k, v in state.items()}, folder / 'complex.pth')


# ---------------------------------------------------------------- plain PyTorch


def plain(
    levels: Callable[[nn.Linear], Any], model: Callable[[], Any] | None = None, step: bool = False, **options: Any
) -> Callable[[Path], object]:
    """A Rollback of a linear layer's optimizer, and a step with it if asked for."""

    def make(folder: Path) -> object:
        linear = model() if model else nn.Linear(2, 2)
        optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
        given = {k: v(linear) if callable(v) else v for k, v in options.items()}
        given.setdefault('names', {p: n for n, p in linear.named_parameters()})
        rollback = Rollback(optimizer, levels(linear), **given)
        if step:
            before = [p.clone() for p in linear.parameters() if not p.is_meta]
            if isinstance(linear, nn.Embedding):
                linear(torch.tensor([1])).sum().backward()
            else:
                for p in linear.parameters():
                    p.grad = torch.ones_like(p)
            try:
                optimizer.step()
            finally:
                after = [p for p in linear.parameters() if not p.is_meta]
                assert all(
                    torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(before, after, strict=True)
                ), 'changed before the error'
        return rollback

    return make


def _weight(value: Any) -> Callable[[nn.Linear], Any]:
    return lambda linear: {linear.weight: value}


def _embedding() -> nn.Embedding:
    return nn.Embedding(4, 2, sparse=True)


def _twice(_: Path) -> object:
    linear = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        optimizer = torch.optim.SGD([linear.weight, linear.weight], lr=0.1)
    return Rollback(optimizer, {linear.weight: 0.1}, names={linear.weight: 'weight'})


def _again(_: Path) -> object:
    linear = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    first = Rollback(optimizer, {linear.weight: 0.1})
    return first, Rollback(optimizer, {linear.bias: 0.1})


def _lazy() -> nn.Module:
    return nn.LazyLinear(2)


def _with(value: Tensor) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        linear = nn.Linear(2, 2)
        linear.weight = nn.Parameter(value, requires_grad=value.is_floating_point() or value.is_complex())
        return linear

    return make


for name, make, said in (
    ('a level above 1', plain(_weight(2)), r'levels\[weight\]=2 is not a rollback level: give a number from 0'),
    ('a level of NaN', plain(_weight(NAN)), r'levels\[weight\]=nan is not a rollback level'),
    ('a level that is text', plain(_weight('0.1')), r"levels\[weight\]='0\.1' is not a rollback level"),
    (
        'a level that is a tensor',
        plain(_weight(torch.tensor(0.1))),
        r'levels\[weight\]=tensor.* is not a rollback level',
    ),
    ('levels in a list', plain(lambda m: [(m.weight, 0.1)]), r'levels=.* must map parameters to levels'),
    ('a level for all', plain(lambda m: 0.1), r'levels=0\.1 must map parameters to levels'),
    ('levels by name', plain(lambda m: {'weight': 0.1}), r"levels: 'weight' is no parameter.*layerwise_levels"),
    ('no levels', plain(lambda m: {}), r'levels is empty: .* level 0'),
    (
        "a level for another model's parameter",
        plain(lambda m: {nn.Linear(3, 2).weight: 0.1}),
        r'levels: tensor of shape \(2, 3\) is not a parameter of this optimizer: give it to the optimizer',
    ),
    (
        'names the wrong way round',
        plain(_weight(0.1), names=lambda m: {'weight': m.weight}),
        r'names: .*parameter to name',
    ),
    ('names in a list', plain(_weight(0.1), names=['weight']), r'names=.* must map parameters to names'),
    ('an unknown form', plain(_weight(0.1), form='fast'), r"form='fast' is not known: choose one of foreach, single"),
    ('a parameter twice', _twice, r'weight .* twice in the optimizer'),
    ('two of them', _again, r'this optimizer has a Rollback already: detach'),
    (
        'an optimizer that is none',
        lambda _: Rollback(nn.Linear(2, 2), {}),
        r'optimizer=Linear.* must be a torch\.optim\.O',
    ),
    (
        'integers',
        plain(_weight(0.1), _with(torch.ones(2, 2).int())),
        r'levels: weight is of torch\.int32.* leave it out',
    ),
    ('a lazy layer', plain(_weight(0.1), _lazy), r'levels: weight has no shape yet'),
    ('an anchor that is a number', plain(_weight(0.1), anchor=3), r"anchor=3 must be .*'current'"),
    ('an anchor that is empty', plain(_weight(0.1), anchor=''), r"anchor='' must be"),
    (
        'an anchor by name',
        plain(_weight(0.1), anchor=lambda m: {'weight': m.weight}),
        r"anchor: 'weight' is no parameter",
    ),
    (
        'an anchor that is no tensor',
        plain(_weight(0.1), anchor=lambda m: {m.weight: [[1.0, 1.0], [1.0, 1.0]]}),
        r'anchor: weight has a list .* give a tensor',
    ),
    (
        'an anchor of another shape',
        plain(_weight(0.1), anchor=lambda m: {m.weight: torch.ones(3)}),
        r'anchor: weight has shape \(2, 2\), its anchor \(3,\)',
    ),
    (
        "another model's anchor",
        plain(_weight(0.1), anchor=lambda m: {nn.Linear(2, 2).weight: torch.ones(2, 2)}),
        r'anchor: .* is not a parameter of this optimizer',
    ),
    (
        'an anchor of complex numbers',
        plain(_weight(0.1), anchor=lambda m: {m.weight: torch.ones(2, 2) * 1j}),
        r'anchor: theta_0 of weight is complex',
    ),
    (
        'an anchor on the meta device',
        plain(_weight(0.1), anchor=lambda m: {m.weight: torch.ones(2, 2, device='meta')}),
        r'anchor: theta_0 of weight is on the meta device',
    ),
    (
        'an anchor file without names',
        plain(_weight(0.1), anchor='x.pth', names={}),
        r"anchor='x\.pth' is a file: give names",
    ),
):
    _add(f'plain: {name}', make, said)

_add(
    'plain: an anchor with NaN',
    plain(_weight(0.1), anchor=lambda m: {m.weight: torch.full((2, 2), NAN)}, step=True),
    r'theta_0 of weight has NaN or infinite',
    when='step',
)
_add(
    'plain: weights of NaN',
    plain(_weight(0.1), _with(torch.full((2, 2), NAN)), step=True),
    r'theta_0 of weight has NaN',
    when='step',
)
_add(
    'plain: weights on the meta device',
    plain(_weight(0.1), lambda: nn.Linear(2, 2, device='meta'), step=True),
    r'weight is on the meta device',
    when='step',
)
_add(
    'plain: sparse gradients',
    plain(_weight(0.1), _embedding, step=True),
    r'weight has a sparse gradient.*sparse=False',
    when='step',
)
_add(
    'plain: an anchor file that is missing',
    plain(_weight(0.1), anchor='nowhere.pth'),
    r"anchor='nowhere\.pth': no such file; give the checkpoint",
    error=FileNotFoundError,
)
for file, said in (('names.pth', r'lacks 1 of 1 parameters'), ('text.pth', r'is no checkpoint of torch\.save')):
    _add(
        f'plain: the anchor file {file}',
        lambda folder, file=file: plain(_weight(0.1), anchor=str(folder / file))(folder),
        said,
        error=RuntimeError if 'torch' in said else ValueError,
    )
_add(
    'plain: anchors from a list',
    lambda folder: anchors_from_file(folder / 'list.pth', []),
    r'list\.pth.* holds a list, no weights by name',
    error=RuntimeError,
)
for i, n in ((3, 2), (-1, 2), (0, -1)):
    _add(
        f'plain: layer {i} of {n}',
        lambda _, i=i, n=n: layerwise_penalty(i, n, 0.1),
        r'layer index i=-?\d is not in 0\.\.n',
    )


def _resumed(value: Any) -> Callable[[Path], object]:
    """A step after a state was loaded that has ``value`` for theta_0."""

    def make(_: Path) -> object:
        linear = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)
        rollback = Rollback(optimizer, {linear.weight: 0.1}, names={linear.weight: 'weight'})
        for p in linear.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        state = optimizer.state_dict()
        state['state'][0]['rollback_anchor'] = value
        optimizer.load_state_dict(state)
        before = linear.weight.clone()
        try:
            optimizer.step()
        finally:
            assert torch.equal(before, linear.weight), 'changed before the error'
        return rollback

    return make


for value in ('text', None, [1.0], torch.ones(3), torch.ones(2, 2).to_sparse()):
    shown = f'{type(value).__name__} {getattr(value, "layout", "")} {tuple(getattr(value, "shape", ()))}'
    _add(
        f'plain: a state with theta_0 of {shown}',
        _resumed(value),
        r'theta_0 of weight in the loaded optimizer state is .*, not a dense tensor of shape .*: load the checkpoint',
        when='step',
    )
_add(
    'plain: a state with theta_0 of NaN',
    _resumed(torch.full((2, 2), NAN)),
    r'theta_0 of weight has NaN or infinite values',
    when='step',
)
_add(
    'plain: a table of another model',
    lambda _: layerwise_levels(nn.Linear(2, 2).named_parameters(), {'x': 0}, 0, 0.1),
    r'no parameter has a layer index: named_parameters and index have no name in common',
)
_add('plain: an unknown index', lambda _: assign_layers(ToyModel(), index='depth'), r"index='depth': use 'layer'")
_add('plain: no roots', lambda _: assign_layers(ToyModel(), roots=()), r'roots=\(\) names nothing: give at least one')
_add('plain: a model that is none', lambda _: assign_layers({'backbone': 1}), r'model=.* must be a torch\.nn\.Module')
