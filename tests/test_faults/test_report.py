"""docs/faults.md quotes the report of benchmarks/faults.py, and that report is of the scenarios as they stand."""

import json

from tests.test_faults._scenarios import RESULTS, scenarios
from tests.test_tools._small import REPO


def test_the_page_quotes_the_report():
    report = (RESULTS / 'faults.md').read_text().strip()
    assert report in (REPO / 'docs' / 'faults.md').read_text()


def test_nothing_in_the_report_went_wrong():
    result = json.loads((RESULTS / 'faults.json').read_text())
    assert len(result['rows']) > 40
    assert not any(row['wrong'] for row in result['rows'])
    assert result['mounted']
    text = (RESULTS / 'faults.md').read_text()
    assert all(row['fault'] in text for row in result['rows'])
    for row in result['rows']:
        assert row['then'].startswith(('identical continuation', 'error', 'goes on'))
        assert row['kept'] in ('all complete ones unchanged', 'all whole', '-')
    # 20 of each random kind, all of them resumed to the same weights.
    assert text.count('identical continuation (20 of 20)') == 2


def test_every_scenario_is_in_it():
    faults = {row['fault'] for row in json.loads((RESULTS / 'faults.json').read_text())['rows']}
    assert {case.name for case in [*scenarios().INTERRUPTED, *scenarios().HARMED]} <= faults
