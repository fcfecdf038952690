"""One run, and what its work dir says of it: with which settings it was started, and whether it is finished."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

import olor_mm

from ...engine.replacing import PART, put_in_place
from ..errors import InputError
from ..names import check_names
from ..options import train_parser
from ..settings import load_config

__all__ = ['Record', 'Run', 'check_new', 'read_record', 'set_aside', 'write_record']

#: In the work dir of a run: how it was started, and how it ended.
FILE = 'run.json'
#: What the process of a run prints, in its work dir.
LOG = 'output.log'
#: What is no setting of a run: where it lies, and how it was started.
_NO_SETTINGS = ('work_dir', 'launcher', 'resume', 'local_rank', 'config', 'cfg_options')
_ADDRESS = re.compile(r' at 0x[0-9a-f]+')


@dataclass(frozen=True)
class Run:
    """One ordinary run of tools/train.py.

    Args:
        name: What it is called in messages and tables.
        argv: The arguments of tools/train.py: the config and its options, without ``--work-dir`` and ``--resume``,
            which are set here.
        work_dir: Its own folder for logs and checkpoints.
    """

    name: str
    argv: Sequence[str]
    work_dir: Path

    @cached_property
    def config(self) -> Config:
        """The config with ``--cfg-options``, as tools/train.py reads it.

        Raises:
            InputError: If the config or an option is the user's to mend.
        """
        args = self._args
        if args.work_dir is not None or args.resume is not None:
            raise InputError(
                f'run {self.name}: --work-dir and --resume are not options of one run among several',
                f'its folder is {self.work_dir}, and it goes on by itself',
            )
        cfg = load_config(args)
        check_names(cfg)
        return cfg

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what the run does: names with dots to values as JSON has them."""
        options = {f'--{key.replace("_", "-")}': value for key, value in vars(self._args).items()}
        found = {key: value for key, value in options.items() if key[2:].replace('-', '_') not in _NO_SETTINGS}
        content = {key: value for key, value in self.config.to_dict().items() if key not in _NO_SETTINGS}
        found.update(_flat(content, ''))
        plain: dict[str, Any] = json.loads(json.dumps(found, default=_text))
        return plain

    @cached_property
    def _args(self) -> Any:
        return train_parser().parse_args([str(part) for part in self.argv])


@dataclass
class Record:
    """What ``run.json`` says.

    Attributes:
        name: Of the run.
        state: 'started', 'finished', 'failed', or 'stopped' on purpose, as a search does with a poor trial.
        settings: Those of :attr:`Run.settings`.
        sessions: One for each process: when it began, how many seconds it took, with which exit status it ended.
        why: Why it was stopped on purpose.
        versions: Of what it was started with.
    """

    name: str
    state: str
    settings: dict[str, Any]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    why: str = ''
    versions: dict[str, str] = field(
        default_factory=lambda: {
            'olor_mm': olor_mm.__version__,
            'torch': torch.__version__,
            'python': platform.python_version(),
        }
    )


def read_record(work_dir: Path) -> Record | None:
    """What a work dir says of its run; None where it says nothing.

    Raises:
        InputError: If the file is damaged.
    """
    file = work_dir / FILE
    if not file.is_file():
        return None
    try:
        return Record(**json.loads(file.read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f'{file} cannot be read: {error}', f'it says what the run in {work_dir} is; remove that folder, or move it'
        ) from error


def write_record(work_dir: Path, record: Record) -> None:
    """Write ``run.json``; it is whole at every moment."""
    part = work_dir / f'.{FILE}.{os.getpid()}{PART}'
    part.write_text(json.dumps(record.__dict__, indent=1) + '\n', encoding='utf-8')
    put_in_place(part, work_dir / FILE)


def check_new(run: Run) -> Record | None:
    """See that a run may use its work dir.

    A run that failed, or was stopped, before its first checkpoint has left nothing to go on from: it may be given other
    settings, such as the right folder of the data.

    Returns:
        What an earlier process of the same run left there; None where it begins anew.

    Raises:
        InputError: If the folder holds another run, or the same one with other settings.
    """
    settings = run.settings
    found = read_record(run.work_dir)
    if found is None:
        if run.work_dir.is_dir() and any(path.name != LOG for path in run.work_dir.iterdir()):
            raise InputError(
                f'run {run.name}: {run.work_dir} holds something else already', 'take another --work-dir, or remove it'
            )
        return None
    changes = [*_changes(found.settings, settings)]
    if changes and found.state in ('started', 'failed') and not _has_checkpoint(run.work_dir):
        return None
    if changes:
        more = [f'and {len(changes) - 5} more'] if len(changes) > 5 else []
        raise InputError(
            f'run {run.name}: {run.work_dir} holds a run with other settings',
            *changes[:5],
            *more,
            'take these settings back, take another --work-dir, or remove that folder: it is then run anew',
        )
    return found


def set_aside(work_dir: Path) -> None:
    """Take what an earlier run with other settings has logged out of the way of :func:`read_run`; it is kept."""
    for logged in work_dir.glob('*/vis_data'):
        logged.rename(logged.with_name('vis_data_of_other_settings'))


def _has_checkpoint(work_dir: Path) -> bool:
    return (work_dir / 'last_checkpoint').exists() or any(work_dir.glob('*.pth'))


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*there, *here}):
        if (key in there) != (key in here) or there.get(key) != here.get(key):
            then, now = (_short(found[key]) if key in found else 'not set' for found in (there, here))
            yield f'{key}: there {then}, here {now}'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f'{text[:97]}...'


def _flat(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Values with their names; a list of plain values is one value."""
    items: Any = None
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in node):
        items = enumerate(node)
    if not items:
        yield name, node
        return
    for key, value in items:
        yield from _flat(value, f'{name}.{key}' if name else str(key))


def _text(value: Any) -> str:
    """A value that JSON does not have, without the address at which it lies in this process."""
    return _ADDRESS.sub('', repr(value))
