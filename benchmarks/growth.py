"""How the cost of a rollback grows: python benchmarks/growth.py [--device cuda] [--out DIR].

With the number of parameters, with that of tensors and with that of distinct levels, each with the other two fixed.
Timed are the pull alone, as an optimizer whose own step does nothing, and torch's fused SGD with momentum without and
with ``form='single_pass'``. The tensors of a series are parts of one stretch of memory, and all its points are timed in
one process, in turn. Sizes that do not fit into the free memory are left out, and the tables say so.
"""

import argparse
import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import described, interleaved, machine, spread, table, write
from _step import counting
from _step.variants import warnings_of
from torch import Tensor, nn

from olor_mm.rollback import Rollback

#: Series to (parameters, tensors, levels) of its points.
SERIES = {
    'parameters': [(size, 100, 10) for size in (10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9)],
    'tensors': [(32 * 10**6, count, 10) for count in (10, 30, 100, 300, 1000, 3000, 10_000)],
    'levels': [(32 * 10**6, 200, count) for count in (1, 2, 5, 10, 20, 50, 100, 200)],
}
SMALL = {
    'parameters': [(10**4, 4, 2), (10**5, 4, 2), (10**6, 4, 2), (10**15, 4, 2)],
    'tensors': [(10**5, count, 2) for count in (2, 4, 8)],
    'levels': [(10**5, 8, count) for count in (1, 4, 8)],
}
VARIANTS = ('pull', 'fused SGD', 'single pass')
#: From here on a call's own time no longer shows beside that of the memory.
LARGE = 10**7
NO_MEMORY = 'not measured: memory'
NOISY = 0.15


