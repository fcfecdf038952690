"""--resume where the latest checkpoint, or the file that names it, is not what it should be."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from olor_mm.tooling import launch
from olor_mm.tooling.errors import InputError
from olor_mm.tooling.resume import Alert, apply_resume, overwritten
from olor_mm.tooling.weights import check_weights
from tests.test_engine._toy import ToyModel, toy_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A work dir with the checkpoints of three epochs, a best one, and a foreign one."""
    folder = tmp_path / 'my run'
    folder.mkdir()
    for name in ('epoch_2.pth', 'epoch_9.pth', 'epoch_10.pth', 'best_acc_epoch_12.pth', 'epoch_11-0a1b2c3d.pth'):
        torch.save({'meta': {'name': name}, 'state_dict': {'w': torch.ones(100)}}, folder / name)
    # What a copied folder looks like: the dates say nothing.
    os.utime(folder / 'epoch_10.pth', (0, 0))
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_10.pth'))
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(torch.ones(100).numpy().tobytes()) + 2] ^= 4
    file.write_bytes(data)


def config(run: Path, **more: Any) -> Config:
    return Config(dict(work_dir=str(run), load_from='start.pth', **more))


def resumed(cfg: Config) -> tuple[str, list[str]]:
    notes = apply_resume(cfg, 'auto')
    assert cfg.resume is True
    return Path(cfg.load_from).name, notes


def test_whole(run: Path) -> None:
    name, notes = resumed(config(run))
    assert name == 'epoch_10.pth'
    assert not any(isinstance(note, Alert) for note in notes)


@pytest.mark.parametrize(
    ('harm', 'says'), [(cut, 'its end is missing'), (flip, 'changed after it was written'), (os.remove, 'missing')]
)
def test_the_newest_whole_one_is_taken(run: Path, harm: Any, says: str) -> None:
    harm(run / 'epoch_10.pth')
    name, notes = resumed(config(run))
    assert name == 'epoch_9.pth'
    assert all(isinstance(note, Alert) for note in notes)
    assert str(run / 'epoch_10.pth') in notes[0]
    assert says in notes[0]
    assert str(run / 'epoch_9.pth') in notes[1]


@pytest.mark.parametrize('content', [None, b'', b'\xff\x00garbage\x01', b'no such file', b'x' * 5000])
def test_last_checkpoint_gone_or_garbled(run: Path, content: bytes | None) -> None:
    record = run / 'last_checkpoint'
    if content is None:
        record.unlink()
    else:
        record.write_bytes(content)
    name, notes = resumed(config(run))
    assert name == 'epoch_10.pth'
    assert any(isinstance(note, Alert) for note in notes)


@pytest.mark.parametrize('folder', ['.', '/', '{run}', '{run}/..'])
def test_last_checkpoint_names_the_work_dir(run: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / 'last_checkpoint').write_text(folder.format(run=run))
    monkeypatch.chdir(run)
    name, notes = resumed(config(run))
    assert name == 'epoch_10.pth'
    assert len(notes) == 1
    assert 'last_checkpoint is unreadable' in notes[0]


def test_a_checkpoint_that_no_record_names_yet_is_not_preferred(run: Path) -> None:
    (run / 'last_checkpoint').write_text(str(run / 'epoch_9.pth'))
    assert resumed(config(run))[0] == 'epoch_9.pth'


def test_all_damaged(run: Path) -> None:
    for file in run.glob('epoch_*.pth'):
        cut(file)
    with pytest.raises(InputError, match=r'(?s)epoch_10\.pth: its end is missing.*epoch_2\.pth.*--resume CHECKPOINT'):
        apply_resume(config(run), 'auto')


@pytest.mark.parametrize('harm', [cut, flip])
def test_a_given_one_that_is_damaged(run: Path, harm: Any) -> None:
    harm(run / 'epoch_10.pth')
    with pytest.raises(InputError, match=r'(?s)damaged.*epoch_10\.pth.*--resume .*epoch_9\.pth'):
        apply_resume(config(run), str(run / 'epoch_10.pth'))


