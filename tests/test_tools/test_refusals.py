"""tools/train.py on hostile and mistaken input: a few lines, exit code 2, and nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from olor_mm.tooling.errors import InputError
from olor_mm.tooling.launch import _check_rollback
from tests._attacks import ATTACKS
from tests.test_engine._toy import toy_config
from tests.test_tools._small import tool

OURS = 'olor_mm.OLOROptimWrapperConstructor'


def _config(folder: Path, **changes: Any) -> Path:
    """A toy run as a file, with a space in its name."""
    file = folder / 'a config.py'
    imports = {'imports': ['tests.test_engine._toy', 'olor_mm'], 'allow_failed_imports': False}
    config = toy_config(folder / 'work dir', **{'rollback': {'max_level': 0.1}, 'custom_imports': imports, **changes})
    file.write_text(config.pretty_text)
    return file


@pytest.mark.parametrize(
    ('attack', 'changes', 'arguments'),
    [
        pytest.param('os.system', {}, ('--cfg-options', 'load_from=FILE'), marks=pytest.mark.slow),
        ('theta_0', {}, ('--resume', 'FILE')),
        pytest.param('legacy', {'rollback': {'max_level': 0.1, 'anchor': 'FILE'}}, (), marks=pytest.mark.slow),
    ],
)
def test_a_hostile_checkpoint_ends_the_tool_with_a_text(
    attack: str, changes: dict[str, Any], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    file, marker = tmp_path / 'a file.pth', tmp_path / 'ran'
    ATTACKS[attack](file, marker)
    if 'rollback' in changes:
        changes = {'rollback': {**changes['rollback'], 'anchor': str(file)}}
    given = [text.replace('FILE', str(file)) for text in arguments]
    done = tool('train.py', _config(tmp_path, **changes), *given, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert 'a file.pth was not loaded, and no code of it was run' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not marker.exists()


@pytest.mark.slow
def test_a_mistake_ends_the_tool_with_a_text(tmp_path: Path) -> None:
    done = tool('train.py', _config(tmp_path), '--cfg-options', 'optim_wrapper.rollback.roots=bakbone', cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: optim_wrapper.rollback.roots: there is no 'bakbone' with parameters")
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('wrapper', 'said'),
    [
        (
            {'constructor': 'olor_mm.OLOROptimWraperConstructor'},
            r'does not exist\n  set .*=olor_mm\.OLOROptimWrapperCon',
        ),
        ({'rollback': {'max_level': 0.1}}, r"rollback=\{'max_level': 0\.1\} is set, but nothing reads it"),
        ({'rollback': 0.1}, r'rollback=0\.1 is set, but nothing reads it'),
        ({'rollback': None}, r'rollback=None is set, but nothing reads it'),
        (
            {'constructor': OURS, 'rollback': {'max_level': 0.1, 'anchor': 'gone.pth'}},
            r"rollback\.anchor is missing[^$]*'init_cfg' or 'current'",
        ),
    ],
)
def test_the_rollback_of_a_config_is_looked_at_first(wrapper: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        _check_rollback(Config({'optim_wrapper': wrapper}))
