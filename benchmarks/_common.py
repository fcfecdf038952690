"""What the benchmarks share: paired timing in one process, the machine's description, tables in JSON and Markdown."""

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import olor_mm


def machine(device: str) -> dict[str, str]:
    """Hardware and versions, as they stand beside every figure."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.is_file():
        names = [
            line.split(':', 1)[1].strip() for line in info.read_text().splitlines() if line.startswith('model name')
        ]
        name = names[0] if names else name
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else f'{name}, {torch.get_num_threads()} threads',
        'torch': torch.__version__,
        'olor_mm': olor_mm.__version__,
        'python': platform.python_version(),
        'load': f'{os.getloadavg()[0]:.2f} before the run',
    }


def timed(run: Callable[[], Any], device: str, repeat: int = 1) -> float:
    """Seconds of one call, the device's work included: the mean of ``repeat`` calls."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    if device == 'cuda':
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    device: str,
    rounds: int,
    warm_up: int = 2,
    shuffle: bool = False,
    repeat: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every call, in turn within each round, so that a change of the machine's mood hits all alike.

    Args:
        runs: Name to what is timed.
        device: 'cpu' or 'cuda'.
        rounds: How often each is timed.
        warm_up: Rounds before these. Defaults to 2.
        shuffle: Take a new order in every round, the same in every run of the benchmark. Defaults to False.
        repeat: Calls that are timed together, for those too short to be timed alone. Defaults to 1.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, dice = list(runs), random.Random(0)
    for number in range(warm_up + rounds):
        if shuffle:
            dice.shuffle(order)
        for name in order:
            seconds = timed(runs[name], device, repeat)
            if number >= warm_up:
                times[name].append(seconds)
    return times


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median."""
    if len(values) < 4:
        return float('nan')
    quarters = statistics.quantiles(values, n=4)
    return (quarters[2] - quarters[0]) / statistics.median(values)


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(v / b for v, b in zip(values, base, strict=True))


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """A table in Markdown."""
    lines = ['| ' + ' | '.join(header) + ' |', '|' + '---|' * len(header)]
    return '\n'.join([*lines, *('| ' + ' | '.join(str(cell) for cell in row) + ' |' for row in rows)])


def described(machine: Mapping[str, Any]) -> str:
    """The machine as a sentence below a table."""
    return ', '.join(f'{k} {v}' for k, v in machine.items()) + '.'


def write(out: Path, name: str, result: Mapping[str, Any], text: str) -> str:
    """Write ``name``.json and ``name``.md into ``out``; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f'{name}.json').write_text(json.dumps(result, indent=2) + '\n')
    (out / f'{name}.md').write_text(text)
    return text


def save(out: Path, name: str, result: Mapping[str, Any], rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Write a result and its table as :func:`write` does, the machine below it."""
    return write(out, name, result, f'{table(rows, header)}\n\n{described(result["machine"])}\n')