class Still(torch.optim.Optimizer):
    """An optimizer whose step does nothing: what follows it is the rollback alone."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params, {'lr': 1e-2})

    def step(self, closure: Any = None) -> None:
        """Nothing."""


class Memory:
    """Four stretches of memory, of which all points of a series take their tensors from the start.

    Args:
        sizes: Parameters of the points.
        device: Where.
        free: Bytes that may be taken.
    """

    def __init__(self, sizes: Sequence[int], device: str, free: float) -> None:
        self.pulled = max((size for size in sizes if 8 * size <= free), default=0)
        self.stepped = max((size for size in sizes if 8 * (self.pulled + size) <= free), default=0)
        self.device = device
        self.params, self.anchors = (torch.full((self.pulled,), value, device=device) for value in (0.01, 0.02))
        self.grads, self.buffers = (torch.full((self.stepped,), value, device=device) for value in (1e-3, 1e-2))

    def parts(self, flat: Tensor, size: int, count: int) -> list[Tensor]:
        """``count`` tensors of about ``size`` elements together."""
        # A multiple of 16 numbers, as torch's own tensors start: at a multiple of 64 bytes.
        length = max(size // count // 16 * 16, 16)
        return [flat[i * length : (i + 1) * length] for i in range(count)]


def build(kind: str, memory: Memory, size: int, tensors: int, levels: int) -> tuple[Callable[[], Any], str]:
    """A step of one point, and what it says if it is not what it is called."""
    params = [nn.Parameter(part) for part in memory.parts(memory.params, size, tensors)]
    by_level = {p: 0.01 + 0.2 * (i * levels // tensors) / levels for i, p in enumerate(params)}
    anchors = dict(zip(params, memory.parts(memory.anchors, size, tensors), strict=True))
    if kind == 'pull':
        zero = torch.zeros((), device=memory.device)
        for p in params:
            p.grad = zero.expand_as(p)
        still = Still(params)
        Rollback(still, by_level, anchor=anchors)
        return still.step, ''
    for p, grad in zip(params, memory.parts(memory.grads, size, tensors), strict=True):
        p.grad = grad
    optimizer = torch.optim.SGD(params, lr=1e-4, momentum=0.9, fused=True)
    for p, buffer in zip(params, memory.parts(memory.buffers, size, tensors), strict=True):
        optimizer.state[p]['momentum_buffer'] = buffer
    if kind == 'fused SGD':
        return optimizer.step, ''
    with warnings_of('olor_mm.rollback') as said:
        # The state is there before, but has not been trained with.
        Rollback(optimizer, by_level, anchor=anchors, form='single_pass')
        optimizer.step()
    return optimizer.step, '; '.join(said)


def series(points: Sequence[tuple[int, int, int]], device: str, rounds: int, free: float) -> list[dict[str, Any]]:
    """All points of a series, in turn."""
    memory = Memory([size for size, _, _ in points], device, free)
    runs: dict[str, Callable[[], Any]] = {}
    found: list[dict[str, Any]] = []
    for i, (size, tensors, levels) in enumerate(points):
        point: dict[str, Any] = {'parameters': size, 'tensors': tensors, 'levels': levels}
        for kind in VARIANTS:
            if size > (memory.pulled if kind == 'pull' else memory.stepped):
                point[kind] = {'note': NO_MEMORY}
                continue
            run, note = build(kind, memory, size, tensors, levels)
            # The first step takes theta_0 and looks at every tensor.
            run()
            point[kind] = {'note': f'fell back: {note}' if note else '', 'launches': counting.launches(run, device)}
            runs[f'{i} {kind}'] = run
        found.append(point)
    for key, seconds in interleaved(runs, device, rounds, shuffle=True).items():
        i, _, kind = key.partition(' ')
        found[int(i)][kind]['seconds'] = seconds
    return found


def least_squares(x: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
    """A line: slope and intercept with the standard error of the slope; None for fewer than three points."""
    if len(x) < 3:
        return None
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    square = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / square
    intercept = mean_y - slope * mean_x
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return {'slope': slope, 'error': math.sqrt(rest / (len(x) - 2) / square), 'intercept': intercept}


def fits(points: Sequence[Mapping[str, Any]], name: str, large: int) -> dict[str, Any]:
    """Of each variant: the exponent of a power law, for all points and for the large, and the slope of a line."""
    out: dict[str, Any] = {}
    for kind in VARIANTS:
        measured = [(p[name], statistics.median(p[kind]['seconds'])) for p in points if 'seconds' in p[kind]]
        logs = [(math.log(x), math.log(y)) for x, y in measured]
        out[kind] = {'exponent': _line(logs), 'line': _line(measured)}
        if name == 'parameters':
            out[kind]['exponent of the large'] = _line(logs[sum(x < large for x, _ in measured) :])
    return out


def _line(points: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    return least_squares([x for x, _ in points], [y for _, y in points])


def series_table(result: Mapping[str, Any], name: str) -> str:
    """One series."""
    each = 'kernels' if result['device'] == 'cuda' else 'operators'
    header = [name, 'pull alone, ms', each, 'fused SGD step, ms', 'in a single pass with the pull, ms', each]
    rows = []
    for point in result['series'][name]:
        pull, base, single = (point[kind] for kind in VARIANTS)
        cells = [_time(pull), pull.get('launches', '-'), _time(base), _time(single), single.get('launches', '-')]
        rows.append([f'{point[name]:,}', *cells])
    return table(rows, header)


def _time(found: Mapping[str, Any]) -> str:
    if 'seconds' not in found:
        return str(found['note'])
    # Too few rounds have no spread, and tell nothing.
    calm = spread(found['seconds']) <= NOISY
    told = f'{statistics.median(found["seconds"]) * 1e3:.2f}{"" if calm else " (noisy)"}'
    return f'{told} ({found["note"]})' if found['note'] else told


def sentences(result: Mapping[str, Any]) -> str:
    """What the fits say."""
    said = []
    names = {'pull': 'the pull alone', 'fused SGD': 'the fused step', 'single pass': 'the single pass'}
    for kind, name in names.items():
        fit = result['fits']['parameters'][kind]
        parts = [f'all sizes {_pm(fit["exponent"])}', f'from 10 M on {_pm(fit["exponent of the large"])}']
        said.append(f'- Time as a power of the number of parameters, {name}: {", ".join(parts)}.')
    for series_name in ('tensors', 'levels'):
        fixed = result['series'][series_name][0]['parameters']
        for kind, name in names.items():
            fit = result['fits'][series_name][kind]
            if fit['line'] is None:
                continue
            ends = [statistics.median(result['series'][series_name][i][kind]['seconds']) for i in (0, -1)]
            said.append(
                f'- {name[0].upper()}{name[1:]}, at {fixed:,} parameters: {_pm(fit["line"], 1e6, 2)} us for each of '
                f'the {series_name}; the last row takes {ends[1] / ends[0]:.2f} times the first.'
            )
    return '\n'.join(said)


def _pm(fit: Mapping[str, float] | None, scale: float = 1.0, digits: int = 3) -> str:
    if fit is None:
        return 'not measured'
    return f'{fit["slope"] * scale:.{digits}f} ± {fit["error"] * scale:.{digits}f}'


def page(result: Mapping[str, Any]) -> str:
    """All of it, as it is saved beside the JSON."""
    parts = [series_table(result, name) for name in result['series']]
    return '\n\n'.join([*parts, sentences(result), described(result['machine'])]) + '\n'


def free_memory(device: str) -> float:
    """Bytes that may be taken: most of what is free."""
    if device == 'cuda':
        return 0.9 * torch.cuda.mem_get_info()[0]
    lines = Path('/proc/meminfo').read_text().splitlines()
    return 0.8 * 1024 * next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--memory', type=float, help='GB that may be taken; most of what is free by default')
    parser.add_argument('--small', action='store_true', help='few and small tensors: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    chosen = SMALL if args.small else SERIES
    result: dict[str, Any] = {'machine': machine(args.device), 'device': args.device, 'rounds': args.rounds}
    result.update(series={}, fits={})
    for name, points in chosen.items():
        free = free_memory(args.device) if args.memory is None else args.memory * 1e9
        result['series'][name] = series(points, args.device, args.rounds, free)
        result['fits'][name] = fits(result['series'][name], name, 10**5 if args.small else LARGE)
        gc.collect()
        print(f'{name}: done', flush=True)
    print(write(args.out, f'growth_{args.device}', result, page(result)))


if __name__ == '__main__':
    main()
