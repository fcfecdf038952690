"""See that a downloaded data set is whole: ``python tools/prepare_data.py NAME --root DIR``; see ``--help``."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec('olor_mm') is None:
    # A checkout that was not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from olor_mm.tooling import run_command
from olor_mm.tooling.prepare import prepare

if __name__ == '__main__':
    sys.exit(run_command(prepare))
