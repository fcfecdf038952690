"""tools/prepare_data.py, from the command line to the summary."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .archives import archives_in, unpack
from .arrays import check_digests
from .findings import Findings
from .images import check_images
from .locate import check_folder, guidance, locate, missing_needs
from .options import find_spec, parser
from .output import Progress, say
from .report import remove_report, summarise, write_report
from .specs import SPECS, Spec
from .splits import split_files, write_splits
from .tally import Tally, compare, count

__all__ = ['check', 'prepare']

EXIT_PROBLEMS = 1


def prepare(argv: Sequence[str]) -> None:
    """Check a data set as ``tools/prepare_data.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If an option is wrong, or nothing of the data set was found.
        SystemExit: With 1 if the data set has problems; they are printed.
        KeyboardInterrupt: On Ctrl-C, with a text that says what is left behind.
    """
    options = parser()
    args = options.parse_args(argv)
    if args.list:
        for spec in SPECS.values():
            say(f'{spec.name:<15}{spec.title} ({spec.dataset})')
        return
    if args.name is None:
        raise InputError(
            'which data set?', f'known are: {", ".join(SPECS)}', 'give one: prepare_data.py NAME --root DIR'
        )
    spec = find_spec(args.name)
    if not args.root:
        raise InputError('where is the data set?', f'give its folder: prepare_data.py {spec.name} --root DIR')
    try:
        if not check(spec, args):
            raise SystemExit(EXIT_PROBLEMS)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt('interrupted: no file is half-written, and the same command can be repeated') from error


def check(spec: Spec, args: argparse.Namespace) -> bool:
    """Check a data set and say how it is.

    Args:
        spec: What it is.
        args: The options of :func:`~.options.parser`.

    Returns:
        Whether all is well.

    Raises:
        InputError: If nothing of the data set was found, or something cannot be read or written.
    """
    root = Path(args.root).expanduser()
    findings = Findings(accept_counts=args.subset)
    check_folder(root)
    try:
        if args.unpack:
            _unpack_all(root, findings)
        found = locate(root, spec)
        if found is None:
            lines = guidance(spec, root, archives_in(root))
            raise InputError(f'nothing of {spec.title} was found', f'looked in: {root.absolute()}', *lines)
        out = Path(args.out).expanduser() if args.out else found
        tally = _examine(spec, found, args, findings)
        written = _write_splits(tally, out, args, findings) if spec.folds and not findings.problems else []
        _report(spec, found, out, tally, findings, [*written, *_help(spec, found, root, findings)])
    except OSError as error:
        raise InputError(
            f'something cannot be read or written: {error.strerror or error}',
            f'looked at: {error.filename or root}',
            'mend that and run the same command again',
        ) from error
    return not findings.problems


def _unpack_all(root: Path, findings: Findings) -> None:
    archives = archives_in(root)
    if not archives:
        findings.notes.append(f'--unpack: no archive (zip, tar, tgz) lies in {root}')
    for archive in archives:
        written, there, differing = unpack(archive, root)
        say(f'{archive.name}: {written:,} files written, {there:,} were there already')
        for name in differing:
            findings.problem(
                'differ from the archive', f'{name}: has not the size that {archive.name} gives; left as it is'
            )


def _examine(spec: Spec, root: Path, args: argparse.Namespace, findings: Findings) -> Tally:
    for name in missing_needs(root, spec):
        findings.problem('missing files', name)
    say(f'{spec.title} in {root}: reading lists and folders')
    tally = count(root, spec, findings)
    compare(tally, spec, findings)
    check_digests(root, spec.digests, findings)
    if spec.extra:
        spec.extra(root, findings)
    if args.quick:
        findings.notes.append('--quick: the images were not decoded')
    elif spec.whole:
        spec.whole(root, findings)
    else:
        _decode(spec, root, tally, args.workers, findings)
    return tally


def _decode(spec: Spec, root: Path, tally: Tally, workers: int, findings: Findings) -> None:
    bad: list[tuple[str, str]] = []
    values = 0
    with Progress('decoding images', len(tally.files)) as progress:
        for checked in check_images(tally.files, str(root), spec.mask_limit, workers):
            bad += checked.bad
            values |= checked.values
            progress.advance(checked.seen)
    for path, reason in sorted(bad):
        findings.problem('corrupt images', f'{path}: {reason}')
    if spec.mask_limit and tally.files:
        # 0 is what has no class.
        findings.count('classes in the masks', (values >> 1).bit_count(), spec.classes)


def _write_splits(tally: Tally, out: Path, args: argparse.Namespace, findings: Findings) -> list[str]:
    least, part, label = min((number, *key) for key, number in tally.classes.items())
    if least < args.num_folds:
        # The data set class refuses it too.
        text = f'{least} images of class {label} of {part} cannot be shared out to {args.num_folds} folds: --num-folds'
        findings.problem('too few images', text)
        return []
    files = list(split_files(tally.files, args.num_folds, args.seed))
    written, kept = write_splits(out / 'splits', files, args.force)
    lines = [f'split files written to {out / "splits"}: {len(written)}'] if written else []
    lines += [f'  {name}' for name in written]
    if kept:
        lines.append(f'split files in {out / "splits"} that were right already: {len(kept)}')
    return lines


def _help(spec: Spec, found: Path, root: Path, findings: Findings) -> list[str]:
    if missing_needs(found, spec) or 'missing files' in findings.problems:
        return guidance(spec, found, archives_in(root))
    return []


def _report(spec: Spec, root: Path, out: Path, tally: Tally, findings: Findings, more: Sequence[str]) -> None:
    report = out / f'prepare_{spec.name}.txt'
    for line in summarise(spec, tally, findings):
        say(line)
    for line in more:
        say(line)
    if findings.problems:
        say(write_report(report, spec, findings))
        say(f'PROBLEMS: {findings.total:,} in {spec.title}, {root}')
        return
    for line in remove_report(report):
        say(line)
    whole = 'a sound subset' if findings.accepted else 'complete'
    say(f'OK: {spec.title} is {whole}')
    say(f'use it with: --data-root {shlex.quote(str(root))}')