def test_another_folder_and_another_name(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'elsewhere' / run.name
    folder.mkdir(parents=True)
    torch.save({'meta': {}}, folder / 'ep-3.ckpt')
    hook = dict(type='CheckpointHook', out_dir=str(folder.parent), filename_tmpl='ep-{}.ckpt')
    (run / 'last_checkpoint').unlink()
    cfg = config(run, default_hooks=dict(checkpoint=hook))
    apply_resume(cfg, 'auto')
    assert cfg.load_from == str(folder / 'ep-3.ckpt')


@pytest.mark.parametrize('empty', [False, True])
def test_a_given_work_dir(run: Path, empty: bool) -> None:
    if empty:
        (run / 'last_checkpoint').unlink()
    with pytest.raises(InputError, match='names a folder, not a checkpoint') as refused:
        apply_resume(config(run), str(run))
    assert (f'--resume {run / "epoch_10.pth"}' in str(refused.value)) != empty


@pytest.mark.parametrize('resume', ['auto', 'given'])
def test_a_folder_that_was_set_aside_when_its_successor_should_take_its_place(run: Path, resume: str) -> None:
    """A kill in the very moment in which a folder of shards is replaced."""
    aside = run / '.epoch_11.pth.olor-old'
    aside.mkdir()
    torch.save({'meta': {}}, aside / 'rank0.pth')
    (run / 'last_checkpoint').write_text(str(run / 'epoch_11.pth'))
    cfg = config(run)
    apply_resume(cfg, resume if resume == 'auto' else str(run / 'epoch_11.pth'))
    assert Path(cfg.load_from).name == 'epoch_11.pth'
    assert (run / 'epoch_11.pth' / 'rank0.pth').exists()
    assert not aside.exists()


@pytest.mark.parametrize('value', ['', ' '])
def test_an_empty_name_does_not_start_anew(run: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"(?s)--resume ' ?' names no checkpoint.*--resume without a value"):
        apply_resume(config(run), value)


def test_an_empty_name_reaches_the_check(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, '_configure', lambda args: (config(run), []))
    with pytest.raises(InputError, match='names no checkpoint'):
        launch.train(['config.py', '--resume', ''])


def test_a_new_run_over_an_old_one_is_told(run: Path, tmp_path: Path) -> None:
    (line,) = overwritten(config(run))
    assert isinstance(line, Alert)
    assert all(text in line for text in (str(run), '3 checkpoints', 'epoch_10.pth', '--resume', '--work-dir'))
    assert overwritten(config(run, resume=True)) == overwritten(config(tmp_path)) == []


def write(run: Path, *names: str) -> None:
    for name in names:
        torch.save({'meta': {'name': name}}, run / name)


def test_later_ones_of_an_older_run_are_not_taken(run: Path) -> None:
    write(run, 'epoch_1.pth', 'epoch_3.pth', 'iter_1.pth')
    (run / 'last_checkpoint').write_text(str(run / 'epoch_3.pth'))
    cut(run / 'epoch_3.pth')
    assert resumed(config(run))[0] == 'epoch_2.pth'
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        cut(run / name)
    with pytest.raises(InputError, match=r'(?s)epoch_1\.pth: its end.*epoch_10\.pth: .*perhaps of another run.*iter_1'):
        apply_resume(config(run), 'auto')
    with pytest.raises(InputError, match='damaged') as error:
        apply_resume(config(run), str(run / 'epoch_3.pth'))
    assert 'epoch_10' not in str(error.value)


@pytest.mark.parametrize(('by_epoch', 'expected'), [(True, 'epoch_10.pth'), (False, 'iter_400.pth')])
def test_epochs_are_not_compared_with_iterations(run: Path, by_epoch: bool, expected: str) -> None:
    write(run, 'iter_400.pth', 'iter_50.pth')
    (run / 'last_checkpoint').unlink()
    hook = dict(type='CheckpointHook', by_epoch=by_epoch)
    assert resumed(config(run, default_hooks=dict(checkpoint=hook)))[0] == expected


@pytest.mark.parametrize('template', ['step{:04d}.pth', 'step{0:04d}.pth'])
def test_a_template_with_a_format(run: Path, template: str) -> None:
    write(run, 'step0009.pth', 'step0100.pth')
    (run / 'last_checkpoint').unlink()
    hook = dict(type='CheckpointHook', filename_tmpl=template)
    assert resumed(config(run, default_hooks=dict(checkpoint=hook)))[0] == 'step0100.pth'


@pytest.mark.parametrize('space', ['\u00a0', '\u3000'])
def test_a_path_with_a_space_that_is_not_ascii(run: Path, space: str) -> None:
    moved = run.rename(run.with_name(f'my{space}run'))
    (moved / 'last_checkpoint').write_text(str(moved / 'epoch_9.pth'), encoding='utf-8')
    name, notes = resumed(config(moved))
    assert name == 'epoch_9.pth'
    assert not any(isinstance(note, Alert) for note in notes)


@pytest.mark.parametrize('name', ['last_checkpoint', 'epoch_2.pth'])
def test_a_named_pipe_is_not_waited_for(name, tmp_path):
    torch.save({'a': torch.ones(3)}, tmp_path / 'epoch_1.pth')
    os.mkfifo(tmp_path / name)
    cfg = Config({'work_dir': str(tmp_path)})
    apply_resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')


@pytest.mark.parametrize(('kind', 'says'), [('folder', 'is a folder'), ('pipe', 'is no file'), ('none', 'is missing')])
def test_what_stands_where_a_file_of_weights_belongs(tmp_path: Path, kind: str, says: str) -> None:
    place = tmp_path / 'weights.pth'
    if kind == 'folder':
        place.mkdir()
    elif kind == 'pipe':
        os.mkfifo(place)
    with pytest.raises(InputError, match=f'the file of load_from {says}'):
        check_weights({'load_from': str(place)})


def test_the_config_that_a_resumed_run_writes_has_the_files_that_training_started_from(tmp_path: Path) -> None:
    file, work_dir = tmp_path / 'toy.py', tmp_path / 'work'
    torch.save(ToyModel().state_dict(), tmp_path / 'weights.pth')
    model = {'type': 'ToyModel', 'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'weights.pth')}}
    config = toy_config(work_dir, rollback={'max_level': 0.1}, model=model, experiment_name=tmp_path.name)
    config.train_cfg.max_epochs = 1
    file.write_text(config.pretty_text)
    launch.train([str(file)])
    (tmp_path / 'weights.pth').unlink()
    longer = ['train_cfg.max_epochs=2', f'experiment_name={tmp_path.name}2']
    launch.train([str(file), '--resume', '--cfg-options', *longer])
    assert (work_dir / 'epoch_2.pth').is_file()
    assert Config.fromfile(work_dir / file.name).model.init_cfg == model['init_cfg']
