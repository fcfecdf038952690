"""The main job through the tools, on a CPU: train, validate, save, test, resume; alone and in two processes.

Once on generated shapes, always, and once on real photographs from COCO where they are there.
"""

import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests._data import make_coco
from tests.test_tools._small import TOOLS, environment, run, tool, write_small

pytestmark = pytest.mark.slow

# Every rank leaves its weights, as they are when training ends.
RANK_DUMP = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankDump(Hook):
    def after_run(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        torch.save(model.state_dict(), f'{runner.work_dir}/rank_{runner.rank}.pth')
"""
WITH_RANK_DUMP = """
custom_imports = dict(imports=['olor_mm', 'mmpretrain.models', 'rank_dump'], allow_failed_imports=False)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='mmengine.RankDump')]
"""


# Where the data make no difference, the generated ones are enough.
GENERATED = pytest.mark.parametrize('job', ['generated'], indirect=True, scope='module')


@dataclass
class Job:
    """A small config, its data, and where its runs go."""

    folder: Path
    config: Path
    data: Path

    def checkpoint(self, epoch: int, run_name: str = 'run') -> Path:
        return self.folder / run_name / f'epoch_{epoch}.pth'

    def weights(self, epoch: int, run_name: str = 'run') -> dict[str, torch.Tensor]:
        from olor_mm.engine import load_from_local

        return load_from_local(str(self.checkpoint(epoch, run_name)), 'cpu')['state_dict']


@pytest.fixture(scope='module', params=['generated', 'coco'])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp('main job')
    (folder / 'rank_dump.py').write_text(RANK_DUMP)
    if request.param == 'generated':
        data = make_coco(folder / 'my data')
    else:
        data = request.getfixturevalue('shared_data') / 'coco_mini'
        if not data.is_dir():
            pytest.skip(f'no COCO subset at {data}')
    config = write_small(folder, shapes=request.param == 'generated', extra=WITH_RANK_DUMP)
    job = Job(folder, config, data)
    done = run(
        sys.executable, TOOLS / 'train.py', config, '--data-root', data, '--work-dir', folder / 'run', **_in(job)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / 'train.log').write_text(done.stdout + done.stderr)
    return job


def _in(job: Job) -> dict:
    return dict(cwd=job.folder, env={'PYTHONPATH': f'{job.folder}:{TOOLS.parent}'})


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _metrics(text: str) -> dict[str, float]:
    """The last evaluation of a log."""
    line = [line for line in text.split('\n') if 'coco/bbox_mAP:' in line][-1]
    return {name: float(value) for name, value in re.findall(r'(coco/\w+): (-?[\d.]+)', line)}


def test_trains_validates_and_saves_with_olor(job: Job) -> None:
    log = (job.folder / 'train.log').read_text()
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(_metrics(log))
    losses = [float(value) for value in re.findall(r'  loss: ([\d.]+)', log)]
    assert losses[-1] < losses[0]
    from olor_mm.engine import load_from_local

    saved = load_from_local(str(job.checkpoint(2)), 'cpu')
    anchored = [state for state in saved['optimizer']['state'].values() if len(state) > 1]
    assert anchored, 'no theta_0 beside the momentum'


def test_tests_from_the_checkpoint_as_validation_did(job: Job) -> None:
    out = job.folder / 'predictions.pkl'
    done = tool('test.py', job.config, job.checkpoint(2), '--data-root', job.data, '--out', out, **_in(job))
    assert done.returncode == 0, done.stderr[-3000:]
    assert _metrics(done.stdout + done.stderr) == _metrics((job.folder / 'train.log').read_text())
    with out.open('rb') as stream:
        predictions = pickle.load(stream)
    assert len(predictions) == 4
    assert {'bboxes', 'masks', 'scores'} <= set(predictions[0]['pred_instances'])


def test_resumed_equals_uninterrupted(job: Job) -> None:
    resumed = job.folder / 'resumed'
    done = tool(
        *('train.py', job.config, '--data-root', job.data, '--work-dir', resumed, '--resume', job.checkpoint(1)),
        **_in(job),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'resumed epoch: 1' in done.stdout + done.stderr
    assert _same(job.weights(2, 'resumed'), job.weights(2))
    assert not _same(job.weights(1), job.weights(2))


@GENERATED
def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(job: Job) -> None:
    command = [sys.executable, TOOLS / 'train.py', job.config, '--data-root', job.data]
    command += ['--work-dir', job.folder / 'killed', '--resume']
    log = job.folder / 'killed.log'
    with log.open('w') as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=job.folder,
            env=environment(_in(job)['env']),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while not re.search(r'Epoch\(train\) +\[2\]\[1/', log.read_text()):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # With its data workers, which would otherwise be left behind.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not job.checkpoint(2, 'killed').exists()
    # The very same command again.
    done = run(*command, **_in(job))
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'resumed epoch: 1' in done.stdout + done.stderr
    assert _same(job.weights(2, 'killed'), job.weights(2))


def test_two_processes_end_with_equal_weights(job: Job) -> None:
    folder = job.folder / 'two ranks'
    script = TOOLS / 'dist_train.sh'
    done = run(script, job.config, '2', '--data-root', job.data, '--work-dir', folder, **_in(job))
    assert done.returncode == 0, done.stderr[-3000:]
    assert '2 processes over gloo' in done.stdout + done.stderr
    ranks = [torch.load(folder / f'rank_{rank}.pth', weights_only=True) for rank in (0, 1)]
    assert _same(*ranks)
    assert _same(ranks[0], job.weights(2, 'two ranks'))
    tested = run(
        *(TOOLS / 'dist_test.sh', job.config, job.checkpoint(2, 'two ranks'), '2', '--data-root', job.data),
        **_in(job),
    )
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert _metrics(tested.stdout + tested.stderr) == _metrics(done.stdout + done.stderr)


def test_mmdets_own_train_takes_the_config(job: Job, tmp_path: Path) -> None:
    spec = importlib.util.find_spec('mmdet')
    theirs = Path(str(spec and spec.origin)).parent / '.mim' / 'tools' / 'train.py'
    if not theirs.is_file():
        pytest.skip('this installation of mmdet carries no tools')
    # MMEngine takes the spaces out of --cfg-options.
    data = tmp_path / 'data'
    data.symlink_to(job.data)
    options = [f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val')]
    options += [f'val_evaluator.ann_file={data}/annotations/instances_val2017.json', 'train_cfg.max_epochs=1']
    command = [sys.executable, theirs, job.config, '--work-dir', job.folder / 'theirs', '--cfg-options', *options]
    done = run(*command, **_in(job))
    assert done.returncode == 0, done.stderr[-3000:]
    # One epoch of the same two, with the same seed, by another script: the same weights.
    assert _same(job.weights(1, 'theirs'), job.weights(1))


class _Attack:
    """Unpickling it would run code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@GENERATED
def test_files_that_are_refused(job: Job, tmp_path: Path) -> None:
    from olor_mm.engine import load_from_local

    checkpoint = load_from_local(str(job.checkpoint(1)), 'cpu')
    del checkpoint['optimizer']
    torch.save(checkpoint, tmp_path / 'without_optimizer.pth')
    torch.save({'state_dict': {}, 'extra': _Attack(tmp_path / 'mark')}, tmp_path / 'attack.pth')
    common = [job.config, '--data-root', job.data, '--work-dir', tmp_path / 'run']
    for name, command, message in (
        ('train.py', [*common, '--resume', tmp_path / 'without_optimizer.pth'], 'anchor'),
        ('test.py', [common[0], tmp_path / 'attack.pth', *common[1:]], 'no code of it was run'),
    ):
        done = tool(name, *command, **_in(job))
        assert done.returncode == 2, done.stderr[-3000:]
        assert 'Traceback' not in done.stderr
        assert message in done.stderr[done.stderr.index('error: ') :]
    assert not (tmp_path / 'mark').exists()
