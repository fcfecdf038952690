"""``--resume``: which checkpoint a run goes on from, and what happens where the latest one is damaged."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine.integrity import damage, newest_whole
from ..engine.replacing import restore
from .errors import InputError
from .weights import check_file

__all__ = ['Alert', 'apply_resume', 'latest_checkpoint', 'overwritten']


class Alert(str):
    """A line for the log that is a warning."""

    __slots__ = ()


def apply_resume(cfg: Config, resume: str) -> list[str]:
    """Go on from a checkpoint, or start as the config says where there is none.

    Args:
        cfg: The config of the run.
        resume: A checkpoint, or ``'auto'`` for the latest in the work dir; where that is damaged, the newest one there
            that is whole.

    Returns:
        Lines for the log; an :class:`Alert` is a warning.

    Raises:
        InputError: If the checkpoint is missing or damaged, or all are, or the name is empty.
    """
    if not resume.strip():
        # As from --resume "$CKPT" where the variable is empty: a new run would overwrite what it was to go on from.
        raise InputError(
            f'--resume {resume!r} names no checkpoint', 'give a file, or --resume without a value for the latest one'
        )
    for folder in _folders(cfg):
        restore(folder)
    if resume != 'auto':
        _check_given(resume, cfg)
        cfg.resume, cfg.load_from = True, resume
        return []
    named = latest_checkpoint(cfg.work_dir, missing_ok=True)
    before, others = ([file for _, _, file in _by_age(cfg)], []) if named is None else _older(cfg, named)
    candidates = before if named is None else [named, *before]
    if not candidates:
        # resume=True without a checkpoint would make MMEngine take load_from for one.
        cfg.resume = False
        start = f'load_from={cfg.load_from}' if cfg.get('load_from') else 'the beginning'
        return [f'--resume: no checkpoint in {cfg.work_dir} yet, starting from {start}']
    found, wrong = newest_whole(candidates)
    if found is None:
        raise InputError(
            f'--resume: no checkpoint in {cfg.work_dir} can be used',
            *[f'{file}: {what}' for file, what in wrong.items()],
            *[f'{file}: it is not from before {named}, perhaps of another run' for file in others],
            'give another one: --resume CHECKPOINT; or remove these, and last_checkpoint, to start anew',
        )
    notes: list[str] = [Alert(f'--resume: {file} is not used: {what}') for file, what in wrong.items()]
    if wrong or named is None:
        record = Path(cfg.work_dir, 'last_checkpoint')
        why = 'it is the newest one that is whole' if wrong else f'{record} {_state(record)}, and this is the newest'
        notes.append(Alert(f'--resume: going on from {found}: {why}'))
    else:
        notes.append(f'--resume: going on from {found}')
    cfg.resume, cfg.load_from = True, str(found)
    return notes


def overwritten(cfg: Config) -> list[str]:
    """A warning for the log if a run that starts anew finds the checkpoints of another one in its work dir."""
    found = [] if cfg.get('resume') else [file for _, _, file in _by_age(cfg)]
    if not found:
        return []
    return [
        Alert(
            f'{cfg.work_dir} holds {len(found)} checkpoints of an earlier run, {found[0].name} the last one, and this '
            'run will overwrite them: --resume goes on from there, --work-dir takes another folder'
        )
    ]


def latest_checkpoint(work_dir: str, missing_ok: bool = False) -> Path | None:
    """The checkpoint that a work dir names as its last, also after the folder was moved.

    Args:
        work_dir: The work dir.
        missing_ok: Whether a named checkpoint that is missing is returned all the same. Defaults to False.

    Returns:
        The file, or None where none is named.

    Raises:
        InputError: If it is named but missing.
    """
    record = Path(work_dir, 'last_checkpoint')
    text = _read(record)
    if not text:
        return None
    named = Path(text)
    for candidate in (named, Path(work_dir, named.name)):
        if candidate.exists():
            return candidate
    if missing_ok:
        return named
    raise InputError(
        'the latest checkpoint is missing',
        f'looked for: {named}, which {record} names',
        'give another one: --resume CHECKPOINT; or remove that file to start anew',
    )


def _read(record: Path) -> str:
    """What last_checkpoint names, '' where it is missing, empty or cannot be a checkpoint's name."""
    if not record.is_file():
        return ''
    try:
        text = record.read_text(encoding='utf-8').strip()
        # Raises where the text cannot be a path: one that is too long.
        if Path(text).is_dir() and record.parent.resolve().is_relative_to(Path(text).resolve()):
            # The work dir, or a folder around it, is no checkpoint in shards.
            return ''
        return '' if any(unicodedata.category(character) == 'Cc' for character in text) else text
    except (OSError, UnicodeDecodeError, ValueError):
        return ''


