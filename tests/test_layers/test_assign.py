"""Roots, maps, readings of the index, wrappers and error messages, on models of plain PyTorch."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from olor_mm.layers import assign_layers, canonical_name


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)


class Plain(nn.Module):
    """A plain transformer's outline; ``late`` parts run first but are registered last."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(4)
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.pre_norm = nn.LayerNorm(4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))


class Stage(nn.Module):
    def __init__(self, width: int, depth: int, change: tuple[int, int] | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        if change:
            self.downsample = nn.Linear(*change)


class Pyramid(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        changes = [None, (4, 8), (8, 16)] if first else [(4, 8), (8, 16), None]
        stages = zip((4, 8, 16), (1, 2, 2), changes, strict=True)
        self.stages = nn.ModuleList(Stage(width, depth, change) for width, depth, change in stages)
        self.norm0, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(16)


class Declared(nn.Module):
    """Modules that no rule finds, and a declaration that does."""

    def __init__(self, depths: dict[str, int], total: int) -> None:
        super().__init__()
        self.depths, self.total = depths, total
        for name in depths:
            self.add_module(name, nn.Linear(2, 2))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        return self.depths[param_name[len(prefix) :].partition('.')[0]], self.total


class Matched(Plain):
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem='^cls_token|patch_embed', blocks=[(r'^blocks\.(\d+)', None), ('^norm', (99999,))])


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
        self.backbone = backbone or Plain()
        self.head = nn.ModuleDict({'cls': nn.Linear(4, 2), 'reg': nn.Linear(4, 4)})
        self.pool = nn.AvgPool2d(2)


def layers_of(model: nn.Module, *names: str, **options: Any) -> list[int]:
    table = assign_layers(model, **options)
    return [table.index[name] for name in names]


def test_registration_order_does_not_count() -> None:
    table = assign_layers(Detector())
    for name in ('cls_token', 'patch_embed.weight', 'pre_norm.weight'):
        assert table.index[f'backbone.{name}'] == 0
    assert table.index['backbone.norm.bias'] == table.num_layers == 3
    assert table.labels == {0: 'stem', 1: 'backbone.blocks.0', 2: 'backbone.blocks.1', 3: 'backbone.blocks.2'}
    assert not any(name.startswith(('neck', 'head')) for name in table.index)


@pytest.mark.parametrize(('first', 'expected'), [(True, [2, 4]), (False, [1, 3])])
def test_downsampling_is_placed_by_its_width(first: bool, expected: list[int]) -> None:
    """It is registered after the blocks, but what yields their width must run before them."""
    model = Pyramid(first)
    names = [f'stages.{i}.downsample.weight' for i in ((1, 2) if first else (0, 1))]
    assert layers_of(model, *names, roots=('',)) == expected
    assert layers_of(model, 'norm0.weight', 'norm2.weight', roots=('',)) == [1, 5]


def test_transitions_run_between_the_stages() -> None:
    """One less than the stages, and of two convolutions like a block: RepLKNet's."""
    model = Pyramid(first=True)
    model.transitions = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)) for _ in range(2))
    assert layers_of(model, 'transitions.0.0.weight', 'transitions.1.1.weight', roots=('',)) == [1, 3]
    assert assign_layers(model, roots=('',)).num_layers == 5


def test_roots_continue_in_the_order_given() -> None:
    names = ('backbone.blocks.2.fc1.weight', 'neck.0.weight', 'neck.1.weight', 'head.cls.weight', 'head.reg.bias')
    model = Detector()
    table = assign_layers(model, roots=('backbone', 'neck', 'head'))
    assert [table.index[name] for name in names] == [3, 4, 5, 6, 9]
    assert table.num_layers == 9
    assert table.labels[0] == 'backbone.stem'
    assert table.how == {'backbone': 'blocks', 'neck': 'blocks', 'head': 'order'}
    assert layers_of(model, *names[:3], roots=('neck', 'backbone')) == [5, 0, 1]
    # A later root without a stem leaves no gap.
    assert layers_of(model, 'neck.1.weight', 'backbone.blocks.0.norm.bias', roots=('neck', 'backbone.blocks')) == [1, 2]
    assert assign_layers(model, roots=('neck', 'backbone'), index='tensor').index['backbone.cls_token'] == 4


def test_root_may_be_the_whole_model_or_a_part() -> None:
    assert assign_layers(Plain(), roots=('',)).num_layers == 3
    assert assign_layers(Detector(), roots=('backbone.blocks',)).num_layers == 3
    assert assign_layers(Detector(), roots='backbone').num_layers == 3


def test_tensor_index_leaves_frozen_tensors_out() -> None:
    model = Detector()
    model.backbone.blocks[0].requires_grad_(False)
    table = assign_layers(model, index='tensor')
    expected = [name for name, param in model.named_parameters() if name.startswith('backbone') and param.requires_grad]
    assert table.index == {name: i for i, name in enumerate(expected)}
    assert table.num_layers == len(expected) - 1
    assert table.how == {'backbone': 'tensor'}
    # The layers keep their numbers, whatever is frozen.
    assert assign_layers(model).index == assign_layers(Detector()).index


