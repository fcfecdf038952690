"""Mistakes in ``optim_wrapper``, in the model and in the files that it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from ._mistake import INF, MISTAKES, NAN, add
from ._toy import ToyModel

CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'
LEVEL = {'max_level': 0.1}


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
        add(f'{option}={shown}', Given({option: value}), said)


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
add('no rollback', Given(...), r'optim_wrapper\.rollback=None must be a dict with max_level')
add('rollback is a number', Given(0.01), r'optim_wrapper\.rollback=0\.01 must be a dict with max_level')
add('rollback is a list', Given([('max_level', 0.1)]), r'optim_wrapper\.rollback=.* must be a dict with max_level')
add('rollback is empty', Given({'max_level': ...}), r'rollback\.max_level is not set: give the level')
add('a misspelt key', Given({'max_levle': 0.1}), r'max_levle=0\.1 is not an option: did you mean max_level\?')
add('an unknown key', Given({'zzz': 1}), r'rollback\.zzz=1 is not an option: known are max_level, min_level')
add('a key that is no text', Given({3: 1}), r'rollback\.3=1 is not an option')
add(
    'index and layer_map',
    Given({'index': 'tensor', 'layer_map': {'': 0}}),
    r"index='tensor' and layer_map=.* exclude each other: drop one",
)

# ---------------------------------------------------------------- the config around the rollback

for wrong in ('OptimWraper', 'CheckpointHook', 'mmdet.OLOROptimWraper', 'olor_mm.Nothing', 'no.such.OptimWrapper'):
    add(f'wrapper type {wrong}', Given(wrapper={'type': wrong}), rf"type='{wrong}' is not in the registry.*use OptimW")
for strange in (3, torch.optim.SGD, None):
    add(
        f'wrapper type {strange}',
        Given(wrapper={'type': strange}),
        r'optim_wrapper\.type=.* is no OptimWrapper.*: use OptimWrapper',
    )
add(
    'a wrapper of DeepSpeed',
    Given(wrapper={'type': 'DeepSpeedOptimWrapper'}),
    r"type='DeepSpeedOptimWrapper': weight rollback does not support DeepSpeed.*use DistributedDataParallel",
)
add(
    'the wrapper without the constructor',
    Given(wrapper={'type': 'OLOROptimWrapper', 'constructor': ...}),
    r"type='OLOROptimWrapper' alone rolls nothing back.*set optim_wrapper\.constructor=",
)
add(
    'the rollback without the constructor',
    Given(wrapper={'constructor': ...}),
    r"unexpected keyword argument 'rollback'",
    error=TypeError,
    by='mmengine',
)
add(
    'a misspelt constructor',
    Given(wrapper={'constructor': 'olor_mm.OLOROptimWraperConstructor'}),
    r'olor_mm\.OLOROptimWraperConstructor',
    error=Exception,
    by='mmengine',
)
add(
    'options of a layer decay without its constructor',
    Given(wrapper={'paramwise_cfg': {'decay_rate': 0.9, 'num_layers': 6}}),
    r'paramwise_cfg has decay_rate, num_layers.*rollback\.inner\.type',
)
add('no optimizer', Given(wrapper={'optimizer': ...}), r'optim_wrapper\.optimizer is not set: give .*type=')
add('an optimizer without type', Given(wrapper={'optimizer': {'lr': 1}}), r'optim_wrapper\.optimizer=.*type=')
add(
    'an unknown option of the optimizer',
    Given(wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentun': 0.9}}),
    r'optimizer\.momentun=0\.9 is no option of SGD: did you mean momentum\?',
)
add(
    'an unknown option of an optimizer that is shared out',
    Given(wrapper={'optimizer': {'type': 'ZeroRedundancyOptimizer', 'optimizer_type': 'AdamW', 'lrr': 0.1}}),
    r'optimizer\.lrr=0\.1 is no option of ZeroRedundancyOptimizer: did you mean lr\?',
)
add(
    'an unknown optimizer',
    Given(wrapper={'optimizer': {'type': 'SGDD', 'lr': 0.1}}),
    r"optimizer\.type='SGDD' is not in the registry of optimizers: did you mean .*SGD",
)
add(
    'a negative learning rate',
    Given(wrapper={'optimizer': {'type': 'SGD', 'lr': -0.1}}),
    r'Invalid learning rate: -0\.1',
    by='torch',
)
add(
    'a learning rate of 0',
    Given(wrapper={'optimizer': {'type': 'SGD', 'lr': 0.0}}),
    r'learning rate .*rollback\.roots.* is 0.*lr_mult',
)
add(
    'lr_mult of the backbone is 0',
    Given(wrapper={'paramwise_cfg': {'custom_keys': {'backbone': {'lr_mult': 0}}}}),
    r'learning rate .*rollback\.roots.* is 0.*lr_mult',
)
add(
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
    add(name, Given(model=make), said)

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
    add(name, Given(rollback, start=True), said, error=error, when='start')
add(
    'nothing was loaded',
    lambda folder: Given({'roots': 'loaded'}, start=True)(folder).step(),
    r"roots='loaded': no checkpoint delivered any parameter.*load_from",
    when='step',
)
add(
    'NaN in the weights',
    Given(model=_model(_fill(NAN)), start=True),
    r'theta_0 of backbone\.blocks\.0\.weight has NaN',
    when='start',
)
add(
    'inf in the weights',
    Given(model=_model(_fill(INF)), start=True),
    r'theta_0 of backbone\.blocks\.0\.weight has NaN',
    when='start',
)
add(
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
