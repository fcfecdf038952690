"""What is the user's to mend: a few lines that say how, exit code 2, no traceback. What is a bug: its traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest

import olor_mm
from olor_mm.tooling import InputError, run_command, train
from olor_mm.tooling import test as run_test
from olor_mm.tooling.errors import EXIT_INTERRUPTED
from tests._data import make_coco
from tests.test_tools._small import TOOLS, environment, tool, write_small


@pytest.fixture(scope='module')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp('data') / 'my coco')


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_small(tmp_path)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a tool in this process and give what it says, after it failed as a user's mistake should."""

    def call(command: Callable, *arguments: object) -> str:
        assert run_command(command, [str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith('error: ')
        assert 'Traceback' not in said
        assert len(said.strip().split('\n')) <= 10
        return said

    return call


def test_missing_config(fails: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / 'x.py') in fails(train, tmp_path / 'x.py')
    assert olor_mm.cfg('olor_maskrcnn_convnext.py') in fails(train, tmp_path / 'olor_maskrcnn_convnext.py')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("_base_ = ['gone.py']", 'gone.py'),
        ('model = dict(', 'cannot be read'),
        (
            "_base_ = [__import__('olor_mm').cfg('olor_maskrcnn_convnext')]\nmodel = dict(neck='FPN', type=dict(a=1))",
            'does not fit its _base_',
        ),
        ("custom_imports = dict(imports=['no_such_package'], allow_failed_imports=False)", 'no_such_package'),
        ("default_scope = 'no_such_toolbox'", 'no_such_toolbox'),
    ],
)
def test_broken_config(fails: Callable[..., str], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / 'x.py').write_text(text)
    assert message in fails(train, tmp_path / 'x.py')


def test_missing_data_folder(fails: Callable[..., str], config: Path, tmp_path: Path) -> None:
    said = fails(train, config)
    assert 'the data folder of train_dataloader.dataset is missing' in said
    assert f'looked for: {tmp_path / "data" / "coco"}' in said
    assert 'annotations/instances_train2017.json' in said
    assert 'train2017/' in said
    assert '--data-root DIR' in said


