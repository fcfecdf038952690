"""The tools and the durable checkpoint hook with FSDP, as docs/scaling.md has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('torch.distributed.fsdp')

from tests.test_engine._ranks import on_ranks
from tests.test_engine._sharded import probe, saved, sharded_config
from tests.test_tools._small import TOOLS, run

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / 'docs'


def _snippet() -> dict[str, Any]:
    """What the page says to put into a config."""
    section = (DOCS / 'scaling.md').read_text().split('\n## FSDP\n')[1].split('\n## ')[0]
    code = re.search(r'```python\n(.*?)```', section, re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)
    return {key: value for key, value in names.items() if not key.startswith('_')}


@pytest.mark.parametrize('state', ['full', 'local'])
def test_training_and_resuming(state: str, tmp_path: Path) -> None:
    (reason,) = on_ranks(1, probe)
    if reason:
        pytest.skip(reason)
    config = sharded_config(str(tmp_path / 'my work'), 2)
    names = _snippet()
    assert names.keys() == {'runner_type', 'strategy', 'default_hooks'}
    config.runner_type = names['runner_type']
    config.strategy = {**names['strategy'], 'state_dict_cfg': state}
    # The page's policy, with a bound that this small model reaches.
    config.strategy.model_wrapper.auto_wrap_policy.min_num_params = 50
    config.default_hooks.checkpoint.update(names['default_hooks']['checkpoint'])
    config.custom_imports = {'imports': ['tests.test_engine._sharded'], 'allow_failed_imports': False}
    config.pop('launcher')
    file = tmp_path / 'my config.py'
    config.dump(file)
    done = run(TOOLS / 'dist_train.sh', file, '2', cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    folder = tmp_path / 'my work'
    last = [folder / 'epoch_3.pth'] if state == 'full' else [folder / 'epoch_3.pth' / f'rank{i}.pth' for i in range(2)]
    whole = [saved(part)[0] for part in last]
    # As after an interruption: the third epoch again.
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    done = run(TOOLS / 'dist_train.sh', file, '2', '--resume', cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert 'Resume checkpoint from' in done.stdout + done.stderr
    for part, before in zip(last, whole, strict=True):
        after = saved(part)[0]
        assert after.keys() == before.keys()
        assert any('rollback_anchor' in name for name in after)
        for name, value in before.items():
            assert torch.equal(value, after[name]), name
