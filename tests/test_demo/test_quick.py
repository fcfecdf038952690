"""``tools/demo/run.py --quick`` from end to end, as ``make demo`` runs it but short."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / 'tools' / 'demo' / 'run.py'

for _package in ('mmcv', 'mmdet', 'mmpretrain'):
    pytest.importorskip(_package, reason=f'the demo trains a Mask R-CNN with a ConvNeXt: it needs {_package}')


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-u', str(RUN), '--quick', '--out', str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        start_new_session=True,
    )


def finish(out: Path) -> str:
    process = start(out)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    return shown


def interrupt_while_tuning(out: Path) -> None:
    """Presses Ctrl-C after the first validation of plain fine-tuning."""
    process = start(out)
    shown = []
    for line in process.stdout or ():
        shown.append(line)
        if 'box AP on A' in line and any('plain fine-tuning' in earlier for earlier in shown):
            os.killpg(process.pid, signal.SIGINT)
            break
    rest, _ = process.communicate()
    assert process.returncode == 130, ''.join(shown) + rest
    assert 'the same command goes on' in rest


def check_files(out: Path) -> None:
    found = json.loads((out / 'results.json').read_text())
    assert found['rows'].keys() == {'pretrained', 'plain', 'olor'}
    for name, row in found['rows'].items():
        expected = {'mask_A', 'mask_B', 'box_A', 'box_B', 'seconds'}
        assert set(row) == expected | (set() if name == 'pretrained' else {'distance', 'distance_backbone'})
        assert all(math.isfinite(value) for value in row.values())
    assert found['rows']['olor']['distance'] > 0
    iterations = {name: [point['iteration'] for point in points] for name, points in found['curves'].items()}
    assert iterations['olor'] == [0, 4, 8]
    # Ctrl-C in the middle of a validation loses that one: MMEngine goes on after it.
    assert iterations['plain'] in ([0, 4, 8], [0, 8])
    assert (out / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert '| then OLOR fine-tuning on B  |' in (out / 'results.md').read_text()


@pytest.mark.slow
def test_quick_demo_goes_on_after_ctrl_c_reports_everything_and_reuses_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / 'demo'
    interrupt_while_tuning(out)

    shown = finish(out)
    assert 'pre-training on A: done before, reused' in shown
    assert 'going on from' in (out / 'plain' / 'output.txt').read_text()
    assert 'Weight rollback (OLOR) of' in shown
    check_files(out)

    started = time.monotonic()
    again = finish(out)
    assert time.monotonic() - started < 60
    assert again.count('reused') == 7
    assert [line for line in again.splitlines() if line.startswith('|')] == [
        line for line in shown.splitlines() if line.startswith('|')
    ]
