"""The command line of tools/calibrate.py: gamma from training images, then, apart from it, what it does in the test."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, is_main_process

from ...engine.trained_only import needs_pretrained
from ...evaluation.calibration import BestGamma, alg_gamma, pcv_gamma
from ...registry import type_name
from .. import launch, settings
from ..errors import InputError, say
from ..incremental.plan import forget_pretrained
from ..loaders import in_order, retold, transforms_of_test
from ..options import calibrate_parser
from ..pretrained import check_vit_names, replace_pretrained
from ..weights import check_file
from .bench import Bench, read_checkpoint
from .folds import cross_validate
from .plan import Plan, check_config, loader_of, seen_classes, training_only
from .results import Row, Seen, begin, rows_of, write_results
from .saving import check_uncalibrated, find_biases, uncalibrated, with_gamma, write_checkpoint

__all__ = ['calibrate', 'estimate']


def calibrate(argv: Sequence[str]) -> None:
    """Calibrate as ``tools/calibrate.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in the config, the data, the weights or the work dir is the user's to mend.
        KeyboardInterrupt: On Ctrl-C while a fold is trained, with a text that says how to go on.
        Terminated: On SIGTERM, likewise.
    """
    args = calibrate_parser().parse_args(argv)
    check_file(args.checkpoint, 'the checkpoint to calibrate')
    if args.remove:
        _remove(args.checkpoint, Path(args.remove).expanduser())
        return
    cfg, notes = launch._configure(args)
    check_config(cfg)
    if args.amp:
        settings.apply_amp(cfg)
    if args.pretrained:
        notes += replace_pretrained(cfg, args.pretrained)
    launch._check_rollback(cfg)
    methods = [] if args.gamma is not None else list(dict.fromkeys(args.methods))
    if 'pcv' not in methods and args.no_test and not needs_pretrained(cfg):
        # Nothing is asked of the pre-trained model.
        forget_pretrained(cfg)
        cfg.load_from = None
    launch._check(training_only(cfg), 'train')
    if not args.no_test:
        launch._check(cfg, 'test')
    check_vit_names(cfg)
    content = read_checkpoint(args.checkpoint)
    check_uncalibrated(content, args.checkpoint)
    root = Path(cfg.work_dir)
    plan, gammas, folds, bench = estimate(cfg, content, args, methods, notes, argv)
    rows = [] if args.no_test else _test(bench, cfg, content, plan, gammas, args.checkpoint)
    if is_main_process():
        print(write_results(root, plan, gammas, [None if f is None else asdict(f) for f in folds], rows))
    barrier()


def estimate(
    cfg: Config,
    content: Mapping[str, Any],
    args: argparse.Namespace,
    methods: Sequence[str],
    notes: Sequence[str],
    argv: Sequence[str],
) -> tuple[Plan, dict[str, float], list[BestGamma | None], Bench]:
    """Find gamma and save it. All that is calculated here is handed a config that has no evaluation in it.

    Returns:
        What was planned, gamma by method, what each fold has found, and the model.
    """
    training = training_only(cfg)
    del cfg
    root = Path(training.work_dir)
    bench = Bench(training, root, notes)
    seen = seen_classes(training)
    if needs_pretrained(training):
        # What the checkpoint lacks is filled in once; the pre-trained model must be seen before.
        bench.to_pretrained()
    bench.to_checkpoint(content, args.checkpoint)
    classes, biases = _look(bench, training, seen)
    plan = Plan.make(seen, methods, args.folds, args.hold_out, args.seed)
    begin(root, plan, args.checkpoint, args.resume)
    say(f'{len(seen)} of {classes} classes were fine-tuned on, {classes - len(seen)} were absent')
    gammas, folds = {} if args.gamma is None else {'given': args.gamma}, []
    if 'alg' in methods:
        gammas['ALG'] = alg_gamma(*bench.logits(loader_of(training, seen)), seen)
        say(f'ALG: gamma {gammas["ALG"]:.3f}')
    if 'pcv' in methods:
        folds = cross_validate(bench, training, plan, root, args.resume, notes, argv)
        gamma = pcv_gamma(folds)
        if gamma is None:
            say('PCV: no fold has a gamma, so there is none; --methods alg always has one')
        else:
            gammas['PCV'] = gamma
            say(f'PCV: gamma {gamma:.3f}, the mean of {sum(f is not None for f in folds)} of {len(folds)} folds')
    absent = sorted(set(range(classes)) - set(seen))
    bench.to_checkpoint(content, args.checkpoint)
    for method, gamma in gammas.items():
        file = root / f'calibrated_{method.lower()}.pth'
        if is_main_process():
            write_checkpoint(with_gamma(content, bench.model, biases, absent, gamma, method), file)
        say(f'saved: {file}')
    barrier()
    return plan, gammas, folds, bench


def _look(bench: Bench, training: Config, seen: Sequence[int]) -> tuple[int, dict[str, float]]:
    """How many classes the head has, and which biases shift its logits."""
    loader = bench.runner.build_dataloader(dict(loader_of(training, seen)), seed=bench.runner.seed)
    bench.model.eval()
    data = bench.model.data_preprocessor(next(iter(loader)), False)
    classes = bench.model(data['inputs'], mode='tensor').size(1)
    if max(seen) >= classes or len(seen) == classes:
        raise InputError(
            f'training images have labels up to {max(seen)}, and the head has {classes} outputs'
            if max(seen) >= classes
            else f'training images are of all {classes} classes of the head: none was absent, so nothing is calibrated',
            'a head over all classes is needed, pre-trained on them, and training images of a part of the classes: '
            'olor_mm.ClassSubset chooses them',
        )
    return classes, find_biases(bench.model, data['inputs'], sorted(set(range(classes)) - set(seen)))


def _test(
    bench: Bench, cfg: Config, content: Mapping[str, Any], plan: Plan, gammas: Mapping[str, float], file: str
) -> list[Row]:
    """The table. Here, and only here, images of the test are looked at, when gamma is saved."""
    loader = in_order(cfg.test_dataloader, cfg.test_dataloader.dataset)
    bank = _bank(cfg)
    said: dict[str, Seen] = {}
    for name in ('pre-trained', 'fine-tuned'):
        say(f'the {name} model, on the images of the test' + (' and of the class means' if bank else ''))
        if name == 'pre-trained':
            bench.to_pretrained()
        else:
            bench.to_checkpoint(content, file)
        features, logits, labels = bench.both(loader)
        absent = int((~_among(labels, plan.seen)).sum())
        if absent in (0, len(labels)):
            raise InputError(
                f'{absent} of {len(labels)} images of the test are of absent classes: the table needs both kinds',
                'give test_dataloader images of all classes, or leave the table out with --no-test',
            )
        known = None
        if bank is not None:
            means = bench.both(bank)
            # Class means of a part of the classes would tell only of them.
            known = (means[0], means[2]) if set(labels.tolist()) <= set(means[2].tolist()) else None
        said[name] = Seen(logits, labels, features, known)
    if said['pre-trained'].bank is None:
        say('no NCM: train_dataloader.dataset is no olor_mm.ClassSubset of a data set with images of all classes')
    return rows_of(said['pre-trained'], said['fine-tuned'], plan.seen, gammas)


def _among(labels: Any, seen: Sequence[int]) -> Any:
    import torch

    return torch.isin(labels, torch.tensor(list(seen)))


def _bank(cfg: Config) -> ConfigDict | None:
    """The training images of all classes, absent ones too: what the class means of the table are of."""
    dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    if type_name(dataset.get('type')) != 'ClassSubset':
        return None
    return in_order(cfg.test_dataloader, retold(dataset.dataset, transforms_of_test(cfg)))


def _remove(checkpoint: str, out: Path) -> None:
    """Take gamma out of a calibrated checkpoint."""
    if out.exists():
        raise InputError(f'{out} exists', 'give a name that is free')
    write_checkpoint(uncalibrated(read_checkpoint(checkpoint), checkpoint), out)
    say(f'saved: {out}, without gamma')
