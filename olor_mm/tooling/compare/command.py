"""The command line of tools/compare.py: which runs there are, and what is said of them in the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, say
from ..runs import Outcome, Run, execute
from ..runs.devices import visible_devices
from ..runs.record import read_record
from .cells import Cell, collect
from .kept import Kept, measure
from .methods import Variant, check_base, check_settings, parse_method
from .options import parser
from .report import write_report

__all__ = ['compare']

EXIT_FAILED = 1


def compare(argv: Sequence[str]) -> None:
    """Compare methods, as ``tools/compare.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the options, the data or the work dir is the user's to mend.
        KeyboardInterrupt: On Ctrl-C, with a text that says how to go on.
        Terminated: On SIGTERM, likewise.
        SystemExit: With status 1 if a run failed; the report is written all the same.
    """
    args = parser().parse_args(argv)
    _check_args(args)
    root = Path(args.work_dir or Path('work_dirs', f'{Path(args.config).stem}_compare')).expanduser()
    variants = _variants(args)
    against = _against(args, variants)
    pairs = [(variant, seed) for seed in args.seeds for variant in variants]
    runs = [_run(args, variant, seed, root) for variant, seed in pairs]
    # Of the first seed: the others differ in nothing else.
    for variant, run in zip(variants, runs, strict=False):
        check_settings(variant.label, run.config)
    if args.report_only:
        outcomes = _found(runs)
    else:
        say(f'{len(variants)} methods, {len(args.seeds)} seeds: {len(runs)} runs in {root}')
        outcomes = execute(runs, _workers(args), args.devices, processes=args.gpus_per_run)
    cells = [
        collect(variant, seed, outcome, args.metric, args.which, args.rule)
        for (variant, seed), outcome in zip(pairs, outcomes, strict=True)
    ]
    _check_any(cells, root)
    kept = Kept(why='it was not asked for') if args.skip_kept else measure(cells, args, root)
    print(write_report(root, args, variants, against, cells, kept))
    _end(outcomes, runs, kept, args)


def _end(outcomes: Sequence[Outcome], runs: Sequence[Run], kept: Kept, args: argparse.Namespace) -> None:
    """Say what went wrong, and end with the exit status for it."""
    failed = [outcome for outcome in outcomes if outcome.state == 'failed']
    if failed:
        lines = ''.join(f'\n  {outcome.run.name}: {outcome.log}' for outcome in failed)
        say(f'{len(failed)} of {len(runs)} runs failed; the same command tries them again:{lines}')
    lost = bool(args.upstream and kept.why and not args.skip_kept)
    if lost:
        say(f'--upstream: nothing was measured: {kept.why}')
    if failed or lost:
        raise SystemExit(EXIT_FAILED)


def _check_args(args: argparse.Namespace) -> None:
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f'--seeds {" ".join(map(str, args.seeds))} names a seed twice')
    if min(args.seeds) < 0:
        raise InputError(f'--seeds {min(args.seeds)} must be 0 or more')
    for option in ('workers', 'gpus_per_run', 'knn_k', 'upstream_images'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f'--{option.replace("_", "-")} {value} must be 1 or more')
    for option in ('upstream_data_root', 'upstream_images', 'knn_k'):
        if args.upstream is None and getattr(args, option) is not None:
            raise InputError(f'--{option.replace("_", "-")} is of the upstream images', 'give them with --upstream')
    if args.upstream is not None and not Path(args.upstream).expanduser().exists():
        # Before hours of training, not after them.
        raise InputError('--upstream is neither a folder nor a config', f'looked for: {Path(args.upstream).absolute()}')
    twice = sorted({text for text in args.methods if args.methods.count(text) > 1})
    if twice:
        raise InputError(f'--methods names {twice[0]} twice')


def _variants(args: argparse.Namespace) -> list[Variant]:
    base = Run('the config', [args.config, *_shared(args, ())], Path('work_dirs')).config
    check_base(base)
    variants = [parse_method(text, base) for text in args.methods]
    labels = [variant.label for variant in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f'--methods: two are called {label!r}', 'give one of them another name')
    return variants


def _against(args: argparse.Namespace, variants: Sequence[Variant]) -> Variant:
    labels = [variant.label for variant in variants]
    if args.against is not None and args.against not in labels:
        raise InputError(f'--against {args.against} is not among the methods', f'these are: {", ".join(labels)}')
    if args.against is not None:
        return variants[labels.index(args.against)]
    return next((variant for variant in variants if variant.plain), variants[0])


def _shared(args: argparse.Namespace, options: Sequence[str]) -> list[str]:
    """Arguments of train.py that all runs have, and ``--cfg-options`` with those of one method."""
    found = []
    for name in ('data_root', 'pretrained'):
        if getattr(args, name) is not None:
            found += [f'--{name.replace("_", "-")}', getattr(args, name)]
    for name in ('amp', 'auto_scale_lr', 'no_pin_memory', 'no_persistent_workers'):
        if getattr(args, name):
            found.append(f'--{name.replace("_", "-")}')
    pairs = [*args.cfg_options, *options]
    return [*found, '--cfg-options', *pairs] if pairs else found


def _run(args: argparse.Namespace, variant: Variant, seed: int, root: Path) -> Run:
    options = [*variant.options, f'randomness.seed={seed}']
    arguments = [variant.config or args.config, *_shared(args, options)]
    return Run(f'{variant.label}, seed {seed}', arguments, root / variant.folder / f'seed_{seed}')


def _workers(args: argparse.Namespace) -> int:
    if args.workers is not None:
        return int(args.workers)
    gpus = len(args.devices or visible_devices())
    return max(1, gpus // args.gpus_per_run)


def _found(runs: Sequence[Run]) -> list[Outcome]:
    """How runs stand, without making them."""
    outcomes = []
    for run in runs:
        record = read_record(run.work_dir)
        state = 'missing' if record is None else record.state
        outcomes.append(Outcome(run, state, False))
    return outcomes


def _check_any(cells: Sequence[Cell], root: Path) -> None:
    if not any(cell.value is not None for cell in cells):
        finished = [cell for cell in cells if cell.state == 'finished']
        if not finished:
            logs = [f'{cell.name}: {cell.log}' for cell in cells if cell.state == 'failed']
            raise InputError(f'no run in {root} is finished, so there is nothing to compare', *logs[:5])
        raise InputError(
            'no run has a metric of a validation',
            f'looked in: {finished[0].work_dir}',
            'the config needs val_dataloader, val_cfg and val_evaluator, and a visualizer with LocalVisBackend',
        )