@pytest.mark.parametrize('index', ['layer', 'tensor'])
def test_what_is_skipped_changes_no_other_layer(index: str) -> None:
    model = Detector()
    expected = assign_layers(model, index=index)
    model.backbone.register_parameter('prompt', nn.Parameter(torch.zeros(1)))
    model.backbone.blocks[1].extra = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    new = {name for name, _ in model.named_parameters()} - {name for name, _ in Detector().named_parameters()}
    assert assign_layers(model, index=index) != expected
    assert assign_layers(model, index=index, skip=new) == expected


def test_shared_parameter_has_its_first_name() -> None:
    model = Detector()
    model.backbone.blocks[2].fc1.weight = model.backbone.blocks[0].fc1.weight
    index = assign_layers(model).index
    assert index['backbone.blocks.0.fc1.weight'] == 1
    assert index.keys() == {name for name, _ in model.named_parameters() if name.startswith('backbone')}


@pytest.mark.parametrize('stem', [True, False])
def test_chain_of_single_convolutions(stem: bool) -> None:
    """Without anything in front of it, a chain such as VGG's has its first layer for a stem."""
    model = nn.Module()
    if stem:
        model.conv_stem = nn.Conv2d(3, 4, 3)
    model.features = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    names = ('features.0.weight', 'features.1.weight', 'features.3.weight')
    assert layers_of(model, *names, roots=('',)) == ([1, 1, 2] if stem else [0, 0, 1])


DECLARATIONS = [
    # (depths, number of depths, how, indices)
    ({'a': 0, 'c': 2, 'b': 1, 'end': 3}, 4, 'get_layer_depth', [0, 2, 1, 2]),
    ({'a': 0, 'c': 5, 'b': 2, 'end': 9}, 10, 'get_layer_depth', [0, 2, 1, 2]),
    # Only "first" and "what comes after", as from a function that knows other names: not believed.
    ({'a': 0, 'c': 3, 'b': 3, 'end': 3}, 4, 'order', [0, 2, 4, 6]),
]


@pytest.mark.parametrize(('depths', 'total', 'how', 'expected'), DECLARATIONS)
def test_declared_depths(depths: dict[str, int], total: int, how: str, expected: list[int]) -> None:
    model = Detector(Declared(depths, total))
    table = assign_layers(model)
    assert table.how == {'backbone': how}
    assert [table.index[f'backbone.{name}.weight'] for name in depths] == expected


@pytest.mark.parametrize('error', [NotImplementedError, ValueError, KeyError, AttributeError])
def test_failing_declaration_is_passed_over(error: type[Exception]) -> None:
    class Failing(Plain):
        def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
            raise error(param_name)

    assert assign_layers(Detector(Failing())).how == {'backbone': 'blocks'}


SANITY = [
    ('one a block', lambda number, part: number, 'get_layer_depth'),
    ('two blocks share one', lambda number, part: (number + 1) // 2, 'blocks'),
    ('falling', lambda number, part: 5 - number, 'blocks'),
    ('two within a block', lambda number, part: 2 * number + (part == 'norm'), 'blocks'),
]


@pytest.mark.parametrize(('depth', 'how'), [row[1:] for row in SANITY], ids=[row[0] for row in SANITY])
def test_declaration_must_tell_the_blocks_apart(depth: Callable[[int, str], int], how: str) -> None:
    class Declaring(Plain):
        def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
            part = param_name[len(prefix) :].split('.')
            return (depth(int(part[1]) + 1, part[2]) if part[0] == 'blocks' else 0), 20

    table = assign_layers(Detector(Declaring(4)))
    assert table.how == {'backbone': how}
    assert table.num_layers == 4


def test_matcher_is_found_in_a_wrapper() -> None:
    wrapper = nn.Module()
    wrapper.timm_model = Matched()
    table = assign_layers(Detector(wrapper))
    assert table.how == {'backbone': 'timm'}
    assert table.index == {
        name.replace('backbone.', 'backbone.timm_model.'): i for name, i in assign_layers(Detector()).index.items()
    }


def test_layer_map() -> None:
    blocks = {rf'^backbone\.blocks\.{i}\.': 10 * i + 10 for i in range(3)}
    table = assign_layers(Detector(), layer_map={**blocks, 'norm': None, '': 0})
    assert table.num_layers == 30
    assert table.index['backbone.cls_token'] == 0
    assert table.index['backbone.blocks.1.fc1.bias'] == 20
    assert 'backbone.norm.weight' not in table.index
    assert table.how == {'backbone': 'layer_map'}
    # Layers count within the root, and the map is for the roots in which it finds something.
    table = assign_layers(Detector(), roots=('backbone', 'neck'), layer_map={'^neck': 0})
    assert table.how == {'backbone': 'blocks', 'neck': 'layer_map'}
    assert table.index['neck.1.weight'] == table.num_layers == 4


ERRORS = [
    (dict(roots=('bakcbone',)), "roots: there is no 'bakcbone'.*the model has neck, backbone, head"),
    (dict(roots=('backbone.stages',)), "'backbone.stages'.*'backbone' has blocks, norm, patch_embed, pre_norm"),
    (dict(roots=('pool',)), "there is no 'pool' with parameters"),
    (dict(roots=()), 'names nothing'),
    (dict(roots=('backbone', 'backbone.blocks')), "'backbone' and 'backbone.blocks' overlap"),
    (dict(roots=('', 'neck')), 'overlap'),
    (dict(index='block'), "index='block': use 'layer'.*or 'tensor'"),
    (dict(index='tensor', layer_map={'': 0}), 'exclude each other'),
    (dict(layer_map={'(': 0}), "layer_map: '\\(' is not a regular expression"),
    (dict(layer_map={'blocks': -1}), "layer of 'blocks' is -1"),
    (dict(layer_map={'blocks': 1.5}), 'is 1.5; give an integer'),
    (dict(layer_map={'blocks': True}), 'is True; give an integer'),
    (dict(layer_map={'layers': 1}), 'no pattern is found in any parameter'),
    (dict(layer_map={'blocks': 1}), 'no pattern for .* parameters: backbone.cls_token.*add patterns'),
    (dict(layer_map={'': None}), 'leaves every parameter out'),
]


@pytest.mark.parametrize(('options', 'message'), ERRORS, ids=[str(options) for options, _ in ERRORS])
def test_errors_name_option_value_and_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message)):
        assign_layers(Detector(), **options)


