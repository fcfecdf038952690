"""Test a model of mmdet, mmseg or mmpretrain: ``python tools/test.py CONFIG CHECKPOINT``; ``--help`` lists options."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec('olor_mm') is None:
    # A checkout that was not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from olor_mm.tooling import run_command, test

if __name__ == '__main__':
    sys.exit(run_command(test))
