"""Every way by which a run reads a checkpoint: a file that would run code runs none, and the run ends with a text."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from olor_mm.engine import BrokenCheckpointError, UnsafeCheckpointError
from olor_mm.rollback import anchors_from_file
from olor_mm.tooling.errors import InputError, explain
from olor_mm.tooling.weights import shapes_in_file
from tests._attacks import ATTACKS

from ._toy import ToyModel, make_runner, toy_config

REPO = Path(__file__).resolve().parents[2]
ROLLBACK = {'max_level': 0.1}
SOME = ['os.system', 'theta_0', 'statistics of a history', 'legacy']

#: Way to a config that reads the file: name -> (file, work_dir) -> config.
WAYS = {
    'load_from': lambda file, where: toy_config(where, rollback=ROLLBACK, load_from=file),
    'resume': lambda file, where: toy_config(where, rollback=ROLLBACK, load_from=file, resume=True),
    'init_cfg of a part': lambda file, where: toy_config(
        where,
        rollback=ROLLBACK,
        model={'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': file, 'prefix': 'backbone.'}}},
    ),
    'init_cfg of the model': lambda file, where: toy_config(
        where, rollback=ROLLBACK, model={'init_cfg': {'type': 'Pretrained', 'checkpoint': file}}
    ),
    'anchor': lambda file, where: toy_config(where, rollback={**ROLLBACK, 'anchor': file}),
    'another name of a ViT': lambda file, where: toy_config(
        where,
        rollback=ROLLBACK,
        model={'init_cfg': {'type': 'Pretrained', 'checkpoint': f'vit2mmpretrain:{file}'}},
    ),
}


def write(name, folder):
    file, marker = folder / 'a file.pth', folder / 'ran'
    ATTACKS[name](file, marker)
    return str(file), marker


@pytest.mark.parametrize('attack', SOME)
@pytest.mark.parametrize('way', WAYS)
def test_no_way_into_a_run_runs_anything(way, attack, tmp_path):
    file, marker = write(attack, tmp_path)
    runner = make_runner(WAYS[way](file, tmp_path / 'work'))
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises((UnsafeCheckpointError, BrokenCheckpointError), match=r'a file\.pth') as error:
        runner.train()
    assert not marker.exists()
    # The tools show it without a traceback.
    assert str(explain(error.value)) == str(error.value)
    if way in ('load_from', 'resume'):
        assert all(torch.equal(before[k], v) for k, v in runner.model.state_dict().items())


@pytest.mark.parametrize('attack', SOME)
def test_the_latest_checkpoint_of_a_work_dir_is_not_trusted_either(attack, tmp_path):
    _, marker = write(attack, tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'a file.pth'))
    with pytest.raises((UnsafeCheckpointError, BrokenCheckpointError), match=r'a file\.pth'):
        make_runner(toy_config(tmp_path, rollback=ROLLBACK, resume=True)).train()
    assert not marker.exists()


@pytest.mark.parametrize('attack', SOME)
def test_the_option_pretrained_of_the_tools_runs_nothing(attack, tmp_path):
    file, marker = write(attack, tmp_path)
    with pytest.raises(InputError, match=r'a file\.pth cannot be read as a checkpoint') as error:
        shapes_in_file(file)
    assert 'no code of it was run' in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    'value',
    [ToyModel, [torch.ones(2)], {'state_dict': 3}, {'state_dict': {'a': 'text'}}, {0: torch.ones(2), None: 1}, 3],
)
def test_an_anchor_file_without_weights_is_named(value, tmp_path):
    file = tmp_path / 'x.pth'
    torch.save(value() if value is ToyModel else value, file)
    runner = make_runner(toy_config(tmp_path / 'work', rollback={**ROLLBACK, 'anchor': str(file)}))
    with pytest.raises((ValueError, UnsafeCheckpointError), match=r'x\.pth'):
        runner.train()


def test_names_that_are_no_text_are_no_names(tmp_path):
    file, model = tmp_path / 'x.pth', torch.nn.Linear(2, 2)
    torch.save({0: torch.ones(2), ('a',): torch.ones(2), 'bias': torch.ones(2)}, file)
    assert anchors_from_file(file, model.named_parameters()).matched == ['bias']
    assert shapes_in_file(str(file)) == {'bias': (2,)}
    with pytest.raises(ValueError, match='holds no ViT'):
        CheckpointLoader.load_checkpoint(f'vit2mmseg:{file}', logger='silent')


NAMED = """
import sys
from mmengine.registry import MODELS
from tests.test_engine._toy import make_runner, toy_config
assert 'olor_mm' not in sys.modules
config = toy_config({work!r}, rollback={{'max_level': 0.1}}, custom_hooks=None, {key}={value})
runner = make_runner(config)
assert 'olor_mm.engine' not in sys.modules, 'the constructor is built with the run'
runner.train()
"""


@pytest.mark.parametrize('way', ['load_from', 'model'])
def test_naming_the_constructor_is_enough(way, tmp_path):
    """A project's own train.py imports nothing of ours; the constructor is built before any weights are read."""
    file, marker = write('os.system', tmp_path)
    value = repr(file) if way == 'load_from' else {'init_cfg': {'type': 'Pretrained', 'checkpoint': file}}
    code = NAMED.format(work=str(tmp_path / 'work'), key=way, value=value)
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )
    assert 'UnsafeCheckpointError' in run.stderr.splitlines()[-1], run.stderr
    assert not marker.exists()
