"""What the command line tools are made of: options, checks of the input, short errors.

The tools themselves, ``tools/train.py`` and ``tools/test.py``, only call :func:`train` and :func:`test`.
"""

from .errors import InputError, run_command
from .launch import test, train
from .merge import merge_lora

__all__ = ['InputError', 'merge_lora', 'run_command', 'test', 'train']
