"""What the user can mend is said in a few lines; everything else keeps its traceback."""

from __future__ import annotations

import dis
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from urllib.error import URLError

from .signals import EXIT_TERMINATED, Terminated

__all__ = ['InputError', 'explain', 'run_command', 'say', 'speaks']

EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130
#: The remedy where a package of requirements/analysis.txt is missing, in a checkout as with an installed wheel.
INSTALL_ANALYSIS = 'install what the analysis tools need: pip install matplotlib optuna plotly scikit-learn'
# Seconds for rank 0 to say the same, and for the launcher to end this process.
TURN = 2.0
# What olor_mm raises where a setting, a file or a package is not as it has to be.
_REFUSALS = (ValueError, RuntimeError, FileNotFoundError, ImportError)
# Of olor_mm.datasets, which is not imported for them: it needs mmpretrain.
_DATA_ERRORS = ('DatasetLayoutError', 'UnreadableImageError')
_RANKS = ('RANK', 'SLURM_PROCID', 'LOCAL_RANK', 'SLURM_LOCALID')
_PACKAGE = Path(__file__).resolve().parents[1]


class InputError(Exception):
    """A mistake in what the user gave: it is shown without a traceback and ends the command with exit code 2.

    Args:
        summary: What is wrong, in one line.
        details: Further lines: what was looked for, what is expected, which option sets it.
    """

    def __init__(self, summary: str, *details: str) -> None:
        super().__init__('\n  '.join([summary, *details]))


def speaks() -> bool:
    """Whether this process prints for its machine: rank 0 of it, so that one mistake is reported once.

    What another rank alone has met, such as a NaN, that rank says itself, a little later (:func:`run_command`).

    Every machine speaks for itself, because a file can be missing on the second one alone.
    """
    return int(os.environ.get('LOCAL_RANK') or os.environ.get('SLURM_LOCALID') or 0) == 0


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command line tool and turn the user's mistakes into an exit code and a short text on stderr.

    Args:
        command: Takes the arguments that follow the tool's name.
        argv: Those arguments. Defaults to None: the arguments of this process.

    Returns:
        0; 2 after a mistake in the input; 130 after Ctrl-C; 143 after SIGTERM. Any other exception is passed on.
    """
    try:
        command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or 'interrupted')
        return EXIT_INTERRUPTED
    except Terminated as end:
        say(str(end) or 'terminated')
        return EXIT_TERMINATED
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        _say_error(explained)
        return EXIT_INPUT_ERROR
    return 0


def _say_error(explained: InputError) -> None:
    if not speaks():
        # The same mistake of all: rank 0 has said it by then, and the launcher has ended this process.
        sys.stdout.flush()
        time.sleep(TURN)
        rank = next((os.environ[name] for name in _RANKS if os.environ.get(name)), '?')
        print(f'error on rank {rank}: {explained}', file=sys.stderr, flush=True)
        return
    say(f'error: {explained}')


def explain(error: BaseException) -> InputError | None:
    """The user's mistake behind an exception, or None where it may as well be a bug."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, _REFUSALS) and _raised_by_olor_mm(error.__traceback__):
        return InputError(str(error))
    if type(error).__name__ in _DATA_ERRORS and isinstance(error, ValueError):
        # From a worker of a data loader: torch puts the worker's whole traceback before the text.
        return InputError(re.split(rf'(?:^|\n)[\w.]*(?:{"|".join(_DATA_ERRORS)}): ', str(error))[-1].strip())
    if isinstance(error, URLError):
        return InputError(
            f'a download failed: {error}',
            'without a network, give weights as a file: --pretrained FILE',
            'and a data set that would be downloaded as a folder: --data-root DIR (tools/prepare_data.py checks it)',
        )
    return None


def _raised_by_olor_mm(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame is a ``raise`` statement of this package: its way to refuse a setting."""
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    operation = dis.opname[code.co_code[traceback.tb_lasti]]
    return operation == 'RAISE_VARARGS' and _PACKAGE in Path(code.co_filename).resolve().parents


def say(text: str) -> None:
    """Print to stderr, once for each machine."""
    if speaks():
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
