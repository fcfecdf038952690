"""Ways to make a step: torch's optimizers, each alone, with our rollback, and with what else keeps two copies."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from olor_mm.rollback import Rollback

from .paper import AdamLoop, SGDLoop
from .sets import ParameterSet, bytes_of

#: Optimizer to its options, and the bytes that its fused step moves for a float32 parameter: it reads the parameter,
#: the gradient and the moments, and writes all of these but the gradient.
OPTIMIZERS: dict[str, tuple[dict[str, Any], int]] = {
    'AdamW': ({}, 28),
    'Adam': ({}, 28),
    'SGD': ({'momentum': 0.9}, 20),
}
#: Relatives of the rollback, whose strength depends on the step itself.
RULES = ('spd', 'projection')
FORMS = {'fused': {'fused': True}, 'foreach': {'foreach': True}, 'for-loop': {'foreach': False}}
#: Bytes more for a parameter that a pull of its own, or one within the step, moves.
APART, WITHIN = 12, 4
MOMENTS = ('exp_avg', 'exp_avg_sq', 'momentum_buffer')
LR, DECAY = 1e-4, 1e-2


@dataclass
class Variant:
    """A way to make a step.

    Attributes:
        run: Makes it.
        optimizer: Whose state it keeps; None if it keeps all by itself.
        own: Tensors that it keeps besides, by whatever key.
        moved: Bytes that it moves, where a formula says so; else None, and they are counted.
        note: What differs from what the name says; empty if nothing does.
    """

    run: Callable[[], Any]
    optimizer: Optimizer | None = None
    own: Sequence[Tensor] = field(default_factory=tuple)
    moved: int | None = None
    note: str = ''

    def state(self) -> int:
        """Bytes that it keeps between steps besides parameters and gradients, counts of steps left out."""
        kept = [] if self.optimizer is None else [v for s in self.optimizer.state.values() for v in s.values()]
        return bytes_of({id(t): t for t in [*kept, *self.own] if torch.is_tensor(t) and t.dim()}.values())


def names(kind: str) -> list[str]:
    """All variants of an optimizer, the base that they are compared with first."""
    rollbacks = [f'rollback {form}' for form in ('foreach', 'single_tensor', 'single_pass')]
    rest = ['bare addition', 'paper loop', 'L2-SP']
    once = [*RULES, 'EMA'] if kind == 'AdamW' else []
    return ['fused', 'fused again', 'foreach', 'for-loop', *rollbacks, *rest, *once]


def build(kind: str, name: str, data: ParameterSet) -> Variant:
    """A variant that has made its first steps, its moments those that all share."""
    if name == 'paper loop':
        return _paper(kind, data)
    form = name if name in FORMS else 'fused'
    optimizer = _optimizer(kind, form, data.params)
    size = bytes_of(data.params) // 4 * OPTIMIZERS[kind][1] if form == 'fused' else None
    apart = bytes_of(data.levels) // 4 * APART
    if name.startswith('rollback '):
        return _rollback(optimizer, name.removeprefix('rollback '), data, size)
    variant = Variant(optimizer.step, optimizer, moved=size)
    if name in RULES:
        # Of a projection the levels are radii; how long it takes does not depend on them.
        Rollback(optimizer, data.levels, anchor=data.anchors, rule=name)
        variant = Variant(optimizer.step, optimizer)
    if name == 'bare addition':
        variant = Variant(_bare(optimizer, data), optimizer, list(data.anchors.values()), size + apart)
    elif name == 'L2-SP':
        variant = Variant(_l2_sp(optimizer, data), optimizer, list(data.anchors.values()))
    elif name == 'EMA':
        average = AveragedModel(nn.ParameterList(data.params), multi_avg_fn=get_ema_multi_avg_fn(0.999))
        variant = Variant(_ema(optimizer, average, data), optimizer, list(average.module.parameters()))
    warm(variant, data)
    return variant


def warm(variant: Variant, data: ParameterSet) -> None:
    """Let an optimizer make its state, and give it the moments that all share."""
    variant.run()
    if variant.optimizer is not None:
        for p, state in variant.optimizer.state.items():
            for key in MOMENTS:
                if key in state:
                    state[key] = data.shared.setdefault(key, {}).setdefault(p, state[key])
    variant.run()


def _optimizer(kind: str, form: str, params: Iterable[Tensor]) -> Optimizer:
    options = {'lr': LR, **OPTIMIZERS[kind][0], **FORMS[form]}
    try:
        return getattr(torch.optim, kind)(params, **options)
    except (RuntimeError, TypeError) as error:
        raise SystemExit(f'torch {torch.__version__} cannot make {kind}({form}) here: {error}') from error


def _rollback(optimizer: Optimizer, form: str, data: ParameterSet, base: int) -> Variant:
    with warnings_of('olor_mm.rollback') as said:
        Rollback(optimizer, data.levels, anchor=data.anchors, form=form)
        variant = Variant(optimizer.step, optimizer)
        warm(variant, data)
    within = _hidden_in_a_step(optimizer, data.levels)
    taken, all_of_them = bytes_of(within), bytes_of(data.levels)
    variant.moved = base + (taken * WITHIN + (all_of_them - taken) * APART) // 4
    if form == 'single_pass' and len(within) < len(data.levels):
        said = said or ['no reason was given']
        some = f'{len(data.levels) - len(within)} of {len(data.levels)} tensors' if within else ''
        variant.note = f'fell back to a pull of its own{some and f" for {some}"}: {"; ".join(said)}'
    return variant


def _hidden_in_a_step(optimizer: Optimizer, params: Iterable[Tensor]) -> set[Tensor]:
    """Whose gradients the optimizer does not see in a step: those that the single pass has done."""
    within: set[Tensor] = set()
    inner = optimizer._init_group

    def look(*args: Any, **kwargs: Any) -> Any:
        within.update(p for p in params if p.grad is None)
        return inner(*args, **kwargs)

    # Not a step hook, in whose presence there is no single pass.
    optimizer._init_group = look
    try:
        optimizer.step()
    finally:
        del optimizer._init_group
    return within


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _bare(optimizer: Optimizer, data: ParameterSet) -> Callable[[], None]:
    """The least that a pull of its own can be: as many bytes, and one addition of torch's."""
    params, others = data.pulled, list(data.anchors.values())

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        torch._foreach_add_(params, others, alpha=0.0)

    return step


