"""What OLOR adds to the start of a run: python benchmarks/startup.py [--model ...] [--out DIR].

The models of three shipped configs with random weights, on the CPU. The optimizer wrapper of the config is built and
told that training begins, as MMEngine's Runner does, and takes the checks of its first step; that of the baseline's
config beside it. The parts are timed where they are called, each without the parts inside it. A second table is what
OLOR adds to a resume: a checkpoint with theta_0 is read through the loader of this package, which also compares its
checksums, beside one without it and plain torch.load.
"""

import argparse
import contextlib
import gc
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _common import machine, save
from _train.judging import PASS, interval, verdict
from _train.models import JOBS, build_model, build_wrapper, config_of
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

#: Seconds, for ViT-B.
LIMIT = 1.0
#: Part to what is called for it: module, and path in it.
PARTS = {
    'watching what is loaded': [('ledger', 'LoadLedger.__init__')],
    'layers': [('session', 'assign_layers')],
    'levels, checks of the config': [('session', 'RollbackSession.attach')],
    'theta_0': [('session', 'RollbackSession._take_theta_0')],
    'report': [('session', 'RollbackSession._tell')],
    'checks of the first step': [
        ('agreement', 'Agreement.check'),
        ('wrappers', '_samples'),
        ('wrappers', '_same'),
        ('session', 'RollbackSession.verify'),
    ],
}
OTHER = 'the rest'


class Clock:
    """Time spent in parts, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._inside: list[float] = []

    def timed(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, its time counted for ``part``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[part] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return call

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is called in here."""
        with contextlib.ExitStack() as stack:
            for part, places in PARTS.items():
                for module, path in places:
                    *owners, name = path.split('.')
                    owner = importlib.import_module(f'olor_mm.engine.{module}')
                    for each in owners:
                        owner = getattr(owner, each)
                    stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield


def start(model: nn.Module, cfg: Config, form: str | None) -> tuple[Any, float]:
    """A wrapper when training begins, and how long that took; of the first step the checks alone count."""
    began = time.perf_counter()
    wrapper = build_wrapper(model, cfg, form)
    wrapper.initialize_count_status(model, 0, 100)
    return wrapper, time.perf_counter() - began


def started(model: nn.Module, cfg: Config, rounds: int) -> dict[str, list[float]]:
    """Seconds by part, of each round."""
    found: dict[str, list[float]] = {name: [] for name in ('plain', 'OLOR', *PARTS, OTHER)}
    wrapper = None
    for _ in range(rounds):
        del wrapper
        gc.collect()
        _, plain = start(model, cfg, None)
        clock = Clock()
        with clock.watching():
            wrapper, took = start(model, cfg, 'foreach')
            before = sum(clock.seconds.values())
            # A learning rate of 0 leaves the weights as they are.
            _step(model, wrapper)
        inside = sum(clock.seconds.values())
        found['plain'].append(plain)
        found['OLOR'].append(took + inside - before)
        found[OTHER].append(took - before - plain)
        for part, seconds in clock.seconds.items():
            found[part].append(seconds)
    return found


def _step(model: nn.Module, wrapper: Any) -> None:
    for param in model.parameters():
        param.grad = torch.zeros_like(param) if param.requires_grad else None
    for group in wrapper.optimizer.param_groups:
        group.update(lr=0.0)
    wrapper.step()
    wrapper.zero_grad()


