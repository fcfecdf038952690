"""The scenarios of benchmarks/_faults, which is a folder of scripts: loaded by path, without anything heavy."""

import importlib.util
import sys
from types import ModuleType

from tests.test_tools._small import REPO

__all__ = ['RESULTS', 'scenarios']

RESULTS = REPO / 'benchmarks' / 'results'


def scenarios() -> ModuleType:
    """The module ``scenarios`` alone."""
    name = 'olor_mm_fault_scenarios'
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPO / 'benchmarks' / '_faults' / 'scenarios.py')
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
