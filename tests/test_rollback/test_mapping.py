"""theta_0 in files that are mapped: which files, shared by whom, and what happens to those who write to them."""

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from olor_mm.rollback import ANCHOR_KEY, AnchorFileError
from olor_mm.rollback._lossless import same_bits
from olor_mm.rollback._mapping import MappedFile, default_folder, written

from .test_keeping import Run

REPO = Path(__file__).resolve().parents[2]
MAPPED = {'memory': 'mapped'}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a cache'))


def files_of(run):
    return [Path(file.path) for file in run.rollback.keeper._maps]


def test_what_the_pre_trained_file_holds_is_read_there_and_the_rest_from_a_file_of_its_own(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = Run(tmp_path, **MAPPED).step()
    known, own = files_of(run)
    assert known == run.file
    assert own.parent == tmp_path / 'a cache' / 'olor_mm' / 'theta_0' == default_folder()
    # The one that is in no file, with its name.
    (tensor,) = MappedFile(own).tensors.items()
    assert tensor[0] == ('0 layer6.weight',)
    assert same_bits(tensor[1], run.start[6])
    assert f'5 tensors, 0.0 MiB, are mapped from {known}' in caplog.text
    assert f'1 tensors, 0.0 MiB, are mapped from {own}' in caplog.text


def test_nobody_else_may_read_or_write_what_is_written(tmp_path):
    umask = os.umask(0)
    try:
        run = Run(tmp_path, **MAPPED, folder=tmp_path / 'new' / 'folder').step()
    finally:
        os.umask(umask)
    _, own = files_of(run)
    assert own.parent == tmp_path / 'new' / 'folder'
    assert own.stat().st_mode & 0o077 == 0
    assert own.parent.stat().st_mode & 0o077 == 0
    own.chmod(0o666)
    with pytest.raises(AnchorFileError, match='others may write to it'):
        Run(tmp_path, **MAPPED, folder=own.parent).step()


@pytest.mark.skipif(os.name != 'posix', reason='links are of POSIX')
def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    _, own = files_of(Run(tmp_path, **MAPPED).step())
    target = tmp_path / 'elsewhere'
    own.rename(target)
    own.symlink_to(target)
    with pytest.raises(AnchorFileError, match='belongs to somebody else'):
        Run(tmp_path, **MAPPED).step()


@pytest.mark.parametrize('damage', ['shorter', 'other bytes'])
def test_a_file_that_a_power_cut_left_damaged_is_written_anew(damage, tmp_path):
    first = Run(tmp_path, **MAPPED).step()
    _, own = files_of(first)
    data = own.read_bytes()
    own.unlink()
    own.write_bytes(data[:-4] if damage == 'shorter' else data[:-4] + b'\0\0\0\0')
    own.chmod(0o600)
    left = Path(own.parent, '.theta_0_left by a kill.part')
    left.write_bytes(b'x')
    os.utime(left, (1, 1))
    second = Run(tmp_path, **MAPPED).step()
    assert files_of(second)[1] == own
    assert own.read_bytes() == data
    assert {path.suffix for path in own.parent.iterdir()} == {'.safetensors', ''}
    assert all(map(same_bits, first.weights(), second.weights()))


def test_it_is_written_once(tmp_path):
    _, own = files_of(Run(tmp_path, **MAPPED).step())
    before = own.stat().st_mtime_ns
    Run(tmp_path, **MAPPED).step()
    assert own.stat().st_mtime_ns == before


def test_no_room_names_the_folder_and_the_remedy(tmp_path):
    Path(tmp_path, 'file').write_text('')
    with pytest.raises(
        AnchorFileError, match=r'file.theta_0_\w+\.safetensors: (File exists|Not a directory).*anchor_folder'
    ):
        Run(tmp_path, **MAPPED, folder=tmp_path / 'file').step()


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('how', ['shortened', 'written to', 'replaced'])
def test_a_file_that_is_written_to_while_it_is_mapped_ends_the_run(which, how, tmp_path):
    run = Run(tmp_path, **MAPPED).step()
    file = files_of(run)[which]
    if how == 'replaced':
        # What is mapped stays what it was.
        Path(tmp_path, 'other').write_bytes(b'other')
        os.replace(tmp_path / 'other', file)
        plain = Run(tmp_path).step(range(4))
        assert all(map(same_bits, run.step([3]).weights(), plain.weights()))
        return
    if how == 'shortened':
        os.truncate(file, 64)
    else:
        with file.open('r+b') as stream:
            stream.write(b'x')
        os.utime(file, ns=(0, 0))
    for use in (run.step, run.optimizer.state_dict, lambda: run.rollback.anchor(run.params[0])):
        with pytest.raises(AnchorFileError, match='has been written to while theta_0 was mapped from it'):
            use()


def test_what_is_written_to_the_map_does_not_reach_the_file(tmp_path):
    run = Run(tmp_path, **MAPPED).step()
    for file, index in zip(files_of(run), (0, 6), strict=True):
        before = file.read_bytes()
        run.optimizer.state[run.params[index]][ANCHOR_KEY].zero_()
        assert file.read_bytes() == before


@pytest.mark.parametrize('kind', ['legacy', 'safetensors', 'broken.safetensors', 'garbage', 'missing', 'code'])
def test_files_of_all_kinds(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = Run(tmp_path, **MAPPED)
    content = torch.load(run.file, weights_only=True)
    file = tmp_path / f'a.{kind}'
    if kind == 'legacy':
        torch.save(content, file, _use_new_zipfile_serialization=False)
    elif kind == 'safetensors':
        pytest.importorskip('safetensors.torch').save_file(content['state_dict'], file)
    elif kind == 'code':
        torch.save({'model': nn.Linear(2, 2)}, file)
    elif kind != 'missing':
        file.write_bytes(b'\xff' * 100)
    run.rollback.keeper.origins.files[:] = [str(file)]
    run.step()
    assert [path == file for path in files_of(run)] == ([True, False] if kind == 'safetensors' else [False])
    assert (f'theta_0 is not mapped from {file}' in caplog.text) == (kind != 'safetensors')
    assert all(map(same_bits, run.weights(), Run(tmp_path).step().weights()))


def test_dtypes_of_all_widths_in_one_file(tmp_path):
    kinds = (torch.float16, torch.complex64, torch.float64, torch.bfloat16, torch.float32, torch.complex128)
    values = {str(kind): torch.randn(3, 5).to(kind) for kind in kinds}
    values['channels'] = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    values['scalar'] = torch.tensor(2.5)
    _, maps = written(values, tmp_path)
    for name, value in values.items():
        assert same_bits(maps[name], value)
        assert maps[name].stride() == value.stride()


SCRIPT = """
    import sys, torch
    from olor_mm.rollback import Keep, Rollback
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(4, 2**20))
    optimizer = torch.optim.SGD([param], lr=0.1)
    rollback = Rollback(optimizer, {param: 0.1}, keep=Keep(memory=sys.argv[1], folder=sys.argv[2] or None))
    for _ in range(2):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    address = rollback.anchor(param).data_ptr()
    print('ready', flush=True)
    sys.stdin.readline()
    here = False
    for line in open('/proc/self/smaps'):
        first = line.split()[0]
        if '-' in first and not first.endswith(':'):
            start, stop = (int(part, 16) for part in first.split('-'))
            here = start <= address < stop
        elif here and first in ('Rss:', 'Pss:', 'Private_Dirty:'):
            print(first, int(line.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path('/proc/self/smaps').is_file(), reason='asks the kernel, by /proc')
def test_processes_share_it(tmp_path):
    def start():
        # Both at once: one of them has to write the file.
        command = [sys.executable, '-c', textwrap.dedent(SCRIPT), 'mapped', str(tmp_path / 'folder')]
        env = {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'}
        return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes = [start(), start()]
    try:
        for process in processes:
            assert process.stdout.readline() == 'ready\n'
        process = processes[0]
        told, _ = process.communicate('\n', timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    sizes = {line.split()[0]: int(line.split()[1]) for line in told.splitlines()}
    size = 4 * 4 * 2**20
    assert sizes['Rss:'] >= size
    assert sizes['Private_Dirty:'] == 0
    # The share of one of two.
    assert 0.4 * size < sizes['Pss:'] < 0.6 * size
    assert len(list(Path(tmp_path, 'folder').glob('*.safetensors'))) == 1


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / 'data set.zip.part').write_bytes(b'x')
    begun, old = tmp_path / '.theta_0_a.part', tmp_path / '.theta_0_b.part'
    for path in (begun, old):
        path.write_bytes(b'x')
    os.utime(old, (1, 1))
    written({'w': torch.ones(3)}, tmp_path)
    assert (tmp_path / 'data set.zip.part').is_file()
    assert begun.is_file()
    assert not old.exists()


def test_a_file_of_zeros_is_written_anew(tmp_path):
    file, _ = written({'w': torch.ones(3)}, tmp_path)
    path = Path(file.path)
    path.write_bytes(bytes(path.stat().st_size))
    _, maps = written({'w': torch.ones(3)}, tmp_path)
    assert maps['w'].tolist() == [1, 1, 1]


def test_without_a_home_the_option_is_named(monkeypatch):
    def nowhere():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr('pathlib.Path.home', nowhere)
    with pytest.raises(AnchorFileError, match='anchor_folder'):
        default_folder()
