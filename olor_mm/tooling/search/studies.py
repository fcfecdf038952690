"""Points chosen by an Optuna study: ask, run, tell; poor trials are stopped while they run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..runs import Outcome, Run, execute
from .grid import run_points
from .optuna_parts import build_part, find_part, open_study, optuna_module
from .plan import Plan
from .reading import Reader
from .scores import Score
from .space import Point

__all__ = ['StudyOptions', 'run_study']

#: Sequences of their own, which a new seed would break.
_ONE_SEED = ('QMCSampler',)


@dataclass(frozen=True)
class StudyOptions:
    """How Optuna searches.

    Args:
        sampler: Its name, as ``'tpe'``.
        pruner: Likewise, ``'none'`` for none.
        trials: How many points, failed and pruned ones included.
        sampler_options: Arguments of the sampler.
        pruner_options: Arguments of the pruner.
        seed: Of the sampler.
        on_grid: Whether only the levels listed are tried.
        fixed: Whether all points of the grid are tried, and the sampler chooses none.
        storage: An address or a file; None for optuna.db in the work dir.
        study: Name of the study; None for that of the work dir.
    """

    sampler: str
    pruner: str = 'none'
    trials: int = 20
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    pruner_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    on_grid: bool = False
    fixed: bool = False
    storage: str | None = None
    study: str | None = None


class _Trial:
    """A trial of the study that goes on: its runs, and what was reported of them.

    Args:
        trial: Optuna's.
        point: What it tries.
        name: As its folders are called.
    """

    def __init__(self, trial: Any, point: Point, name: str) -> None:
        self.trial, self.point, self.name = trial, point, name
        self.ended: list[tuple[int, Outcome]] = []
        self.reported: set[int] = set()
        self.pruned = ''
        self.running = 0
        #: Whether no further run of it begins.
        self.closed = False
        self.told = False

    @property
    def failed(self) -> bool:
        return any(outcome.state == 'failed' for _, outcome in self.ended)


class _Search:
    """Between the study and the processes.

    Args:
        plan: The search.
        options: How Optuna searches.
        reader: Of what the runs give.
    """

    def __init__(self, plan: Plan, options: StudyOptions, reader: Reader) -> None:
        self.plan, self.options, self.reader = plan, options, reader
        self.states = optuna_module().trial.TrialState
        self.here = str(plan.root.absolute())
        self.study = open_study(
            options.storage or f'sqlite:///{plan.root.absolute() / "optuna.db"}',
            options.study or plan.root.name,
            bool(reader.metric.greater),
            build_part('pruner', options.pruner, options.pruner_options),
        )
        self._trials: dict[str, tuple[_Trial, int]] = {}
        self._plain = {plan.run(plan.space.plain, seed).name: seed for seed in plan.seeds}
        self._plain_ended: list[tuple[int, Outcome]] = []
        self._steps = _steps_of(plan.cfg)

    # ---------------------------------------------------------------- asking

    def give_back(self) -> None:
        """What was going on when the search was stopped, or failed, is asked again, in the same folders.

        So are the points of a grid.
        """
        for frozen in self._latest():
            if frozen.state not in (self.states.RUNNING, self.states.FAIL):
                continue
            if frozen.state == self.states.RUNNING:
                self.study.tell(frozen.number, state=self.states.FAIL)
            if 'name' in frozen.user_attrs and {'max_level', 'power'} <= frozen.params.keys():
                kept = {'name': frozen.user_attrs['name'], 'work_dir': self.here, 'again': frozen.number}
                self.study.enqueue_trial(frozen.params, user_attrs=kept)
        if self.options.fixed:
            known = {frozen.user_attrs.get('name') for frozen in self._latest()}
            for point in self.plan.space.points[1:]:
                if point.name not in known:
                    attrs = {'name': point.name, 'work_dir': self.here}
                    self.study.enqueue_trial({'max_level': point.level, 'power': point.power}, user_attrs=attrs)

    def runs(self) -> Iterator[Run]:
        """The next run, whenever a worker is free."""
        for seed in self.plan.seeds:
            yield self.plan.run(self.plan.space.plain, seed)
        while self._waiting() or (not self.options.fixed and self._asked() < self.options.trials):
            trial = self._ask()
            for seed in self.plan.seeds:
                run = self.plan.run(trial.point, seed, trial.name)
                self._trials[run.name] = (trial, seed)
                if run.work_dir.is_dir():
                    # What it gave before the search was stopped.
                    self._report(trial, seed, run)
                if trial.pruned or trial.failed:
                    break
                trial.running += 1
                trial.closed = seed == self.plan.seeds[-1]
                yield run
            trial.closed = True
            self._tell(trial)

    def _latest(self) -> list[Any]:
        """The trials of this work dir; of one that was asked again the last."""
        found: dict[str, Any] = {}
        for frozen in self.study.get_trials(deepcopy=False):
            # A search elsewhere, which may be alive, has its own.
            if frozen.user_attrs.get('work_dir', self.here) == self.here:
                found[frozen.user_attrs.get('name', f'trial-{frozen.number}')] = frozen
        return list(found.values())

    def _waiting(self) -> bool:
        return any(frozen.state == self.states.WAITING for frozen in self._latest())

    def _asked(self) -> int:
        """How many points there have been; one that was asked again counts once."""
        return sum(
            bool(frozen.params) and 'again' not in frozen.user_attrs for frozen in self.study.get_trials(deepcopy=False)
        )

    def _ask(self) -> _Trial:
        sampler = find_part('sampler', self.options.sampler).__name__
        # The same choices whether the search was stopped in between or not: nothing but the study is remembered.
        seed = self.options.seed + (0 if sampler in _ONE_SEED else self._asked())
        self.study.sampler = build_part('sampler', self.options.sampler, self.options.sampler_options, seed)
        trial = self.study.ask()
        name = trial.user_attrs.get('name', f'trial-{trial.number}')
        trial.set_user_attr('name', name)
        trial.set_user_attr('work_dir', self.here)
        return _Trial(trial, self._suggest(trial), name)

    def _suggest(self, trial: Any) -> Point:
        levels, powers = self.plan.space.levels, self.plan.space.powers
        if self.options.fixed:
            # Of a range that a wider grid does not change.
            return Point(trial.suggest_float('max_level', 0.0, 1.0), trial.suggest_float('power', 0.0, 1e6))
        if self.options.on_grid:
            level = trial.suggest_categorical('max_level', list(levels))
        else:
            level = trial.suggest_float('max_level', levels[0], levels[-1], log=True)
        return Point(float(level), float(trial.suggest_categorical('power', list(powers))))

    # ---------------------------------------------------------------- telling

    def watch(self, run: Run, metrics: dict[str, float]) -> str | None:
        """Called after each validation of a run: words that end it."""
        self.reader.see(metrics)
        if run.name in self._plain:
            # Plain fine-tuning, with which all is compared, comes to its end.
            return None
        trial, seed = self._trials[run.name]
        self._report(trial, seed, run)
        return trial.pruned or None

    def on_done(self, outcome: Outcome) -> None:
        """Called when a run has ended."""
        if outcome.run.name in self._plain:
            self._plain_ended.append((self._plain[outcome.run.name], outcome))
            return
        trial, seed = self._trials[outcome.run.name]
        self._report(trial, seed, outcome.run, prune=False)
        trial.running -= 1
        trial.ended.append((seed, outcome))
        self._tell(trial)

    def _report(self, trial: _Trial, seed: int, run: Run, prune: bool = True) -> None:
        begin = self.plan.seeds.index(seed) * self._steps
        for step, value in self.reader.steps(run.work_dir):
            if trial.pruned or begin + step in trial.reported or not math.isfinite(value):
                continue
            trial.reported.add(begin + step)
            trial.trial.report(value, begin + step)
            if prune and trial.trial.should_prune():
                trial.pruned = f'{self.options.pruner}: {self.reader.metric.name} {value:.4g} at step {step}'

    def _tell(self, trial: _Trial) -> None:
        """Tell the study what a trial gave, once all its runs have ended."""
        if trial.told or not trial.closed or trial.running:
            return
        trial.told = True
        score = self.reader.score(trial.point, trial.name, trial.ended)
        trial.trial.set_user_attr('note', trial.pruned or score.note)
        if score.state == 'complete' and not trial.pruned:
            self.study.tell(trial.trial, score.mean)
        else:
            state = self.states.PRUNED if trial.pruned else self.states.FAIL
            self.study.tell(trial.trial, state=state)

    # ---------------------------------------------------------------- what came out

    def scores(self) -> list[Score]:
        """Plain fine-tuning, and the trials of the study that are in this work dir."""
        plain = self.plan.space.plain
        found = [self.reader.score(plain, plain.name, self._plain_ended)]
        for frozen in self._latest():
            if {'max_level', 'power'} <= frozen.params.keys() and 'name' in frozen.user_attrs:
                found.append(self._score(frozen))
        return found

    def _score(self, frozen: Any) -> Score:
        point = Point(float(frozen.params['max_level']), float(frozen.params['power']))
        score = Score(point, frozen.user_attrs['name'], note=frozen.user_attrs.get('note', ''))
        for seed in self.plan.seeds:
            folder = self.plan.run(point, seed, score.name).work_dir
            if folder.is_dir():
                score.folders[seed] = str(folder)
                value = self.reader.value(folder) if frozen.state == self.states.COMPLETE else None
                if value is not None:
                    score.values[seed] = value
        score.state = {'COMPLETE': 'complete', 'PRUNED': 'pruned', 'FAIL': 'failed'}.get(frozen.state.name, 'open')
        return score


def run_study(
    plan: Plan,
    options: StudyOptions,
    reader: Reader,
    machine: Mapping[str, Any],
    on_score: Callable[[list[Score]], None] | None = None,
) -> list[Score]:
    """Try plain fine-tuning, and the points that a study asks for.

    Args:
        plan: The search.
        options: How Optuna searches.
        reader: Of what the runs give.
        machine: ``workers``, ``devices`` and ``processes`` of :func:`~olor_mm.tooling.runs.execute`.
        on_score: Called with all scores so far whenever a run ends. Defaults to None.

    Returns:
        The scores, plain fine-tuning first.
    """
    if reader.metric.greater is None:
        # A study has a direction from its beginning.
        run_points(plan, [plan.space.plain], reader, machine)
    search = _Search(plan, options, reader)
    search.give_back()

    def on_done(outcome: Outcome) -> None:
        search.on_done(outcome)
        if on_score is not None:
            on_score(search.scores())

    execute(search.runs(), on_done=on_done, watch=search.watch, **machine)
    return search.scores()


def _steps_of(cfg: Mapping[str, Any]) -> int:
    """How many steps a run's validations are numbered by: the next seed's go on from there."""
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    train = cfg.get('train_cfg') or {}
    if train.get('max_epochs') and logger.get('log_metric_by_epoch', True):
        return int(train['max_epochs'])
    return int(train.get('max_iters') or 10**7)
