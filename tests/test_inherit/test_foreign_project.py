"""A project that has never heard of olor_mm gets OLOR by one option of its own command line."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ._docs import block
from ._saved import anchors, read, strengths
from .conftest import PROJECT, Run

#: Of a block of the project's backbone.
SHAPES = {'weight': (8, 8, 3, 3), 'bias': (8,)}


@pytest.mark.slow
def test_one_option_turns_it_on(run_installed: Run, site: Path, tmp_path: Path) -> None:
    shutil.copy(PROJECT / 'fruit.py', tmp_path)
    torch.manual_seed(1)
    trunk = {
        'stem.weight': torch.randn(8, 3, 3, 3),
        'stem.bias': torch.randn(8),
        **{f'blocks.{i}.{part}': torch.randn(shape) for i in range(2) for part, shape in SHAPES.items()},
    }
    torch.save(trunk, tmp_path / 'trunk.pth')
    command = shlex.split(block('one-option'))
    assert command[0] == 'python'
    log = run_installed(sys.executable, *command[1:])

    assert 'Weight rollback (OLOR) of 4 tensors' in log
    assert 'theta_0: 4 of 4 tensors from trunk.pth' in log
    saved = read(tmp_path / 'work_dirs' / 'fruit' / 'epoch_1.pth')
    theta_0 = anchors(saved)
    # Stem and first block; the last block has level 0, the head is not pre-trained.
    assert theta_0.keys() == {f'backbone.{part}' for part in trunk if not part.startswith('blocks.1')}
    assert all(torch.equal(value, trunk[name.removeprefix('backbone.')]) for name, value in theta_0.items())
    # Half the learning rate that the schedule starts from, so half of the levels 0.5 and 0.25.
    found = strengths(saved, factor=0.5)
    assert found == pytest.approx({name: 0.25 if 'stem' in name else 0.125 for name in found}, rel=0.01)


def test_the_project_knows_nothing_of_it() -> None:
    files = [path for path in PROJECT.rglob('*') if path.suffix in ('.py', '.toml')]
    lines = [line for path in files for line in path.read_text().splitlines() if not line.startswith(('#', '"""'))]
    assert len(files) > 5
    assert [line for line in lines if 'olor_mm' in line.lower()] == []
