"""The schedule of a resumed run: MMEngine puts the checkpoint's in the place of the config's, and does not say so."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ['changed_schedules']

#: Of a scheduler, what is progress or the run's own, and not how it was set.
_NOT_SET = frozenset({'self', 'optimizer', 'param_name', 'last_step', 'verbose', 'args', 'kwargs'})


def changed_schedules(schedulers: Any, states: Any) -> list[str]:
    """Lines on what a resume changes in the schedulers that the config has built.

    It compares what the schedulers were built with, not the texts of configs: after a second resume the config is the
    same as that of the checkpoint, and the schedule is still that of the first run.

    Args:
        schedulers: ``runner.param_schedulers``, built: a list, or lists by name of the optimizer, or None.
        states: ``param_schedulers`` of the checkpoint, in the same arrangement.
    """
    here, there = dict(_by_place(schedulers)), dict(_by_place(states))
    lines = [_changed(place, here[place], there[place]) for place in here if isinstance(there.get(place), Mapping)]
    absent = len(here.keys() - there.keys())
    if absent:
        held = len(here) - absent
        lines.append(f'the checkpoint has the state of {held} of {len(here)} param_schedulers: the others begin anew')
    return [line for line in lines if line]


def _by_place(found: Any) -> Iterator[tuple[str, Any]]:
    parts = found.items() if isinstance(found, Mapping) else [('', found)]
    for name, some in parts:
        for i, one in enumerate(some if isinstance(some, Sequence) else ()):
            yield f'{name}.{i}' if name else str(i), one


def _changed(place: str, scheduler: Any, state: Mapping[str, Any]) -> str:
    here = _settings(scheduler)
    differing = [name for name in here if name not in state or repr(state[name]) != repr(here[name])]
    # Another kind of scheduler leaves what this one has never heard of.
    foreign = [name for name in state if name not in vars(scheduler) and not name.startswith('_')]
    if not differing and not foreign:
        return ''
    # After a resume from another kind the scheduler keeps its own settings beside those that came.
    ours = ', '.join(f'{name}={here[name]!r}' for name in differing or here)
    theirs = ', '.join(f'{name}={state[name]!r:.80}' for name in [*differing, *foreign] if name in state)
    return (
        f"param_scheduler.{place} is {type(scheduler).__name__}({ours}) in the config, but the checkpoint's "
        f'({theirs}) goes on, as MMEngine resumes it'
    )


def _settings(scheduler: Any) -> dict[str, Any]:
    """What a scheduler was built with, as far as it keeps it."""
    names = {
        name
        for kind in type(scheduler).__mro__
        if '__init__' in vars(kind)
        for name in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    }
    return {name: value for name, value in vars(scheduler).items() if name in names - _NOT_SET}