def _state(record: Path) -> str:
    return 'is unreadable' if record.exists() else 'is missing'


def _by_age(cfg: Mapping[str, Any]) -> list[tuple[int, int, Path]]:
    """The run's own checkpoints with kind and number, the newest first; 'best' and published ones are others.

    Those are without an optimizer's state. A number of epochs says nothing beside one of iterations: the kind that the
    config saves comes first.
    """
    found = [
        (*number, file)
        for folder in _folders(cfg)
        for file in (folder.iterdir() if folder.is_dir() else ())
        if (number := _number(cfg, file)) is not None
    ]
    return sorted(found, key=lambda entry: (-entry[0], *entry[1:]), reverse=True)


def _number(cfg: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """Which kind of the config's names it has, and its number there; None where it has none of them."""
    hook = _hook(cfg)
    own = ['epoch_{}.pth', 'iter_{}.pth'] if hook.get('by_epoch', True) else ['iter_{}.pth', 'epoch_{}.pth']
    for kind, name in enumerate([hook['filename_tmpl']] if hook.get('filename_tmpl') else own):
        # {}, {:03d}, {0}
        match = re.fullmatch(r'(\d+)'.join(map(re.escape, re.split(r'\{[^{}]*\}', name, maxsplit=1))), file.name)
        if match:
            return kind, int(match[1]) if match.groups() else 0
    return None


def _older(cfg: Mapping[str, Any], file: Path) -> tuple[list[Path], list[Path]]:
    """The run's checkpoints from before a given one, and the others: an older run may have left those behind.

    Where the given one has no number, all are taken to be from before it.
    """
    number = _number(cfg, file)
    before: list[Path] = []
    others: list[Path] = []
    for kind, count, other in _by_age(cfg):
        if not _same(other, file):
            (before if number is None or (kind == number[0] and count < number[1]) else others).append(other)
    return before, others


def _hook(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def _folders(cfg: Mapping[str, Any]) -> list[Path]:
    """Where the run's checkpoints are."""
    folders, out_dir = [Path(cfg['work_dir'])], _hook(cfg).get('out_dir')
    if out_dir and '://' not in str(out_dir):
        folders.append(Path(out_dir, Path(cfg['work_dir']).name))
    return folders


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _check_given(resume: str, cfg: Config) -> None:
    """See that the checkpoint of ``--resume FILE`` is there and undamaged."""
    hint = '--resume without a value takes the latest checkpoint of the work dir'
    path = Path(resume).expanduser()
    if not path.exists():
        check_file(resume, 'the checkpoint of --resume', hint)
    if path.is_dir() and not any(path.glob('rank*.pth')):
        named = latest_checkpoint(str(path), missing_ok=True)
        hint = f'the last one in it: --resume {named}' if named is not None and named.exists() else hint
        raise InputError('--resume names a folder, not a checkpoint', f'looked at: {path.absolute()}', hint)
    found = damage(path) if path.exists() else None
    if found is not None:
        whole, _ = newest_whole(_older(cfg, path)[0])
        if whole is not None:
            hint = f'the newest one of the work dir that is whole: --resume {whole}'
        raise InputError(f'the checkpoint of --resume is damaged: {found}', f'looked at: {path.absolute()}', hint)
