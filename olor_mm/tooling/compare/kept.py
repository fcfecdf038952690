"""What the runs kept of the pre-training, measured by tools/forgetting.py on their last checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, say
from ..runs.child import GRACE, Child, command, stop, tool_script
from ..signals import Terminated, terminable
from .cells import Cell

__all__ = ['Kept', 'measure']

DISTANCE = 'distance from theta_0'
_PRETRAINED = 'pre-trained'
_GO_ON = 'to go on, give the same command again: the runs are finished'


@dataclass
class Kept:
    """What was measured besides what stands in the cells.

    Attributes:
        reference: The same of the pre-trained model, by names.
        why: Why nothing was measured; empty where it was.
    """

    reference: dict[str, float] = field(default_factory=dict)
    why: str = ''


def measure(cells: Sequence[Cell], args: argparse.Namespace, root: Path) -> Kept:
    """Measure the last checkpoints of all finished runs, and put what is found into the cells.

    What was measured before is not measured again.

    Args:
        cells: All runs.
        args: The command line.
        root: The folder of the comparison.

    Raises:
        InputError: If another process does so in the same folder.
        KeyboardInterrupt: On Ctrl-C.
        Terminated: On SIGTERM.
    """
    rows = {cell.name: row for cell in cells if (row := _row(cell)) is not None}
    if not rows:
        return Kept(why='no finished run has left a checkpoint')
    out = root / 'kept'
    out.mkdir(parents=True, exist_ok=True)
    arguments = [*_arguments(args), '--out', str(out)]
    for name, row in rows.items():
        arguments += ['--row', name, *row]
    log = out / 'output.log'
    try:
        script = tool_script('forgetting.py')
    except InputError as error:
        return Kept(why=str(error).splitlines()[0])
    say(f'measuring what was kept; log: {log}')
    child = Child(command(arguments, script=script), log, os.environ)
    if _wait(child):
        lines = child.tail().strip().splitlines() or ['it failed']
        told = [line for line in lines if line.startswith('error: ')]
        return Kept(why=f'{(told or lines)[-1]}; log: {log}')
    table = json.loads((out / 'table.json').read_text(encoding='utf-8'))
    found = {row['name']: _numbers(row) for row in table['rows']}
    for cell in cells:
        cell.kept.update(found.get(cell.name, {}))
    reference = {name: value for name, value in found.get(_PRETRAINED, {}).items() if name != DISTANCE}
    return Kept(reference)


def _arguments(args: argparse.Namespace) -> list[str]:
    found = [str(args.config)]
    for option in ('data_root', 'pretrained', 'upstream', 'upstream_data_root', 'upstream_images', 'knn_k'):
        value = getattr(args, option)
        if value is not None:
            found += [f'--{option.replace("_", "-")}', str(value)]
    if args.no_pin_memory:
        found.append('--no-pin-memory')
    return [*found, '--cfg-options', *args.cfg_options] if args.cfg_options else found


def _row(cell: Cell) -> tuple[str, str] | None:
    """The config that a run left in its work dir, and its last checkpoint; None where one is missing."""
    if cell.result is None or cell.config is None:
        return None
    dumped = cell.work_dir / cell.config.name
    try:
        checkpoint = cell.result.checkpoint
    except InputError:
        return None
    return None if checkpoint is None or not dumped.is_file() else (str(dumped), str(checkpoint))


def _wait(child: Child) -> int:
    try:
        with terminable(child.kill, grace=GRACE + 2):
            while child.poll() is None:
                time.sleep(0.1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted while measuring what was kept; {_GO_ON}') from None
    except Terminated:
        raise Terminated(f'terminated while measuring what was kept; {_GO_ON}') from None
    finally:
        stop([child])
    return child.code or 0


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Of a row of the table: the distance, kNN with the first k, and the original head."""
    upstream = row.get('upstream') or {}
    knn = {name: value for name, value in (upstream.get('knn') or {}).items() if name.startswith('top1/')}
    found = {
        DISTANCE: (row.get('discrepancy') or {}).get('overall'),
        'upstream kNN, %': next(iter(knn.values()), None),
        'original head, %': (upstream.get('head') or {}).get('all/top1'),
    }
    return {name: float(value) for name, value in found.items() if value is not None}
