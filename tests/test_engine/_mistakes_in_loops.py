"""Mistakes in a loop of plain PyTorch: ``Rollback`` and what its levels and anchors come from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from olor_mm.layers import assign_layers
from olor_mm.rollback import Rollback, anchors_from_file, layerwise_levels, layerwise_penalty

from ._mistake import NAN, add
from ._toy import ToyModel


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
    add(f'plain: {name}', make, said)

add(
    'plain: an anchor with NaN',
    plain(_weight(0.1), anchor=lambda m: {m.weight: torch.full((2, 2), NAN)}, step=True),
    r'theta_0 of weight has NaN or infinite',
    when='step',
)
add(
    'plain: weights of NaN',
    plain(_weight(0.1), _with(torch.full((2, 2), NAN)), step=True),
    r'theta_0 of weight has NaN',
    when='step',
)
add(
    'plain: weights on the meta device',
    plain(_weight(0.1), lambda: nn.Linear(2, 2, device='meta'), step=True),
    r'weight is on the meta device',
    when='step',
)
add(
    'plain: sparse gradients',
    plain(_weight(0.1), _embedding, step=True),
    r'weight has a sparse gradient.*sparse=False',
    when='step',
)
add(
    'plain: an anchor file that is missing',
    plain(_weight(0.1), anchor='nowhere.pth'),
    r"anchor='nowhere\.pth': no such file; give the checkpoint",
    error=FileNotFoundError,
)
for file, said in (('names.pth', r'lacks 1 of 1 parameters'), ('text.pth', r'is no checkpoint of torch\.save')):
    add(
        f'plain: the anchor file {file}',
        lambda folder, file=file: plain(_weight(0.1), anchor=str(folder / file))(folder),
        said,
        error=RuntimeError if 'torch' in said else ValueError,
    )
add(
    'plain: anchors from a list',
    lambda folder: anchors_from_file(folder / 'list.pth', []),
    r'list\.pth.* holds a list, no weights by name',
    error=RuntimeError,
)
for i, n in ((3, 2), (-1, 2), (0, -1)):
    add(
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
    add(
        f'plain: a state with theta_0 of {shown}',
        _resumed(value),
        r'theta_0 of weight in the loaded optimizer state is .*, not a dense tensor of shape .*: load the checkpoint',
        when='step',
    )
add(
    'plain: a state with theta_0 of NaN',
    _resumed(torch.full((2, 2), NAN)),
    r'theta_0 of weight has NaN or infinite values',
    when='step',
)
add(
    'plain: a table of another model',
    lambda _: layerwise_levels(nn.Linear(2, 2).named_parameters(), {'x': 0}, 0, 0.1),
    r'no parameter has a layer index: named_parameters and index have no name in common',
)
add('plain: an unknown index', lambda _: assign_layers(ToyModel(), index='depth'), r"index='depth': use 'layer'")
add('plain: no roots', lambda _: assign_layers(ToyModel(), roots=()), r'roots=\(\) names nothing: give at least one')
add('plain: a model that is none', lambda _: assign_layers({'backbone': 1}), r'model=.* must be a torch\.nn\.Module')