def test_frozen_root_has_no_tensors_to_count() -> None:
    with pytest.raises(ValueError, match='no trainable parameter; unfreeze'):
        assign_layers(Detector().requires_grad_(False), index='tensor')


@pytest.fixture(scope='module')
def process_group() -> Iterator[None]:
    started = not dist.is_initialized()
    if started:
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    if started:
        dist.destroy_process_group()


def wrap(model: nn.Module, kind: str) -> nn.Module:
    if kind == 'ddp':
        return nn.parallel.DistributedDataParallel(model)
    if kind == 'fsdp':
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        policy = ModuleWrapPolicy({Block})
        device = torch.device('cpu')
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=device)
    if kind == 'compiled':
        return torch.compile(model)  # type: ignore[return-value]
    if kind == 'dp':
        return nn.DataParallel(model)
    blocks = model.backbone.blocks
    for i, block in enumerate(blocks):
        blocks[i] = checkpoint_wrapper(block) if kind == 'checkpoint' else torch.compile(block)
    return model


@pytest.mark.parametrize('index', ['layer', 'tensor'])
@pytest.mark.parametrize('kind', ['ddp', 'fsdp', 'compiled', 'dp', 'checkpoint', 'compiled-blocks'])
def test_wrapped_model_has_the_same_table(kind: str, index: str, process_group: None) -> None:
    model = Detector()
    model.backbone.cls_token.requires_grad_(False)
    expected = assign_layers(model, index=index)
    wrapped = wrap(model, kind)
    assert any(canonical_name(name) != name for name, _ in wrapped.named_parameters())
    assert assign_layers(wrapped, index=index) == expected


class Shell(nn.Module):
    """Stands for any wrapper: one child under the wrapper's name."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


@settings(max_examples=30, deadline=None)
@given(
    depth=st.integers(1, 6),
    shells=st.lists(st.sampled_from(['module', '_orig_mod', '_fsdp_wrapped_module']), max_size=3),
    wrapped=st.sets(st.tuples(st.integers(0, 5), st.sampled_from(['_orig_mod', '_checkpoint_wrapped_module']))),
)
def test_table_is_invariant_under_wrapping(depth: int, shells: list[str], wrapped: set[tuple[int, str]]) -> None:
    expected = assign_layers(Detector(Plain(depth)))
    model: nn.Module = Detector(Plain(depth))
    for place, name in sorted(wrapped):
        if place < depth:
            model.backbone.blocks[place] = Shell(name, model.backbone.blocks[place])
    for name in shells:
        model = Shell(name, model)
    assert assign_layers(model) == expected


@settings(max_examples=30, deadline=None)
@given(depths=st.lists(st.integers(1, 4), min_size=2, max_size=5), flat=st.booleans())
def test_blocks_are_counted_and_never_fall(depths: list[int], flat: bool) -> None:
    """Any pyramid of blocks, as a list of lists or as layer1, layer2, ...: as many layers as blocks, in order."""
    model = nn.Module()
    model.stem = nn.Conv2d(3, 4, 2)
    stages = [nn.Sequential(*(Block() for _ in range(depth))) for depth in depths]
    if flat:
        for number, stage in enumerate(stages, 1):
            model.add_module(f'layer{number}', stage)
    else:
        model.stages = nn.ModuleList(stages)
    table = assign_layers(model, roots=('',))
    indices = [table.index[name] for name, _ in model.named_parameters()]
    assert table.num_layers == sum(depths)
    assert indices == sorted(indices)
    assert set(indices) == set(range(sum(depths) + 1))
