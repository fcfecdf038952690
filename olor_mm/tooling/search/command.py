"""The command of tools/search.py."""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, say
from ..figures import check_drawing
from ..runs.child import _lock
from ..runs.devices import visible_devices
from .best import write_config
from .grid import run_points
from .options import search_parser
from .optuna_parts import build_part, check_sampler, find_part
from .plan import Plan, begin, warnings_of
from .reading import Reader, remove_checkpoints
from .report import markdown, write_report, write_text
from .scores import Score, Verdict, judge
from .studies import StudyOptions, run_study

__all__ = ['search']

EXIT_FAILED = 1


def search(argv: Sequence[str]) -> None:
    """Choose max_level and power for a task, as ``tools/search.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the options or the work dir is the user's to mend, or no trial ended.
        KeyboardInterrupt: On Ctrl-C, with a text that says how to go on.
        Terminated: On SIGTERM, likewise.
        SystemExit: With status 1 if a run failed; the results are written all the same.
    """
    args = search_parser().parse_args(argv)
    machine = _machine(args)
    options = _study_options(args)
    plan = Plan.of(args)
    about = _about(plan, options)
    plan.check()
    begin(plan, about)
    notes = warnings_of(plan)
    for note in notes:
        say(f'warning: {note}')
    try:
        check_drawing(plan.root)
    except InputError as error:
        # The tables do without.
        say(f'warning: there will be no pictures: {error}')
    _say_begin(plan, options)
    reader = Reader(plan)
    free = options is not None and not options.on_grid and not options.fixed

    def conclude(scores: Sequence[Score]) -> Verdict:
        verdict = judge(scores, reader.metric, plan.space, free, _repeat(options, scores, reader))
        verdict.lines += [f'Warning: {note}.' for note in notes]
        return verdict

    def on_score(scores: list[Score]) -> None:
        if reader.metric.name is None:
            return
        verdict = conclude(scores)
        if verdict.best is not None:
            # What there is so far, should the search be stopped.
            write_text(plan.root / 'results.md', markdown(scores, verdict, reader.metric))
            if args.keep == 'best':
                remove_checkpoints(scores, verdict)

    # Of two searches in one folder the second would take the trials of the first for those of one that was killed.
    with _lock(plan.root):
        if options is None:
            scores = run_points(plan, plan.space.points, reader, machine, on_score)
        else:
            scores = run_study(plan, options, reader, machine, on_score)
        _finish(plan, args.config, about, scores, conclude(scores), reader)


def _finish(
    plan: Plan, given: str, about: Mapping[str, Any], scores: Sequence[Score], verdict: Verdict, reader: Reader
) -> None:
    failed = [score for score in scores if score.state == 'failed']
    if verdict.best is None:
        first = [f'the first that failed is {failed[0].name}:\n{failed[0].note}'] if failed else []
        raise InputError('no trial has come to its end', *first)
    best = plan.root / f'{plan.config.stem}_best.py'
    name = verdict.best.name
    argv = plan.argv(verdict.best.point, plan.seeds[0])
    metric, value = reader.metric.name, verdict.best.mean
    count = sum(score.is_complete for score in scores)
    write_config(
        best,
        argv,
        [
            f'{verdict.best.point.label}: the best of {count} points by tools/search.py.',
            f'{metric} {value:.4g} on the validation data; see results.md. The run: {name}.',
        ],
    )
    told: dict[str, Any] = {'config': given, 'options': [*plan.options, *plan.pairs], **about}
    told.update(which=plan.which, seeds=list(plan.seeds), best_config=str(best))
    written = write_report(plan.root, told, scores, verdict, reader.metric, plan.space)
    print((plan.root / 'results.md').read_text(encoding='utf-8'))
    for score in failed:
        say(f'{score.name} failed; the same command tries it again. {score.note}')
    say(f'written: {", ".join(str(file) for file in [*written, best])}')
    say(f'to train with the best: {Path(sys.executable).name} tools/train.py {shlex.quote(str(best))}')
    if failed:
        raise SystemExit(EXIT_FAILED)


