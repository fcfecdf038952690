"""Many runs, one after the other or side by side: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import InputError
from ..signals import Terminated, terminable
from .child import GRACE
from .crew import Crew, Outcome
from .devices import shares
from .progress import display
from .record import Run, check_new

__all__ = ['Outcome', 'execute']

_GO_ON = 'to go on, give the same command again: what is finished stays, the others go on from their last checkpoints'


def execute(
    runs: Iterable[Run],
    workers: int = 1,
    devices: Sequence[object] | None = None,
    on_done: Callable[[Outcome], None] | None = None,
    watch: Callable[[Run, dict[str, float]], str | None] | None = None,
    processes: int = 1,
) -> list[Outcome]:
    """Make runs, each a process of tools/train.py. Call it in the main thread.

    Args:
        runs: In the order in which they begin. A generator is asked for the next run when a worker is free, after
            ``on_done`` has been told of all that ended before.
        workers: How many go on side by side. Defaults to 1.
        devices: GPUs to share out, as CUDA_VISIBLE_DEVICES names them. Defaults to None: all that are visible.
        on_done: Called with each outcome, also of runs that were finished before. Defaults to None.
        watch: Called with a run and the metrics of each of its new validations; words that it returns end the run for
            good, and say why. Defaults to None.
        processes: Of each run, one for each of its GPUs. Defaults to 1.

    Returns:
        The outcomes, in the order of ``runs``. One that failed does not stop the others; the next call tries it again.

    Raises:
        InputError: If a run's config, options or work dir are the user's to mend. Of a sequence all runs are looked at
            before the first begins.
        KeyboardInterrupt: On Ctrl-C, when all processes have ended; its text says how to go on.
        Terminated: On SIGTERM, likewise.
    """
    if isinstance(runs, Sequence):
        _check(runs)
    environs = shares(workers, devices, processes)
    total = len(runs) if isinstance(runs, Sequence) else None
    crew = Crew(iter(runs), environs, processes, on_done, watch, display(total))
    try:
        with terminable(crew.kill, grace=GRACE + 2):
            crew.work()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_said('interrupted', crew, total)) from None
    except Terminated:
        raise Terminated(_said('terminated', crew, total)) from None
    return crew.outcomes()


def _check(runs: Sequence[Run]) -> None:
    """See that all runs can be made, each in a place of its own."""
    seen: dict[str, str] = {}
    for run in runs:
        for key in (f'the name {run.name!r}', f'the folder {Path(run.work_dir).absolute()}'):
            if key in seen:
                raise InputError(f'two runs have {key}: {seen[key]} and {run.name}')
            seen[key] = run.name
    for run in runs:
        check_new(run)


def _said(how: str, crew: Crew, total: int | None) -> str:
    finished = sum(outcome.state != 'failed' for outcome in crew.outcomes())
    return f'{how}: {finished}{"" if total is None else f" of {total}"} runs are finished\n{_GO_ON}'
