"""The workers of :func:`~olor_mm.tooling.runs.execute`: they begin runs, look after them, and note how they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EXIT_INPUT_ERROR
from .child import Child, command, stop
from .progress import Plain, position
from .read import read_run
from .record import LOG, Record, Run, check_new, set_aside, write_record

__all__ = ['Crew', 'Outcome']

#: How often processes are looked after, s.
TICK = 0.2
#: How often their progress is read, s.
LOOK = 1.0
_TAIL_LINES = 15


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: The run.
        state: 'finished', 'failed', or 'stopped' by ``watch``.
        new: Whether a process of this call did it; False where it was found like that.
        code: Exit status of the last process; below 0 it is the number of the signal that ended it.
        why: Why it was stopped, or the end of a failed run's output.
    """

    run: Run
    state: str
    new: bool
    code: int | None = None
    why: str = ''

    @property
    def log(self) -> Path:
        """What its processes printed."""
        return self.run.work_dir / LOG


@dataclass
class _Active:
    """A run that goes on in a process."""

    run: Run
    record: Record
    worker: int
    number: int
    child: Child
    validations: int = 0
    looked: float = 0.0
    size: int = 0


class Crew:
    """Workers, each with a run at a time.

    Args:
        runs: The runs to come.
        environs: Environment variables of each worker.
        processes: Of each run.
        on_done: Told each outcome.
        watch: Asked about each new validation.
        display: Where progress is shown.
    """

    def __init__(
        self,
        runs: Iterator[Run],
        environs: Sequence[Mapping[str, str]],
        processes: int,
        on_done: Callable[[Outcome], None] | None,
        watch: Callable[[Run, dict[str, float]], str | None] | None,
        display: Plain,
    ) -> None:
        self._runs, self._environs, self._processes = runs, environs, processes
        self._on_done, self._watch, self._display = on_done, watch, display
        self._free = list(range(len(environs)))
        self._active: list[_Active] = []
        self._done: dict[int, Outcome] = {}
        self._begun = 0

    def outcomes(self) -> list[Outcome]:
        """Those so far, in the order in which the runs began."""
        return [self._done[number] for number in sorted(self._done)]

    def kill(self) -> None:
        """End all processes at once."""
        for active in self._active:
            active.child.kill()

    def work(self) -> None:
        """Make all runs; whatever ends this early ends their processes too."""
        try:
            more = True
            while more or self._active:
                while more and self._free:
                    more = self._begin_next()
                for active in list(self._active):
                    self._look_after(active)
                if self._active:
                    time.sleep(TICK)
        finally:
            try:
                stop([active.child for active in self._active])
                for active in self._active:
                    _note(active, 'started')
            finally:
                self._display.close()

    def _begin_next(self) -> bool:
        """Begin a run, or find it finished; False where there are no more."""
        run = next(self._runs, None)
        if run is None:
            return False
        number, self._begun = self._begun, self._begun + 1
        found = check_new(run)
        if found is not None and found.state in ('finished', 'stopped'):
            self._close(number, Outcome(run, found.state, False, _code(found), found.why))
            return True
        run.work_dir.mkdir(parents=True, exist_ok=True)
        if found is None:
            set_aside(run.work_dir)
        self._display.start(run.name)
        record = found or Record(run.name, 'started', run.settings)
        self._start(run, record, number)
        return True

    def _start(self, run: Run, record: Record, number: int) -> None:
        """Start the process of a run: anew, or from its last checkpoint."""
        resumed = bool(record.sessions)
        argv = [*map(str, run.argv), '--work-dir', str(run.work_dir), *(['--resume', 'auto'] if resumed else [])]
        worker = self._free.pop(0)
        own = self._environs[worker]
        child = Child(command(argv, self._processes), run.work_dir / LOG, {**os.environ, **own})
        active = _Active(run, record, worker, number, child)
        self._active.append(active)
        active.validations = len(read_run(run.work_dir).validations)
        record.state = 'started'
        record.sessions.append({'began': child.began, 'argv': argv, 'side_by_side': len(self._environs)})
        write_record(run.work_dir, record)
        where = f' on GPU {own["CUDA_VISIBLE_DEVICES"]}' if own.get('CUDA_VISIBLE_DEVICES') else ''
        self._display.say(f'{run.name} {"goes on" if resumed else "begins"}{where}; log: {child.log}')

    def _look_after(self, active: _Active) -> None:
        code = active.child.poll()
        if code is None:
            why = self._progress(active)
            if why:
                stop([active.child])
                active.record.why = why
                self._end(active, Outcome(active.run, 'stopped', True, active.child.code, why))
            return
        if code:
            self._end(active, Outcome(active.run, 'failed', True, code, _last_lines(active.child)))
        else:
            self._end(active, Outcome(active.run, 'finished', True, code))

    def _progress(self, active: _Active) -> str | None:
        """Show how far a run is, and ask whether it is to go on."""
        if time.monotonic() - active.looked < LOOK:
            return None
        active.looked = time.monotonic()
        found = position(active.child.tail(), (active.run.config.get('train_cfg') or {}).get('max_epochs'))
        if found is not None:
            self._display.step(active.run.name, *found)
        if self._watch is None or (size := active.child.log.stat().st_size) == active.size:
            return None
        active.size = size
        validations = read_run(active.run.work_dir).validations
        for each in validations[active.validations :]:
            active.validations += 1
            why = self._watch(active.run, dict(each))
            if why:
                return why
        return None

    def _end(self, active: _Active, outcome: Outcome) -> None:
        _note(active, outcome.state)
        self._active.remove(active)
        self._free.append(active.worker)
        self._free.sort()
        self._close(active.number, outcome)

    def _close(self, number: int, outcome: Outcome) -> None:
        self._done[number] = outcome
        self._display.done(outcome.run.name)
        self._display.say(_told(outcome, self._display.count()))
        if self._on_done is not None:
            self._on_done(outcome)


def _note(active: _Active, state: str) -> None:
    """Write down how the process of a run ended: the last thing that is written of a run."""
    active.record.state = state
    session = active.record.sessions[-1]
    session.update(seconds=round(time.time() - active.child.began, 1), code=active.child.code)
    write_record(active.run.work_dir, active.record)


def _code(record: Record) -> int | None:
    return record.sessions[-1].get('code') if record.sessions else None


def _last_lines(child: Child) -> str:
    return '\n'.join(child.tail(8192).rstrip().splitlines()[-_TAIL_LINES:])


def _told(outcome: Outcome, count: str) -> str:
    name = outcome.run.name
    if outcome.state == 'failed':
        lines = ''.join(f'\n  | {line}' for line in outcome.why.splitlines())
        return f'{name} failed: {_how(outcome.code)} ({count} done); the end of {outcome.log}:{lines}'
    if outcome.state == 'stopped':
        return f'{name} was stopped: {outcome.why} ({count} done)'
    if not outcome.new:
        return f'{name} was finished before ({count} done)'
    return f'{name} is finished: {summary(outcome)} ({count} done)'


def summary(outcome: Outcome) -> str:
    """The first metric of a run, in words."""
    result = read_run(outcome.run.work_dir)
    return f'{result.metric} {result.last[result.metric]:.4g}' if result.metric else 'no validation'


def _how(code: int | None) -> str:
    if code == EXIT_INPUT_ERROR:
        return 'it refused its input'
    if code is not None and code < 0:
        killed = ', as the system does where memory runs out' if code == -signal.SIGKILL else ''
        return f'ended by {signal.Signals(-code).name}{killed}'
    return f'exit status {code}'