@pytest.mark.parametrize(
    ('gone', 'message'),
    [
        ('annotations/instances_train2017.json', 'the annotation file of train_dataloader.dataset is missing'),
        ('annotations/instances_val2017.json', 'the annotation file of val_dataloader.dataset is missing'),
        ('train2017', 'the image folder of train_dataloader.dataset is missing'),
        ('val2017/000000000001.jpg', 'the images of val_dataloader.dataset are not where'),
    ],
)
def test_missing_parts_of_the_data(
    fails: Callable[..., str], config: Path, coco: Path, tmp_path: Path, gone: str, message: str
) -> None:
    copy = tmp_path / 'copy'
    shutil.copytree(coco, copy)
    shutil.rmtree(copy / gone) if (copy / gone).is_dir() else (copy / gone).unlink()
    said = fails(train, config, '--data-root', copy)
    assert message in said
    assert f'looked for: {copy / gone}' in said
    assert '--data-root' in said


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is not json'),
        (b'{"images": [', 'is not json'),
        (b'\xff\xd8\xff\xe0 a photograph', 'is not json'),
        (b'[1, 2]', 'it holds list'),
        (b'{"images": [], "annotations": []}', "it holds ['annotations', 'images']"),
        (json.dumps(dict(images=[], annotations=[], categories=[dict(id=1, name='disc')])).encode(), '2 of the 3 cl'),
    ],
)
def test_annotations_that_are_none(
    fails: Callable[..., str], config: Path, coco: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / 'bad.json'
    file.write_bytes(content)
    said = fails(
        train, config, '--data-root', coco, '--cfg-options', f'train_dataloader.dataset.ann_file={str(file)!r}'
    )
    assert message in said
    assert str(file) in said
    assert '--cfg-options train_dataloader.dataset' in said


def test_large_annotations_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from olor_mm.tooling import data_checks

    monkeypatch.setattr(data_checks, '_PARSE_LIMIT', 0)
    file = tmp_path / 'x.json'
    whole = json.dumps(dict(images=[], annotations=[], categories=[]))
    file.write_text(f'{whole}\n')
    assert data_checks.check_coco_json(file, 'x') is None
    for bad in (whole[:-1], whole.replace('images', 'pictures'), f'[{whole}]'):
        file.write_text(bad)
        with pytest.raises(InputError, match='not a complete COCO'):
            data_checks.check_coco_json(file, 'x')


def test_missing_annotations_of_the_evaluator(fails: Callable[..., str], config: Path, coco: Path) -> None:
    said = fails(train, config, '--data-root', coco, '--cfg-options', 'val_evaluator.ann_file=gone.json')
    assert 'the annotation file of val_evaluator is missing' in said or 'val_evaluator.ann_file' in said


def test_missing_weights(fails: Callable[..., str], config: Path, coco: Path, tmp_path: Path) -> None:
    given = [config, '--data-root', coco, '--cfg-options']
    said = fails(train, *given, 'model.neck.init_cfg.type=Pretrained', 'model.neck.init_cfg.checkpoint=gone.pth')
    assert f'looked for: {tmp_path / "gone.pth"}' in said
    assert '--pretrained FILE' in said
    assert 'load_from=FILE' in fails(train, *given, 'load_from=gone.pth')
    assert 'gone.pth' in fails(train, *given[:-1], '--pretrained', 'gone.pth')


def test_no_network(
    fails: Callable[..., str], config: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str, timeout: float) -> None:
        raise URLError('Temporary failure in name resolution')

    monkeypatch.setattr(urllib.request, 'urlopen', no_network)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    arguments = [config, '--data-root', coco, '--cfg-options', 'model.neck.init_cfg.type=Pretrained']
    said = fails(train, *arguments, 'model.neck.init_cfg.checkpoint=https://example.org/convnext.pth')
    assert 'Temporary failure in name resolution' in said
    assert 'https://example.org/convnext.pth' in said
    assert '--pretrained FILE' in said
    # A rank that is not the first leaves the question to it.
    monkeypatch.setenv('RANK', '1')
    from olor_mm.tooling.weights import check_weights

    check_weights(dict(load_from='https://example.org/convnext.pth'))


def test_weights_downloaded_before_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from olor_mm.tooling.weights import check_weights

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'hub' / 'checkpoints' / 'convnext.pth').touch()
    monkeypatch.setattr(urllib.request, 'urlopen', None)
    check_weights(dict(load_from='https://example.org/convnext.pth'))


def test_missing_checkpoints(fails: Callable[..., str], config: Path, coco: Path, tmp_path: Path) -> None:
    for said in (
        fails(run_test, config, 'gone.pth', '--data-root', coco),
        fails(train, config, '--resume', 'gone.pth', '--data-root', coco),
    ):
        assert f'looked for: {tmp_path / "gone.pth"}' in said


