"""One set of parameters and one optimizer: all variants in turn, and the ratios and verdicts that come of it."""

import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _common import interleaved, spread
from torch import nn

from . import counting, variants
from .labels import LABELS
from .sets import ParameterSet, bytes_of

#: The base step against itself in the same round: off by more than this, or spread by more, and nothing can be told.
OFF, SPREAD = 0.05, 0.15
#: Numbers read and written for each of a tensor: the faster of the two is the limit of the memory.
MOVES = {'copy': 2, 'addition': 3}
LIMITS = {'rollback foreach': 1.45, 'rollback single_pass': 1.20}
#: Times that the paper's loop must take of ours, on a GPU.
LOOP_FACTOR = 4.0
#: What is no allocation: numbers for each tensor, as kernels need them.
TINY_BYTES_A_TENSOR = 512


def measure(data: ParameterSet, kind: str, device: str, rounds: int) -> dict[str, Any]:
    """All variants of an optimizer on one set, in a new order in every round, and with them what the memory can do.

    Returns:
        'variants', name to what was measured; 'moves', of a copy and an addition of as many numbers the seconds, bytes
        and bytes a second; 'noise'.
    """
    built = {name: variants.build(kind, name, data) for name in variants.names(kind)}
    runs = {**_moves(data, device), **{name: variant.run for name, variant in built.items()}}
    times = interleaved(runs, device, rounds, shuffle=True, repeat=5 if device == 'cuda' else 1)
    del runs
    moves = {name: _bandwidth(times[name], count * bytes_of(data.params)) for name, count in MOVES.items()}
    bandwidth = max(move['bytes a second'] for move in moves.values())
    found = {}
    for name, variant in built.items():
        moved = variant.moved if variant.moved is not None else counting.dispatched(variant.run)[1]
        found[name] = {
            'seconds': times[name],
            'ratio': quartiles([v / b for v, b in zip(times[name], times['fused'], strict=True)]),
            'bytes': moved,
            'bytes by': 'counting operators' if variant.moved is None else 'formula',
            'of the limit': moved / bandwidth / statistics.median(times[name]),
            'launches': counting.launches(variant.run, device),
            'peak bytes': counting.peak(variant.run, device),
            'state bytes': variant.state() - built['fused'].state(),
            'note': variant.note,
        }
    del built, variant
    gc.collect()
    return {'variants': found, 'moves': moves, 'noise': _noise(times)}


def _moves(data: ParameterSet, device: str) -> dict[str, Callable[[], Any]]:
    # Parts of a step's memory would be in the cache where the caches are large.
    source, target = (torch.ones(sum(p.numel() for p in data.params), device=device) for _ in range(2))
    return {'copy': lambda: target.copy_(source), 'addition': lambda: target.add_(source, alpha=0.0)}


def _bandwidth(seconds: Sequence[float], size: int) -> dict[str, Any]:
    return {'seconds': seconds, 'bytes': size, 'bytes a second': size / statistics.median(seconds)}


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return [low, middle, high]


def _noise(times: dict[str, list[float]]) -> dict[str, Any]:
    control = quartiles([a / b for a, b in zip(times['fused again'], times['fused'], strict=True)])
    spreads = {name: spread(times[name]) for name in ('fused', 'fused again')}
    off = abs(control[1] - 1)
    # Not "greater than": too few rounds give no spread at all, which tells nothing either.
    calm = off <= OFF and all(value <= SPREAD for value in spreads.values())
    return {'base against itself': control, 'spread': spreads, 'too noisy': not calm}


def launches_by_tensors(device: str, counts: Sequence[int] = (10, 100, 1000), size: int = 2**20) -> dict[str, Any]:
    """Kernels, or operators, of a step of fused AdamW and the pull, at as many parameters in more and more tensors."""
    found: dict[str, Any] = {}
    for count in counts:
        params = [nn.Parameter(torch.randn(size // count, device=device)) for _ in range(count)]
        for p in params:
            p.grad = torch.randn_like(p)
        levels = dict.fromkeys(params, 0.01)
        data = ParameterSet(str(count), params, levels, {p: p.detach().clone() for p in params})
        for name in ('fused', *LIMITS):
            variant = variants.build('AdamW', name, data)
            told = 'fell back' if variant.note else counting.launches(variant.run, device)
            found.setdefault(name, {})[str(count)] = told
    return found


def targets(result: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """What the step was to cost, what it costs, and the verdict: 'pass', 'fail', or why there is none."""
    rows = []
    for name, part in result['sets'].items():
        for kind, found in part['optimizers'].items():
            for variant, limit in LIMITS.items():
                rows.append(_time_target(name, kind, variant, limit, found))
            rows.append(_loop_target(name, kind, found, device))
            rows.append(_memory_target(name, kind, found, part['about']['tensors']))
    rows.append(_launch_target(result['launches by tensors'], device))
    waits = {'target': 'no wait of the host', 'limit': None, 'value': None}
    rows.append({**waits, 'verdict': 'not measured here: see tests/test_rollback/test_gpu_cost.py'})
    return rows


def _time_target(name: str, kind: str, variant: str, limit: float, found: dict[str, Any]) -> dict[str, Any]:
    low, ratio, high = found['variants'][variant]['ratio']
    row = {'target': LABELS[variant], 'set': name, 'optimizer': kind, 'limit': limit}
    if found['variants'][variant]['note']:
        return {**row, 'value': None, 'verdict': f'not measured: {found["variants"][variant]["note"]}'}
    verdict = 'pass' if ratio <= limit else 'fail'
    # What is off by so much against itself tells no less.
    off = max(found['noise']['base against itself'][2], 1 / found['noise']['base against itself'][0])
    if found['noise']['too noisy'] and low / off <= limit <= high * off:
        verdict = 'not told: too noisy'
    return {**row, 'value': ratio, 'verdict': verdict}


def _loop_target(name: str, kind: str, found: dict[str, Any], device: str) -> dict[str, Any]:
    loop, ours = (found['variants'][key]['seconds'] for key in ('paper loop', 'rollback foreach'))
    times = statistics.median(a / b for a, b in zip(loop, ours, strict=True))
    row = {'target': "the paper's loop, times ours", 'set': name, 'optimizer': kind, 'limit': LOOP_FACTOR}
    verdict = 'pass' if times >= LOOP_FACTOR else 'fail'
    return {**row, 'value': times, 'verdict': verdict if device == 'cuda' else 'not measured: for a GPU'}


def _memory_target(name: str, kind: str, found: dict[str, Any], tensors: int) -> dict[str, Any]:
    fell_back = bool(found['variants']['rollback single_pass']['note'])
    which = ['rollback foreach', *([] if fell_back else ['rollback single_pass'])]
    most = max(found['variants'][variant]['peak bytes'] for variant in which)
    limit = TINY_BYTES_A_TENSOR * tensors
    row = {'target': 'bytes that a step takes for a while', 'set': name, 'optimizer': kind, 'limit': limit}
    return {**row, 'value': most, 'verdict': 'pass' if most <= limit else 'fail'}


def _launch_target(found: dict[str, Any], device: str) -> dict[str, Any]:
    counts = {name: [n for n in found[name].values() if isinstance(n, int)] for name in LIMITS}
    same = all(len(set(values)) <= 1 for values in counts.values())
    row = {'target': 'kernels (on the CPU operators) at 10, 100 and 1000 tensors', 'limit': None, 'value': found}
    return {**row, 'verdict': ('pass' if same else 'fail') if device == 'cuda' else 'not measured: for a GPU'}
