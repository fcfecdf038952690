"""What a checkpoint says of the run that saved it, and how that differs from the run that goes on from it."""

import ast
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from .ledger import LoadLedger
from .loading import last_loaded
from .settings import RollbackSettings

__all__ = [
    'WrongCheckpointError',
    'changed_rates',
    'changed_statement',
    'changes',
    'check_groups',
    'check_model',
    'describe',
    'initial_rates',
    'warn',
]

_OPTION = 'optim_wrapper.rollback'
#: The settings on which the pull depends.
_KEYS = (
    *('roots', 'index', 'layer_map', 'max_level', 'min_level', 'power'),
    *('rule', 'radius', 'ball', 'level_schedule', 'l2_sp'),
)


class WrongCheckpointError(RuntimeError):
    """A run is to go on from the checkpoint of another model."""


def describe(
    settings: RollbackSettings, levels: Mapping[str, float], files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What is saved beside the optimizer's state, in plain Python: what is pulled back, how strongly, and why.

    Args:
        settings: The settings.
        levels: Canonical name to level, of what is pulled back.
        files: File that the optimizer's state refers to for theta_0, to its SHA-256. Defaults to None.
    """
    referred = {'files': dict(files)} if files else {}
    return {
        'names': sorted(levels),
        'levels': [levels[name] for name in sorted(levels)],
        'settings': {key: _plain(getattr(settings, key)) for key in _KEYS},
        'world_size': get_world_size(),
        **referred,
    }


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines on what differs between two of :func:`describe`; older checkpoints have the names alone."""
    lines = []
    before, after = saved.get('settings') or {}, now['settings']
    for key in _KEYS:
        if key in before and _plain(before[key]) != after[key]:
            lines.append(f'{_OPTION}.{key}: {before[key]!r} in the checkpoint, {after[key]!r} now')
    told, found = set(saved.get('names') or ()), set(now['names'])
    if told - found:
        lines.append(f'no longer pulled back: {_listed(sorted(told - found))}; their theta_0 is kept')
    if found - told:
        lines.append(f'pulled back from now on: {_listed(sorted(found - told))}')
    levels = dict(zip(saved.get('names') or (), saved.get('levels') or (), strict=False))
    other = [n for n, level in zip(now['names'], now['levels'], strict=True) if levels.get(n, level) != level]
    if other:
        name = max(other, key=lambda n: abs(levels[n] - now['levels'][now['names'].index(n)]))
        level = now['levels'][now['names'].index(name)]
        lines.append(f'other levels: {len(other)} tensors, {name} most, {levels[name]:.3g} before, {level:.3g} now')
    if lines:
        lines.append('the present settings hold from here on; theta_0 is that of the checkpoint')
    if saved.get('world_size', now['world_size']) != now['world_size']:
        lines.append(
            f'number of processes: {saved["world_size"]} in the checkpoint, {now["world_size"]} now; batches are other '
            'ones from here on, so the run will not end with the weights that it would have had'
        )
    return lines


def check_model(named: Mapping[str, Tensor], model: nn.Module, ledger: LoadLedger, optimizer: Optimizer) -> None:
    """See that the checkpoint that has just been loaded to resume from is one of this model.

    MMEngine only warns where weights do not fit, and goes on with those that the model was built with.

    Args:
        named: Canonical name to parameter.
        model: The model.
        ledger: What was loaded.
        optimizer: The optimizer; parameters that it does not train may be missing, as a frozen teacher's.

    Raises:
        WrongCheckpointError: If parameters that are trained have another shape in the checkpoint, or are not in it.
    """
    if any(type(module).__name__ == 'FullyShardedDataParallel' for module in model.modules()):
        # Its parameters are flat shards, and it refuses a state dict that does not fit by itself.
        return
    source = last_loaded() or 'a state dict'
    if source not in ledger.reached:
        # The weights were loaded in a way that is not seen here.
        return
    owned = {p for group in optimizer.param_groups for p in group['params'] if p.requires_grad}
    trained = {name: p for name, p in named.items() if p in owned}
    shapes = [
        f'{name} {ledger.mismatched[p]} there, {tuple(p.shape)} here'
        for name, p in trained.items()
        if p in ledger.mismatched
    ]
    absent = [name for name, p in trained.items() if p not in ledger.mismatched and ledger.delivered.get(p) != source]
    if not shapes and not absent:
        return
    parts = [f'{len(shapes)} in another shape: {_listed(shapes)}'] if shapes else []
    parts += [f'{len(absent)} not at all: {_listed(absent)}'] if absent else []
    raise WrongCheckpointError(
        f'the run cannot go on from {source}, which is the checkpoint of another model: of {len(trained)} trained '
        f'parameters it has {"; ".join(parts)}. Resume with the config that the checkpoint was saved with, or start '
        'from its weights: load_from, without resume'
    )


def check_groups(state: Mapping[str, Any], optimizer: Optimizer) -> None:
    """See that an optimizer's state has the parameter groups of this optimizer; torch's error names neither side.

    Args:
        state: What is loaded into it.
        optimizer: The optimizer.

    Raises:
        WrongCheckpointError: If their number, or that of the parameters in one, differs.
    """
    saved = [len(group.get('params', ())) for group in state.get('param_groups') or ()]
    here = [len(group['params']) for group in optimizer.param_groups]
    if saved and saved != here:
        raise WrongCheckpointError(
            f'the run cannot go on from a checkpoint whose optimizer has {sum(saved)} parameters in {len(saved)} '
            f'groups: here it has {sum(here)} in {len(here)}. Resume with the paramwise_cfg and the frozen parts that '
            'the checkpoint was saved with, or start from its weights: load_from, without resume'
        )


def initial_rates(optimizer: Optimizer) -> list[float]:
    """The peak learning rate of each group, as far as it is known."""
    return [float(group.get('initial_lr', group.get('lr', 0.0))) for group in optimizer.param_groups]


def changed_rates(before: Sequence[float], after: Sequence[float]) -> list[str]:
    """A line if loading a checkpoint has changed the peak learning rates, which MMEngine does not say."""
    pairs = [(a, b) for a, b in zip(before, after, strict=False) if abs(a - b) > 1e-9 * max(abs(a), abs(b))]
    if not pairs:
        return []
    told, kept = pairs[0]
    return [
        f'the learning rate of {len(pairs)} of {len(after)} parameter groups is {told:.6g} in the config (times '
        f"lr_mult), but the checkpoint's {kept:.6g} goes on, as MMEngine resumes it; the pull stays in proportion to "
        'it. For another learning rate start from the weights: load_from, without resume, and '
        f'{_OPTION}.anchor=<the pre-trained file>'
    ]


def changed_statement(name: str, saved: object, now: object) -> tuple[str, str] | None:
    """How a top-level assignment differs between the texts of two configs; nothing of them is run.

    Args:
        name: The name that is assigned to.
        saved: The text of the checkpoint's config.
        now: That of this run's.

    Returns:
        The right-hand sides, or None where they are equal or cannot be read.
    """
    sides = []
    for text in (saved, now):
        if not isinstance(text, str):
            return None
        try:
            sides.append(_assigned(text, name))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return (sides[0], sides[1]) if sides[0] != sides[1] else None


def _assigned(text: str, name: str) -> str:
    with warnings.catch_warnings():
        # A pattern in a config may hold escapes that Python warns of.
        warnings.simplefilter('ignore')
        body = ast.parse(text).body
    found = [
        node.value
        for node in body
        if isinstance(node, ast.Assign) and [getattr(target, 'id', None) for target in node.targets] == [name]
    ]
    return ast.unparse(found[-1]) if found else 'None'


def warn(lines: Sequence[str]) -> None:
    """Say what differs, in one warning."""
    if lines:
        text = '\n  '.join(['the run goes on from a checkpoint that was saved otherwise:', *lines])
        print_log(text, logger='current', level=logging.WARNING)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # What a checkpoint may hold: a function has no text that says what it does.
    return value if value is None or isinstance(value, (str, bool, int, float)) else type(value).__name__


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
