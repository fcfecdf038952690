"""The scenarios of benchmarks/faults.py that matter most; the random ones are done less often than there."""

import importlib
import sys

import pytest

from tests.test_faults._scenarios import scenarios
from tests.test_tools._small import REPO

pytestmark = pytest.mark.slow

TIMES = 2


@pytest.fixture(scope='module')
def faults():
    """benchmarks/_faults and benchmarks/faults.py, which are scripts and in no package."""
    sys.path.insert(0, str(REPO / 'benchmarks'))
    parts = {name: importlib.import_module(f'_faults.{name}') for name in ('commands', 'harness', 'scenarios')}
    parts['anchors'] = importlib.import_module('faults').anchors
    yield parts
    sys.path.remove(str(REPO / 'benchmarks'))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return tmp_path_factory.mktemp('with spaces') / 'in its name'


@pytest.fixture(scope='module')
def goal(faults, base):
    """The last checkpoint of the run that is never broken."""
    return faults['harness'].reference(base)


@pytest.mark.parametrize('name', [case.name for case in scenarios().INTERRUPTED if case.fast])
def test_interrupted(name, faults, base, goal):
    (case,) = [case for case in faults['scenarios'].INTERRUPTED if case.name == name]
    row = faults['harness'].interrupted(case, base, goal, times=min(case.times, TIMES), seed=1)
    assert not row.wrong, '\n'.join(row.wrong)
    assert row.then.startswith('identical continuation')


@pytest.mark.parametrize('name', [case.name for case in scenarios().HARMED if case.fast])
def test_harmed(name, faults, base, goal):
    (case,) = [case for case in faults['scenarios'].HARMED if case.name == name]
    row = faults['harness'].harmed(case, base, goal)
    assert not row.wrong, '\n'.join(row.wrong)


def test_other_numbers_of_processes(faults, base):
    row = faults['harness'].world(1, 2, base, faults['anchors'])
    assert not row.wrong, '\n'.join(row.wrong)


@pytest.mark.parametrize('name', ['terminated_all', 'killed_rank'])
def test_commands(name, faults, base):
    row = faults['commands'].COMMANDS[name](base)
    assert not row.wrong, '\n'.join(row.wrong)
