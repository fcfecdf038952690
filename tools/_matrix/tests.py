"""Runs the tests of a level with a cell's interpreter and counts them."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from _setup.environment import UNWANTED
from _setup.steps import ROOT

from .cells import LEVELS

__all__ = ['counted', 'run_tests']

# At most this many names of failed tests are kept: more are one and the same trouble.
_SHOWN = 12


def run_tests(python: str, level: str, jobs: int, log: Path) -> dict[str, Any]:
    """Runs pytest on the paths of ``level``.

    Args:
        python: The cell's interpreter.
        level: A key of ``LEVELS``.
        jobs: Processes; 0 is one, without pytest-xdist.
        log: File for pytest's output.

    Returns:
        ``passed``, ``failed`` and ``skipped`` (counts), ``failures`` (names) and ``seconds``. Errors in the setting up
        of a test and in the collection count as failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        command = [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}']
        command += ['-n', str(jobs), '--dist', 'loadfile'] if jobs else []
        env = {key: value for key, value in os.environ.items() if key not in UNWANTED}
        env['PATH'] = f'{Path(python).parent}{os.pathsep}{env.get("PATH", os.defpath)}'
        env['PYTHONPATH'] = str(ROOT)
        start = time.monotonic()
        with log.open('w', encoding='utf-8') as sink:
            status = subprocess.run(
                [*command, *LEVELS[level].paths], cwd=ROOT, env=env, stdout=sink, stderr=subprocess.STDOUT, check=False
            ).returncode
        seconds = round(time.monotonic() - start)
        found = counted(report)
    if status and not found['failed']:
        # Broken off: by a signal, an internal error, a crashed worker.
        found.update(failed=found['failed'] + 1, failures=[f'pytest ended with exit status {status}'])
    return {**found, 'seconds': seconds}


def counted(report: Path) -> dict[str, Any]:
    """The counts of a report in JUnit's format; zeros where there is none."""
    cases = list(ET.parse(report).iter('testcase')) if report.exists() else []
    skipped = [case for case in cases if case.find('skipped') is not None]
    failed = [case for case in cases if case.find('failure') is not None or case.find('error') is not None]
    names = sorted({f'{case.get("classname", "")}::{case.get("name", "")}'.strip(':') for case in failed})
    return {
        'passed': len(cases) - len(skipped) - len(failed),
        'failed': len(failed),
        'skipped': len(skipped),
        'failures': names[:_SHOWN] + ([f'and {len(names) - _SHOWN} more'] if len(names) > _SHOWN else []),
    }
