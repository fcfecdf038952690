"""The matrix of versions: its cells, how results are counted and kept, and the page that quotes them."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/matrix.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import matrix

    return matrix


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="good"/>
<testcase classname="tests.a" name="absent"><skipped message="no GPU"/></testcase>
<testcase classname="tests.a" name="bad"><failure message="assert 1 == 2"/></testcase>
<testcase classname="tests.b" name="bad[x]"><error message="in its fixture"/></testcase>
<testcase classname="" name="tests.c"><error message="collection failure"/></testcase>
</testsuite></testsuites>"""


def record(**changes: object) -> dict[str, object]:
    versions = {'python': '3.10.1', 'torch': '2.1.2', 'numpy': '1.26.4', 'mmengine': '0.10.7'}
    counts = {'passed': 5, 'failed': 0, 'skipped': 1, 'failures': [], 'seconds': 3}
    return {'date': '2000-01-01', 'commit': 'abc', 'versions': versions, **counts, **changes}


def test_every_cell_is_told_by_its_name(matrix: ModuleType) -> None:
    assert len({cell.name for cell in matrix.CELLS}) == len(matrix.CELLS)
    for cell in matrix.CELLS:
        digits = ''.join(cell.torch.split('.')[:2])
        name = f'py{cell.python.replace(".", "")}-torch{digits}-numpy{cell.numpy}{"-onedl" if cell.fork else ""}'
        assert cell.name == name
        assert cell.top in matrix.LEVELS
        assert matrix.cell_named(cell.name) is cell


def test_the_cells_span_what_is_promised(matrix: ModuleType) -> None:
    cells = matrix.CELLS
    assert {cell.python for cell in cells} == {'3.10', '3.11', '3.12'}
    assert {'2.1', '2.5', '2.11'} <= {cell.torch.rpartition('.')[0] for cell in cells}
    assert {cell.numpy for cell in cells} == {1, 2}
    assert {cell.fork for cell in cells} == {False, True}


def test_the_cell_that_ci_runs_is_what_the_requirements_pin(matrix: ModuleType) -> None:
    from _matrix.cells import UPSTREAM

    files = [ROOT / 'requirements' / f'{name}.txt' for name in ('torch', 'openmmlab', 'mmcv')]
    pinned = dict(re.findall(r'^([\w-]+)==(\S+)$', '\n'.join(file.read_text() for file in files), re.MULTILINE))
    cell = matrix.CELLS[0]
    assert pinned == {'torch': cell.torch, 'torchvision': cell.torchvision, **UPSTREAM}


def test_tests_are_counted_from_the_report(matrix: ModuleType, tmp_path: Path) -> None:
    from _matrix.tests import counted

    (tmp_path / 'report.xml').write_text(REPORT)
    assert counted(tmp_path / 'report.xml') == {
        'passed': 1,
        'failed': 3,
        'skipped': 1,
        'failures': ['tests.a::bad', 'tests.b::bad[x]', 'tests.c'],
    }
    assert counted(tmp_path / 'none.xml')['passed'] == 0


def test_a_result_takes_the_place_of_the_earlier_one(matrix: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / 'matrix.json'
    first, last = matrix.CELLS[0], matrix.CELLS[-1]
    matrix.save(file, last, 'core', record())
    matrix.save(file, first, 'full', record(failed=2))
    matrix.save(file, last, 'core', record(passed=6))
    assert [(key, found['passed']) for key, found in matrix.load(file).items()] == [
        (f'{first.name} full', 5),
        (f'{last.name} core', 6),
    ]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({}, '5 passed, 1 skipped'),
        ({'failed': 2, 'skipped': 0}, '2 failed, 5 passed'),
        ({'error': 'torch: pip install failed'}, 'not set up: torch: pip install failed'),
        ({'passed': 0, 'skipped': 0}, 'no tests were run'),
    ],
)
def test_what_a_record_says(matrix: ModuleType, changes: dict[str, object], text: str) -> None:
    assert matrix.outcome(record(**changes)) == text


def test_cells_that_were_not_run_say_so(matrix: ModuleType) -> None:
    from _matrix.results import tables

    name = matrix.CELLS[1].name
    rows = tables({f'{name} core': record(failed=1, failures=['tests.a::bad'])}).splitlines()
    assert sum('unknown: not run' in row for row in rows) == len(matrix.CELLS) - 1
    assert any(row.startswith(f'| `{name}` | 3.10.1 | 2.1.2 | 1.26.4 |') and '1 failed' in row for row in rows)
    assert f'- `{name}` at level `core`: `tests.a::bad`' in rows


def test_nothing_of_the_machine_is_published(matrix: ModuleType) -> None:
    text = 'torch: no wheel at https://host/simple/x in /home/me/venvs/cell: look at file:///tmp/a\nmore'
    found = matrix.without_paths(text, Path('/home/me/venvs'))
    assert found == 'torch: no wheel at ... in .../cell: look at ...'


@pytest.mark.parametrize(
    ('found', 'wrong'),
    [({}, None), ({'torch': '2.1.2+cpu'}, None), ({'numpy': '2.0.1'}, 'numpy'), ({'torch': '2.11.2'}, 'torch')],
)
def test_an_interpreter_with_other_versions_is_refused(
    matrix: ModuleType, found: dict[str, str], wrong: str | None
) -> None:
    cell = matrix.cell_named('py310-torch21-numpy1')
    versions = {**record()['versions'], **found}
    if wrong is None:
        matrix.check_versions(cell, versions)
    else:
        with pytest.raises(matrix.SetupError, match=f'stands for {wrong} .*has {found[wrong]}'):
            matrix.check_versions(cell, versions)


def test_the_page_is_what_the_results_say(matrix: ModuleType) -> None:
    page = matrix.PAGE.read_text(encoding='utf-8')
    assert page == matrix.page_with(page, matrix.load(matrix.RESULTS)), 'python tools/matrix.py --markdown'


def test_the_results_are_of_cells_and_levels_that_exist(matrix: ModuleType) -> None:
    results = json.loads(matrix.RESULTS.read_text(encoding='utf-8'))
    assert results.keys() <= {f'{cell.name} {level}' for cell in matrix.CELLS for level in matrix.LEVELS}