def resumed(model: nn.Module, cfg: Config, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of a resume, by part, and the sizes of the files."""
    from olor_mm.engine.loading import load_from_local

    found: dict[str, Any] = {}
    for name, form, read in (('plain', None, _torch_load), ('OLOR', 'foreach', load_from_local)):
        wrapper, _ = start(model, cfg, form)
        _step(model, wrapper)
        file = folder / f'{name}.pth'
        torch.save({'state_dict': model.state_dict(), 'optimizer': wrapper.state_dict()}, file)
        found[name] = {'bytes': file.stat().st_size, 'reading': [], 'loading': [], 'starting': []}
        for _ in range(rounds):
            # Wrappers are parts of cycles, and hold gigabytes.
            del wrapper
            gc.collect()
            wrapper = build_wrapper(model, cfg, form)
            marks = [time.perf_counter()]
            state = read(str(file))
            marks.append(time.perf_counter())
            model.load_state_dict(state['state_dict'])
            wrapper.load_state_dict(state['optimizer'])
            marks.append(time.perf_counter())
            wrapper.initialize_count_status(model, 1, 100)
            marks.append(time.perf_counter())
            for part, a, b in zip(('reading', 'loading', 'starting'), marks, marks[1:], strict=False):
                found[name][part].append(b - a)
            del state
        file.unlink()
    return found


def _torch_load(file: str) -> Any:
    return torch.load(file, map_location='cpu', weights_only=True)


def imported(times: int) -> list[float]:
    """Seconds that ``import olor_mm.engine`` takes beside what MMEngine's Runner has imported."""
    code = (
        'import mmengine.runner, time; t = time.perf_counter(); import olor_mm.engine; print(time.perf_counter() - t)'
    )
    run = [sys.executable, '-c', code]
    done = [subprocess.run(run, capture_output=True, text=True, check=True, timeout=300).stdout for _ in range(times)]
    return [float(text.split()[-1]) for text in done]


def judged(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """What is added, and whether that is below the limit."""
    added = interval([a - b for a, b in zip(times['OLOR'], times['plain'], strict=True)])
    return {'added': added, 'verdict': verdict(added, LIMIT)}


def start_rows(models: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, found in models.items():
        times = found['seconds']
        parts = [f'{statistics.median(times[part]):.3f}' for part in ('plain', *PARTS, OTHER)]
        low, middle, high = found['target']['added']
        rows.append([name, f'{found["pulled"] / 1e6:.1f} M', *parts, f'{middle:.3f} ({low:.3f} to {high:.3f})'])
    return rows


def resume_rows(models: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, found in models.items():
        for kind, told in (('plain', 'without OLOR'), ('OLOR', 'with OLOR')):
            part = found['resume'][kind]
            times = [statistics.median(part[key]) for key in ('reading', 'loading', 'starting')]
            rows.append([name, told, f'{part["bytes"] / 1e9:.2f}', *(f'{t:.3f}' for t in times), f'{sum(times):.3f}'])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--model', nargs='+', default=list(JOBS), choices=list(JOBS), help='all three by default')
    parser.add_argument('--small', action='store_true', help='tiny models: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    about = machine('cpu')
    models: dict[str, Any] = {}
    MMLogger.get_instance('startup', log_level='ERROR')
    for name in args.model:
        cfg = config_of(JOBS[name], args.small)
        model = build_model(cfg, 'cpu')
        times = started(model, cfg, args.rounds)
        pulled = sum(p.numel() for p in start(model, cfg, 'foreach')[0].rollback_session.rollback.levels)
        with tempfile.TemporaryDirectory() as folder:
            found = resumed(model, cfg, max(1, args.rounds // 2), Path(folder))
        models[name] = {'pulled': pulled, 'seconds': times, 'resume': found, 'target': judged(times)}
        del model
        gc.collect()
        print(f'{name}: {models[name]["target"]}', flush=True)
    seconds = imported(1 if args.small else 3)
    about['job'] = f'{args.rounds} rounds'
    result = {'machine': about, 'limit': LIMIT, 'import': seconds, 'models': models}
    header = ['model', 'pulled', 'the plain wrapper, s', *PARTS, OTHER, 'added in all, s']
    print(save(args.out, 'startup_cpu', result, start_rows(models), header))
    header = ['model', 'run', 'file, GB', 'reading, s', 'weights and optimizer, s', 'beginning, s', 'in all, s']
    print(save(args.out, 'startup_resume_cpu', {'machine': about}, resume_rows(models), header))
    first = next(iter(models.values()))['target']
    print(f'import olor_mm.engine: {statistics.median(seconds):.2f} s. Start-up of {next(iter(models))} adds less than')
    print(f'{LIMIT:g} s: {first["verdict"]}{"" if first["verdict"] == PASS else " (a quiet machine?)"}.')


if __name__ == '__main__':
    main()