def test_amp_without_accelerator(
    fails: Callable[..., str], config: Path, coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('olor_mm.tooling.distributed.get_device', lambda: 'cpu')
    assert 'mixed precision needs a GPU' in fails(train, config, '--amp', '--data-root', coco)


def test_unwritable_work_dir(fails: Callable[..., str], config: Path, coco: Path, tmp_path: Path) -> None:
    # Below a file nobody can make a folder, root neither.
    (tmp_path / 'file').touch()
    said = fails(train, config, '--data-root', coco, '--work-dir', tmp_path / 'file' / 'run')
    assert 'the work dir cannot be written to' in said
    assert '--work-dir DIR' in said


def test_launcher_without_its_environment(
    fails: Callable[..., str], config: Path, coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('olor_mm.tooling.distributed.get_device', lambda: 'cpu')
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    assert "'RANK' is not in the environment" in fails(
        train, config, '--launcher', 'pytorch', '--data-root', coco, '--cfg-options', 'work_dir=w'
    )


@pytest.mark.parametrize('key', ['max_levle=0.1', 'max_level=2'])
def test_misspelled_setting_of_the_rollback(fails: Callable[..., str], config: Path, coco: Path, key: str) -> None:
    said = fails(train, config, '--data-root', coco, '--cfg-options', f'optim_wrapper.rollback.{key}')
    assert key.partition('=')[0] in said


def test_another_rank_waits_for_rank_0_to_speak(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setenv('RANK', '5')
    waited: list[float] = []
    monkeypatch.setattr(time, 'sleep', waited.append)
    assert run_command(train, [str(tmp_path / 'gone.py'), '--launcher', 'pytorch']) == 2
    assert waited == [2.0]
    assert capsys.readouterr().err.startswith('error on rank 5: the config file is missing')


@pytest.mark.parametrize(
    ('launcher', 'rank', 'local_rank'),
    [('slurm', 'SLURM_PROCID', 'SLURM_LOCALID'), ('mpi', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK')],
)
def test_ranks_that_another_launcher_names(
    launcher: str,
    rank: str,
    local_rank: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        # Put back at the end, whatever is set in between.
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    monkeypatch.setenv(rank, '5')
    monkeypatch.setenv(local_rank, '1')
    monkeypatch.setattr(time, 'sleep', lambda _: None)
    assert run_command(train, [str(tmp_path / 'gone.py'), '--launcher', launcher]) == 2
    assert capsys.readouterr().err.startswith('error on rank 5: the config file is missing')
    # By which MMEngine chooses the GPU.
    assert os.environ['LOCAL_RANK'] == '1'


#: A run whose rank 1 alone meets a NaN, while rank 0 goes on to its next collective, or whose ranks all do.
LOSING = """
import sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from olor_mm.engine.finite import LossWatch
from olor_mm.tooling import run_command

def command(argv):
    dist.init_process_group('gloo')
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, float('nan'))
    runner = SimpleNamespace(
        model=model, iter=5, work_dir='none', _resume=False, message_hub=SimpleNamespace(log_scalars={})
    )
    lost = argv[0] == 'all' or dist.get_rank() == 1
    LossWatch(100).look(runner, {'loss': float('nan') if lost else 1.0})
    dist.barrier()

sys.exit(run_command(command))
"""


@pytest.mark.parametrize(('who', 'said'), [('one', 'error on rank 1: loss is nan'), ('all', 'error: loss is nan')])
def test_what_one_rank_has_met_is_said_and_what_all_have_met_is_said_once(who: str, said: str, tmp_path: Path) -> None:
    script = tmp_path / 'losing run.py'
    script.write_text(LOSING)
    command = [sys.executable, '-m', 'olor_mm.tooling.torchrun', '2', str(script), who]
    done = subprocess.run(command, env=environment(), stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    # Rank 0 may fail because rank 1 has gone, and be seen first.
    assert done.returncode in ((2,) if who == 'all' else (1, 2)), done.stderr
    assert said in done.stderr
    assert done.stderr.count('loss is nan') == 1, done.stderr


def test_bugs_keep_their_traceback() -> None:
    def bug(argv: object) -> None:
        raise ValueError('not the user')

    def bug_inside(argv: object) -> None:
        train_arguments: list = []
        train_arguments[0]

    with pytest.raises(ValueError, match='not the user'):
        run_command(bug, [])
    with pytest.raises(IndexError):
        run_command(bug_inside, [])


def test_a_value_error_that_no_raise_statement_made_is_a_bug() -> None:
    from olor_mm.tooling import errors

    # It comes out of a function of this package, but nothing there meant to refuse anything.
    code = compile("int('x')", errors.__file__, 'exec')
    with pytest.raises(ValueError, match='invalid literal'):
        run_command(lambda argv: exec(code), [])
    code = compile("raise ValueError('max_level must be in [0, 1]')", errors.__file__, 'exec')
    assert run_command(lambda argv: exec(code), []) == 2


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_help_and_usage(name: str) -> None:
    assert '--data-root DIR' in tool(name, '--help').stdout
    with pytest.raises(SystemExit) as stopped:
        run_command(train if name == 'train.py' else run_test, [])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(config: Path, coco: Path, tmp_path: Path) -> None:
    arguments = [
        config,
        '--data-root',
        coco,
        '--work-dir',
        tmp_path / 'run',
        '--cfg-options',
        'train_cfg.max_epochs=500',
    ]
    command = [sys.executable, TOOLS / 'train.py', *arguments]
    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=subprocess.PIPE, text=True, env=environment()
        )
        deadline = time.monotonic() + 120
        while not (tmp_path / 'run' / 'last_checkpoint').exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_INTERRUPTED
    assert 'Traceback' not in said
    assert '--resume' in said
    assert str(tmp_path / 'run' / 'epoch_') in said
    assert os.path.exists(tmp_path / 'run' / 'epoch_1.pth')
