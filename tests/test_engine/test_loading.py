"""Checkpoints of MMEngine load with weights_only on; a file that would run code runs none."""

import functools
import http.server
import io
import pickle
import re
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from olor_mm.engine import BrokenCheckpointError, UnsafeCheckpointError, load_from_local
from olor_mm.engine.loading import _getattr_of_history_buffer, last_loaded

pytestmark = pytest.mark.skipif(
    not hasattr(torch.serialization, 'safe_globals'), reason='this torch has no allow-list for weights_only'
)


def history():
    buffer = HistoryBuffer()
    for value in (1, 2.5, 3):
        buffer.update(value)
    return buffer


@pytest.mark.parametrize(
    'value',
    [
        {'state_dict': {'a': torch.ones(2)}, 'meta': {'iter': 3, 'cfg': 'x = 1'}},
        {'message_hub': {'log_scalars': {'train/loss': history()}, 'runtime_info': {}, 'resumed_keys': {}}},
        {'numpy': [np.arange(4), np.float32(2.5), np.int64(3), np.zeros((2, 2), np.uint8), np.bool_(True)]},
    ],
)
def test_what_mmengine_saves_is_loaded_as_it_was(value, tmp_path):
    file = tmp_path / 'x.pth'
    torch.save(value, file)
    found = CheckpointLoader.load_checkpoint(str(file), map_location='cpu', logger='silent')
    assert str(found) == str(value) or found.keys() == value.keys()
    if 'message_hub' in value:
        buffer = found['message_hub']['log_scalars']['train/loss']
        assert (buffer.mean(), buffer.max(), buffer.statistics('current')) == (6.5 / 3, 3, 3)


class Evil:
    """Runs a function of the reader's when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_files(marker: Path):
    """Ways to write a file by loading a checkpoint."""
    import os

    code = f'open({str(marker)!r}, "w").close()'
    yield 'exec', Evil(exec, code)
    yield 'os.system', Evil(os.system, f'touch {marker}')
    yield 'getattr of a module', Evil(getattr, os, 'system')
    yield 'eval behind getattr', Evil(getattr, Evil(__import__, 'os'), 'system')
    yield 'pathlib', Evil(Path.touch, marker)


@pytest.mark.parametrize('number', range(5))
@pytest.mark.parametrize('where', ['state_dict', 'message_hub'])
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(number, where, tmp_path):
    marker = tmp_path / 'ran'
    name, payload = list(evil_files(marker))[number]
    file = tmp_path / 'evil.pth'
    buffer = io.BytesIO()
    if name == 'getattr of a module':
        # pickle cannot write a module; a checkpoint of the attacker's own making can name one.
        payload = None
        torch.save({'state_dict': {}}, buffer)
        data = b'\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x08\x00\x00\x00__call__\x86R.'
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(file, 'w') as new:
            for item in old.namelist():
                new.writestr(item, data if item.endswith('data.pkl') else old.read(item))
    else:
        torch.save({where: {'x': payload}}, file)
    with pytest.raises(UnsafeCheckpointError, match=re.escape(str(file))) as error:
        CheckpointLoader.load_checkpoint(str(file), map_location='cpu', logger='silent')
    assert 'no code of it was run' in str(error.value)
    assert re.search(r'GLOBAL|getattr|Unsupported|Trying', str(error.value))
    assert 'weights_only set to' not in str(error.value)
    assert not marker.exists()
    if payload is not None and name in ('exec', 'os.system', 'pathlib'):
        # The file is what it claims to be: an unsafe load does run it.
        torch.load(file, weights_only=False)
        assert marker.exists()


def test_the_stand_in_for_getattr_serves_history_buffer_alone():
    assert _getattr_of_history_buffer(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for obj, name in ((HistoryBuffer, '__globals__'), (HistoryBuffer, 'update'), (sys, 'exit'), (history(), 'mean')):
        with pytest.raises(pickle.UnpicklingError):
            _getattr_of_history_buffer(obj, name)


def test_the_allow_list_is_not_left_behind(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({'a': history()}, tmp_path / 'x.pth')
    load_from_local(str(tmp_path / 'x.pth'))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of this test's folder, on this machine alone, and an empty hub cache."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{httpd.server_address[1]}'
        httpd.shutdown()
        thread.join()


def test_addresses_load_as_files_do(server, tmp_path):
    torch.save({'state_dict': {'a': torch.ones(2)}, 'hub': history()}, tmp_path / 'good.pth')
    marker = tmp_path / 'ran'
    torch.save({'state_dict': Evil(Path.touch, marker)}, tmp_path / 'evil.pth')
    for _ in range(2):
        found = CheckpointLoader.load_checkpoint(f'{server}/good.pth', map_location='cpu', logger='silent')
        assert torch.equal(found['state_dict']['a'], torch.ones(2))
        assert last_loaded() == f'{server}/good.pth'
        with pytest.raises(UnsafeCheckpointError, match=r'evil\.pth was not loaded'):
            CheckpointLoader.load_checkpoint(f'{server}/evil.pth', map_location='cpu', logger='silent')
    assert not marker.exists()


@pytest.mark.parametrize('content', [b'', b'text\n', b'PK\x03\x04', 'half'])
def test_a_broken_file_is_named(content, tmp_path):
    file = tmp_path / 'broken.pth'
    if content == 'half':
        torch.save({'state_dict': {'a': torch.ones(1000)}}, file)
        content = file.read_bytes()[:1500]
    file.write_bytes(content)
    with pytest.raises(BrokenCheckpointError, match=r'broken\.pth is no checkpoint of torch\.save, or an incomplete'):
        load_from_local(str(file))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file({'a': torch.ones(2)}, tmp_path / 'x.safetensors')
    assert torch.equal(load_from_local(str(tmp_path / 'x.safetensors'))['state_dict']['a'], torch.ones(2))


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth: no such checkpoint file'):
        load_from_local('nowhere.pth')
