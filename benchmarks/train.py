"""What OLOR adds to a training iteration: python benchmarks/train.py [--device cuda] [--model ...] [--out DIR].

The models of three shipped configs, with random weights and data. One model at a time is trained in turn, in an order
drawn anew in each round, by three optimizer wrappers: that of the baseline, that of the config, and that with
rollback.form='single_pass'. They share the model, so all of them see the same weights.

Two figures stand beside each other. The ratio of whole iterations, paired within a round, is as noisy as the machine; a
bootstrap says how far to trust its median. What the rollback itself takes is timed inside the same iterations: its
hooks before and after the optimizer's step, and for a single pass, which takes the place of that step, the whole step
of the wrapper less that of the baseline's. A target is met or missed only where all of the 95% interval says so.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import interleaved, machine, save, spread
from _train.judging import interval, percent, verdict
from _train.models import JOBS, Job, build_model, build_wrapper, config_of
from mmengine.optim import OptimWrapper

#: Name to ``rollback.form``.
VARIANTS = {'plain': None, 'OLOR': 'foreach', 'OLOR, single pass': 'single_pass'}
#: The most that may be added to an iteration.
LIMITS = {'cpu': 0.03, 'cuda': 0.01}


class Watch:
    """Takes times inside an iteration without making the host wait for a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == 'cuda'
        self.marks: dict[str, list[Any]] = {}

    def mark(self, name: str) -> None:
        """Note the time under a name."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self.marks.setdefault(name, []).append(event if self.cuda else time.perf_counter())

    def between(self, start: str, end: str) -> list[float]:
        """Seconds from each mark to the other."""
        pairs = zip(self.marks[start], self.marks[end], strict=True)
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in pairs]
        return [b - a for a, b in pairs]


def watched(wrapper: OptimWrapper, form: str | None, watch: Watch) -> None:
    """Note when a step of the wrapper begins and ends, and when the hooks of a rollback of its own do."""
    step = wrapper.step

    def timed_step(**kwargs: Any) -> None:
        watch.mark('begin')
        step(**kwargs)
        watch.mark('end')

    wrapper.step = timed_step
    if form == 'foreach':
        optimizer = wrapper.optimizer
        before, after = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
        handle = optimizer.register_step_pre_hook(lambda *_: watch.mark('hooks begin'))
        before.move_to_end(handle.id, last=False)
        optimizer.register_step_pre_hook(lambda *_: watch.mark('base begin'))
        handle = optimizer.register_step_post_hook(lambda *_: watch.mark('base end'))
        after.move_to_end(handle.id, last=False)
        optimizer.register_step_post_hook(lambda *_: watch.mark('hooks end'))


def measure(job: Job, device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Seconds of each iteration, of each step of a wrapper, and of what the rollback adds to it."""
    height, width, batch = job.small if small else getattr(job, device)
    cfg = config_of(job, small, (height, width))
    model = build_model(cfg, device)
    data = job.data((height, width), batch, device)
    watches, runs, pulled = {}, {}, 0
    for name, form in VARIANTS.items():
        wrapper = build_wrapper(model, cfg, form)
        wrapper.initialize_count_status(model, 0, 10**6)
        watches[name] = Watch(device)
        runs[name] = _iteration(model, data, wrapper)
        # The first step checks and sets up; it is start-up, which startup.py measures.
        runs[name]()
        watched(wrapper, form, watches[name])
        if form is not None:
            pulled = sum(p.numel() for p in wrapper.rollback_session.rollback.levels)
    times = interleaved(runs, device, rounds, 1, shuffle=True)
    # The warm-up has been timed inside, too.
    steps = {name: watch.between('begin', 'end')[-rounds:] for name, watch in watches.items()}
    watch = watches['OLOR']
    first, second = watch.between('hooks begin', 'base begin'), watch.between('base end', 'hooks end')
    added = {
        'OLOR': [a + b for a, b in zip(first, second, strict=True)][-rounds:],
        'OLOR, single pass': [a - b for a, b in zip(steps['OLOR, single pass'], steps['plain'], strict=True)],
    }
    about = f'{batch} image{"s" if batch > 1 else ""} of {height}x{width}'
    return {'job': about, 'pulled': pulled, 'seconds': times, 'steps': steps, 'added': added}


def _iteration(model: Any, data: dict[str, Any], wrapper: OptimWrapper) -> Callable[[], Any]:
    return lambda: model.train_step(data, wrapper)


def judged(found: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """For each form: what is added to an iteration, by its ratio and by what the rollback takes, as shares of it."""
    plain = found['seconds']['plain']
    base = statistics.median(plain)
    result = {}
    for name, added in found['added'].items():
        whole = interval([a / b - 1 for a, b in zip(found['seconds'][name], plain, strict=True)])
        itself = interval([value / base for value in added])
        result[name] = {
            'iteration': whole,
            'iteration verdict': verdict(whole, limit),
            'itself': itself,
            'itself verdict': verdict(itself, limit),
        }
    return result


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for model, found in result['models'].items():
        plain = found['seconds']['plain']
        base = f'{statistics.median(plain):.3f} ({spread(plain):.0%})'
        for name, said in found['targets'].items():
            whole = f'{percent(said["iteration"])}: {said["iteration verdict"]}'
            itself = f'{percent(said["itself"])}: {said["itself verdict"]}'
            rows.append([model, found['job'], base, name, itself, whole])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--model', nargs='+', default=list(JOBS), choices=list(JOBS), help='all three by default')
    parser.add_argument('--small', action='store_true', help='tiny models: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    start, limit = time.perf_counter(), LIMITS[args.device]
    result: dict[str, Any] = {'machine': machine(args.device), 'limit': limit, 'models': {}}
    for name in args.model:
        found = measure(JOBS[name], args.device, args.rounds, args.small)
        result['models'][name] = {**found, 'targets': judged(found, limit)}
        gc.collect()
        print(f'{name}: {time.perf_counter() - start:.0f} s', flush=True)
    result['machine']['job'] = f'{args.rounds} rounds, limit {limit:.0%}'
    header = ['model', 'batch', 'plain iteration, s (spread)', 'form', 'the rollback itself', 'the whole iteration']
    print(save(args.out, f'train_{args.device}', result, rows_of(result), header))


if __name__ == '__main__':
    main()