def _study_options(args: Any) -> StudyOptions | None:
    """None for the grid.

    Raises:
        InputError: If an option is for the other way, or is none of Optuna's.
    """
    fixed = args.sampler.lower() == 'grid'
    if fixed:
        given = {'--sampler-options': args.sampler_options, '--on-grid': args.on_grid}
        if args.pruner == 'none':
            given |= {'--storage': args.storage, '--study': args.study, '--pruner-options': args.pruner_options}
        for option, value in given.items():
            if value:
                raise InputError(f'{option} is for a sampler of Optuna, but the sampler is grid', 'add: --sampler tpe')
        if args.pruner == 'none':
            return None
    if args.trials < 1:
        raise InputError(f'--trials {args.trials}: there must be at least one')
    options = StudyOptions(
        sampler='random' if fixed else args.sampler,
        fixed=fixed,
        pruner=args.pruner,
        trials=args.trials,
        sampler_options=_pairs('sampler', args.sampler_options),
        pruner_options=_pairs('pruner', args.pruner_options),
        seed=args.sampler_seed,
        on_grid=args.on_grid,
        storage=args.storage,
        study=args.study,
    )
    check_sampler(options.sampler, options.sampler_options)
    build_part('pruner', options.pruner, options.pruner_options)
    return options


def _machine(args: Any) -> dict[str, Any]:
    for option in ('workers', 'gpus_per_run'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f'--{option.replace("_", "-")} {value} must be 1 or more')
    workers = args.workers
    if workers is None:
        given = visible_devices() if args.devices is None else args.devices
        workers = max(1, len(given) // args.gpus_per_run)
    return {'workers': workers, 'devices': args.devices, 'processes': args.gpus_per_run}


def _pairs(kind: str, given: Sequence[str]) -> dict[str, Any]:
    found = {}
    for pair in given:
        key, mark, value = pair.partition('=')
        if not key or not mark:
            raise InputError(f'--{kind}-options takes key=value pairs, but got {pair!r}')
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _about(plan: Plan, options: StudyOptions | None) -> dict[str, Any]:
    """What makes a search another one."""
    if options is None:
        return {'sampler': 'grid'}
    return {
        'sampler': 'grid' if options.fixed else find_part('sampler', options.sampler).__name__,
        'sampler_options': dict(options.sampler_options),
        'sampler_seed': options.seed,
        'pruner': find_part('pruner', options.pruner).__name__,
        'pruner_options': dict(options.pruner_options),
        'on_grid': list(plan.space.levels) if options.on_grid else None,
        'powers': None if options.fixed else list(plan.space.powers),
        'seeds': list(plan.seeds),
        'which': plan.which,
    }


def _repeat(options: StudyOptions | None, scores: Sequence[Score], reader: Reader) -> str:
    if options is None:
        return '--seeds'
    found = [score for score in scores if score.is_complete and not score.point.is_plain]
    if not found or reader.metric.greater is None:
        return '--seeds'
    best = max(found, key=lambda score: reader.metric.sign * score.mean).point
    return f'--levels {best.level:.4g} --powers {best.power:g} with another --work-dir, and --seeds'


def _say_begin(plan: Plan, options: StudyOptions | None) -> None:
    each = f' x {len(plan.seeds)} seeds' if len(plan.seeds) > 1 else ''
    if options is None or options.fixed:
        count = len(plan.space.points)
        say(f'{count} points{each}: level 0, and {len(plan.space.levels)} levels x {len(plan.space.powers)} powers')
    else:
        say(f'{options.trials} points by {options.sampler}{each}, and level 0')
    if plan.metric.name is None:
        say('metric: the first one of the validation')
    else:
        kind = 'more' if plan.metric.greater else 'less'
        say(f'metric: {plan.metric.name}, {kind} is better; of each run the {plan.which} validation counts')