def _l2_sp(optimizer: Optimizer, data: ParameterSet, alpha: float = 1e-4) -> Callable[[], None]:
    """alpha / 2 ||theta - theta_0||^2 as a term of the loss: what it adds to the gradients, and the step."""

    def step() -> None:
        loss = sum((p - anchor).square().sum() for p, anchor in data.anchors.items()) * (alpha / 2)
        loss.backward()
        optimizer.step()

    return step


def _ema(optimizer: Optimizer, average: AveragedModel, data: ParameterSet) -> Callable[[], None]:
    model = nn.ParameterList(data.params)

    def step() -> None:
        optimizer.step()
        average.update_parameters(model)

    return step


def _paper(kind: str, data: ParameterSet) -> Variant:
    moments = [data.shared.setdefault(key, {}) for key in (MOMENTS[2:] if kind == 'SGD' else MOMENTS[:2])]
    for some in moments:
        for p in data.params:
            some.setdefault(p, torch.zeros_like(p))
    d = {p: torch.zeros_like(p) for p in data.levels}
    if kind == 'SGD':
        loop: SGDLoop | AdamLoop = SGDLoop(data.params, data.levels, d, *moments, lr=LR)
    else:
        loop = AdamLoop(data.params, data.levels, d, *moments, lr=LR, decay=DECAY if kind == 'AdamW' else 0.0)
    kept = [some[p] for some in moments for p in data.params]
    variant = Variant(loop.step, own=[*kept, *d.values()])
    warm(variant, data)
    return variant
