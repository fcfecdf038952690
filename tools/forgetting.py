"""What fine-tuned models still know: ``python tools/forgetting.py CONFIG CHECKPOINT...``; ``--help`` lists options."""

import sys
from pathlib import Path

if (Path(__file__).resolve().parents[1] / 'olor_mm' / '__init__.py').is_file():
    # A checkout's tools run its own package, whatever else is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from olor_mm.tooling import run_command
from olor_mm.tooling.forgetting import forgetting

if __name__ == '__main__':
    sys.exit(run_command(forgetting))
