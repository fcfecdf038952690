"""Runs one cell of the matrix of versions: ``python3 tools/matrix.py py310-torch21-numpy1``.

It makes the cell's own virtual environment in ``.venvs/CELL``, installs the versions that the cell stands for,
compiles mmcv where the level asks for it, runs the tests and writes what came out to
``benchmarks/results/matrix.json``.
``--markdown`` makes the tables of ``docs/compatibility.md`` from that file, ``--list`` shows the cells. What is there
already is used again, so an interrupted cell goes on where it was.

Levels: ``core`` is torch, MMEngine and timm, without mmcv and the toolboxes; ``full`` adds mmcv, compiled with its
operators, mmdet, mmsegmentation and mmpretrain, and the tests that use them; ``all`` is every test, as CI runs them.
It needs the standard library only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _matrix.cells import CELLS, LEVELS, Cell, cell_named
from _matrix.environment import environment_of, set_up, versions_in
from _matrix.results import load, outcome, page_with, save, without_paths
from _matrix.tests import run_tests
from _setup.process import SetupError
from _setup.steps import ROOT

RESULTS = ROOT / 'benchmarks' / 'results' / 'matrix.json'
PAGE = ROOT / 'docs' / 'compatibility.md'


def commit() -> str:
    """The checkout's commit, with a + where files differ from it."""
    ask = ['git', '-C', str(ROOT)]
    head = subprocess.run([*ask, 'rev-parse', '--short=9', 'HEAD'], capture_output=True, text=True, check=False)
    changed = subprocess.run([*ask, 'status', '--porcelain'], capture_output=True, text=True, check=False)
    theirs = [line for line in changed.stdout.splitlines() if line[3:] != str(RESULTS.relative_to(ROOT))]
    return head.stdout.strip() + ('+' if theirs else '') if head.returncode == 0 else 'unknown'


def check_versions(cell: Cell, found: dict[str, str]) -> None:
    """Raises SetupError where what is installed is not what the cell stands for."""
    wanted = {'python': cell.python, 'torch': cell.torch, 'numpy': str(cell.numpy), 'mmengine': cell.engine[1]}
    for name, version in wanted.items():
        have = found.get(name, 'none').split('+')[0]
        if have != version and not have.startswith(f'{version}.'):
            raise SetupError(f'{cell.name} stands for {name} {version}; this interpreter has {have}')


def run_cell(cell: Cell, level: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sets the cell up, runs its tests and returns the record.

    Raises:
        SetupError: If it cannot be set up.
    """
    folder = arguments.venvs.resolve()
    environment = environment_of(cell, folder)
    python = arguments.existing or str(environment.python)
    if not arguments.existing:
        set_up(cell, level, environment, arguments.python)
    versions = versions_in(python)
    check_versions(cell, versions)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f'{cell.name}-{level}.log'
    print(f'      {cell.name}: tests, output in {log}', flush=True)
    return {'versions': versions, **run_tests(python, level, arguments.jobs, log)}


def main() -> int:
    """Runs what the command line asks for; the exit status is 0 only if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cell', nargs='?', metavar='CELL', choices=[cell.name for cell in CELLS])
    parser.add_argument('--level', choices=sorted(LEVELS), help='Defaults to the highest that makes sense for the cell')
    parser.add_argument('--python', help='the interpreter to make the environment from; default python3.X')
    parser.add_argument('--existing', metavar='PYTHON', help='run with this interpreter and install nothing')
    parser.add_argument('--venvs', type=Path, default=ROOT / '.venvs', help='folder of the environments')
    parser.add_argument('--jobs', type=int, default=2, help='test processes, 0 for one without pytest-xdist')
    parser.add_argument('--set-up-only', action='store_true', help='make the environment, run no tests')
    parser.add_argument('--list', action='store_true', help='show the cells and what is known of them')
    parser.add_argument('--markdown', action='store_true', help='write the tables of docs/compatibility.md')
    arguments = parser.parse_args()
    if arguments.list:
        return show()
    if arguments.markdown:
        PAGE.write_text(page_with(PAGE.read_text(encoding='utf-8'), load(RESULTS)), encoding='utf-8')
        return 0
    if arguments.cell is None:
        parser.error('name a CELL, or --list')
    return run(cell_named(arguments.cell), arguments)


def show() -> int:
    """Prints every cell and what is known of it."""
    results = load(RESULTS)
    for cell in CELLS:
        known = [
            f'{level}: {outcome(results[f"{cell.name} {level}"])} ({results[f"{cell.name} {level}"]["date"]})'
            for level in LEVELS
            if f'{cell.name} {level}' in results
        ]
        print(f'{cell.name:30}{"; ".join(known) or f"unknown: not run (level {cell.top})"}')
    return 0


def run(cell: Cell, arguments: argparse.Namespace) -> int:
    """Runs one cell, writes its record and says it in one line."""
    level = arguments.level or cell.top
    stamp = {'date': time.strftime('%Y-%m-%d'), 'commit': commit()}
    try:
        if arguments.set_up_only:
            set_up(cell, level, environment_of(cell, arguments.venvs.resolve()), arguments.python)
            return 0
        record = {**stamp, **run_cell(cell, level, arguments)}
    except SetupError as error:
        print(f'{cell.name}: {error}', file=sys.stderr)
        record = {**stamp, 'error': without_paths(str(error), arguments.venvs.resolve(), ROOT, Path.home())}
    save(RESULTS, cell, level, record)
    print(f'{cell.name} {level}: {outcome(record)}')
    for name in record.get('failures', ()):
        print(f'  failed: {name}')
    return int('error' in record or bool(record['failed']) or not record['passed'])


if __name__ == '__main__':
    sys.exit(main())
