"""Checkpoints of MMEngine load with weights_only on; a file that would run code runs none."""

import functools
import http.server
import io
import json
import pickle
import re
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from olor_mm.engine import BrokenCheckpointError, UnsafeCheckpointError, load_from_local
from olor_mm.engine._records import _getattr, _SavedHistory
from olor_mm.engine.loading import last_loaded, local_file
from olor_mm.rollback import _files, anchors_from_file
from tests._attacks import ATTACKS, Evil, forged_array


@pytest.fixture(params=["torch's reader", 'our reader'])
def reader(request, monkeypatch):
    """torch's ``weights_only``, and ours, which older torch gets: both have to do the same."""
    if request.param == 'our reader':
        monkeypatch.setattr(_files, 'weights_only_takes_names', lambda: False)
    elif not _files.weights_only_takes_names():
        pytest.skip(f'weights_only of torch {torch.__version__} takes no names')


def history():
    buffer = HistoryBuffer()
    for value in (1, 2.5, 3):
        buffer.update(value)
    return buffer


@pytest.mark.skipif(torch.cuda.is_available(), reason='has the device')
@pytest.mark.usefixtures('reader')
def test_a_device_that_is_not_here_is_no_damage(tmp_path, monkeypatch):
    file = tmp_path / 'x.pth'
    with monkeypatch.context() as context:
        context.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        torch.save({'a': torch.ones(2)}, file)
    with pytest.raises(RuntimeError, match='on a CUDA device') as error:
        load_from_local(str(file))
    assert not isinstance(error.value, BrokenCheckpointError)
    assert torch.equal(load_from_local(str(file), 'cpu')['a'], torch.ones(2))


@pytest.mark.parametrize(
    'value',
    [
        {'state_dict': {'a': torch.ones(2)}, 'meta': {'iter': 3, 'cfg': 'x = 1'}},
        {'message_hub': {'log_scalars': {'train/loss': history()}, 'runtime_info': {}, 'resumed_keys': {}}},
        {'numpy': [np.arange(4), np.float32(2.5), np.int64(3), np.zeros((2, 2), np.uint8), np.bool_(True)]},
    ],
)
@pytest.mark.usefixtures('reader')
def test_what_mmengine_saves_is_loaded_as_it_was(value, tmp_path):
    file = tmp_path / 'x.pth'
    torch.save(value, file)
    found = CheckpointLoader.load_checkpoint(str(file), map_location='cpu', logger='silent')
    assert str(found) == str(value) or found.keys() == value.keys()
    if 'message_hub' in value:
        buffer = found['message_hub']['log_scalars']['train/loss']
        assert (buffer.mean(), buffer.max(), buffer.statistics('current')) == (6.5 / 3, 3, 3)


@pytest.mark.usefixtures('reader')
@pytest.mark.parametrize('zipped', [True, False])
def test_every_kind_of_tensor_and_of_plain_data_is_loaded_as_it_was(zipped, tmp_path):
    shared = torch.arange(6.0)
    value = {
        'tensors': [torch.ones(2, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool)],
        'views': [shared, shared[2:], shared.view(2, 3).t(), torch.ones(()), torch.empty(0, 3)],
        'complex': torch.ones(2, dtype=torch.complex64),
        'parameter': torch.nn.Parameter(torch.ones(2), requires_grad=False),
        'module': torch.nn.BatchNorm1d(2).state_dict(),
        'plain': [
            None,
            True,
            False,
            1,
            2**40,
            -(2**70),
            1.5,
            'text',
            'naïve',
            (),
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
        ],
        'more': {'set': {1, 2}, 'bytes': b'\x00\xff', 'empty': [[], {}, set()], 'size': torch.Size([2]), 1: 2j},
        'dtype': [torch.float32, torch.device('cpu')],
        'optimizer': torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }
    torch.save(value, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    found = load_from_local(str(tmp_path / 'x.pth'))
    assert str(found) == str(value)
    assert found['views'][1].data_ptr() == found['views'][0].data_ptr() + 8
    assert found['module']._metadata == value['module']._metadata
    assert isinstance(found['parameter'], torch.nn.Parameter)
    assert not found['parameter'].requires_grad


@pytest.mark.usefixtures('reader')
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('name', ATTACKS)
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marker, file = tmp_path / 'ran', tmp_path / 'evil file.pth'
    ATTACKS[name](file, marker)
    refused = (UnsafeCheckpointError, BrokenCheckpointError)
    with pytest.raises(refused, match=re.escape(str(file))) as error:
        CheckpointLoader.load_checkpoint(str(file), map_location='cpu', logger='silent')
    text = str(error.value)
    assert len(text) < 600
    assert '\n' not in text
    assert 'add_safe_globals' not in text
    if error.type is UnsafeCheckpointError:
        assert 'no code of it was run' in text
        assert re.search(r'\((GLOBAL|getattr|Unsupported|Trying|a TorchScript|torch)', text)
    with pytest.raises(refused, match=re.escape(str(file))):
        anchors_from_file(file, [('x', torch.ones(2))])
    assert {path.name for path in tmp_path.iterdir()} == {'evil file.pth'}


@pytest.mark.usefixtures('reader')
def test_a_tar_is_not_unpacked_whatever_is_at_its_end(tmp_path, monkeypatch):
    unpacked = []
    monkeypatch.setattr(tarfile.TarFile, 'extract', lambda self, *names, **_: unpacked.append(names))
    ATTACKS['tar with a zip at its end'](tmp_path / 'x.pth', tmp_path / 'ran')
    with pytest.raises(UnsafeCheckpointError, match='tar format of 2016'):
        load_from_local(str(tmp_path / 'x.pth'))
    assert not unpacked


@pytest.mark.parametrize('name', ['exec', 'os.system', 'Path.touch', 'getattr chain', 'legacy', 'STACK_GLOBAL'])
def test_the_files_are_what_they_claim_to_be(name, tmp_path):
    marker = tmp_path / 'ran'
    ATTACKS[name](tmp_path / 'x.pth', marker)
    torch.load(tmp_path / 'x.pth', weights_only=False)
    assert marker.exists()


@pytest.mark.usefixtures('reader')
def test_a_dtype_takes_no_state_from_a_file(tmp_path):
    # With the state that the file brings, numpy would count, and free, what the numbers point at.
    forged_array(tmp_path / 'x.pth')
    array = load_from_local(str(tmp_path / 'x.pth'))['x']
    assert array.dtype == np.float64
    assert not array.dtype.hasobject
    assert array.dtype.flags == np.dtype('f8').flags


@pytest.mark.usefixtures('reader')
def test_the_functions_in_a_history_are_not_taken(tmp_path):
    buffer = history()
    own = dict(HistoryBuffer._statistics_methods)
    try:
        HistoryBuffer._statistics_methods['mean'] = torch.Tensor
        torch.save({'hub': buffer}, tmp_path / 'x.pth')
    finally:
        HistoryBuffer._statistics_methods.clear()
        HistoryBuffer._statistics_methods.update(own)
    found = load_from_local(str(tmp_path / 'x.pth'))['hub']
    assert type(found) is HistoryBuffer
    assert HistoryBuffer._statistics_methods == own
    assert found.statistics('mean') == 6.5 / 3


def test_the_stand_in_for_getattr_serves_history_buffer_alone():
    assert _getattr(_SavedHistory, 'mean') is HistoryBuffer.mean
    for obj, name in ((_SavedHistory, '__globals__'), (_SavedHistory, 'update'), (sys, 'exit'), (history(), 'mean')):
        with pytest.raises(pickle.UnpicklingError):
            _getattr(obj, name)


@pytest.mark.skipif(not hasattr(torch.serialization, 'get_safe_globals'), reason='this torch has no list of its own')
def test_the_allow_list_is_not_left_behind(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({'a': history()}, tmp_path / 'x.pth')
    load_from_local(str(tmp_path / 'x.pth'))
    assert set(torch.serialization.get_safe_globals()) == before


def test_every_scheme_of_mmengine_ends_in_our_loaders():
    modules = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
    assert modules == {'olor_mm.engine.loading', 'olor_mm.engine.vit_checkpoints'}


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


def test_a_damaged_download_is_named_where_it_is(server, tmp_path):
    torch.save({'a': torch.ones(1000)}, tmp_path / 'good.pth')
    cached = tmp_path / 'cache' / 'hub' / 'checkpoints' / 'good.pth'
    cached.parent.mkdir(parents=True)
    cached.write_bytes((tmp_path / 'good.pth').read_bytes()[:1500])
    with pytest.raises(
        BrokenCheckpointError, match=rf'{re.escape(server)}/good\.pth .*{re.escape(str(cached))}: remove'
    ):
        CheckpointLoader.load_checkpoint(f'{server}/good.pth', map_location='cpu', logger='silent')
    cached.unlink()
    assert 'a' in CheckpointLoader.load_checkpoint(f'{server}/good.pth', map_location='cpu', logger='silent')


@pytest.fixture
def known(server, tmp_path, monkeypatch):
    """MMEngine's lists of names: 'good' and 'evil' on this machine's server, and 'here' as a file."""
    names = {name: f'{server}/{name}.pth' for name in ('good', 'evil')}
    home = tmp_path / 'home'
    home.mkdir()
    (home / 'open_mmlab.json').write_text(json.dumps({**names, 'here': 'evil.pth'}))
    monkeypatch.setenv('MMENGINE_HOME', str(home))
    for table in ('get_torchvision_models', 'get_mmcls_models'):
        monkeypatch.setattr(f'olor_mm.engine.loading.{table}', lambda: names)
    torch.save({'state_dict': {'backbone.a': torch.ones(2), 'head.a': torch.ones(1)}}, tmp_path / 'good.pth')
    ATTACKS['os.system'](tmp_path / 'evil.pth', tmp_path / 'ran')
    (home / 'evil.pth').write_bytes((tmp_path / 'evil.pth').read_bytes())
    return tmp_path / 'ran'


@pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls'])
def test_names_of_mmengine_load_as_files_do(scheme, known):
    found = CheckpointLoader.load_checkpoint(f'{scheme}://good', map_location='cpu', logger='silent')['state_dict']
    assert list(found) == (['a'] if scheme == 'mmcls' else ['backbone.a', 'head.a'])
    assert Path(local_file(f'{scheme}://good')).name == 'good.pth'
    for name in ('evil', 'here') if 'open' in scheme else ('evil',):
        with pytest.raises(UnsafeCheckpointError, match='no code of it was run'):
            CheckpointLoader.load_checkpoint(f'{scheme}://{name}', map_location='cpu', logger='silent')
    with pytest.raises(FileNotFoundError, match=rf'{scheme}://goof: MMEngine knows no checkpoint .* did you mean good'):
        CheckpointLoader.load_checkpoint(f'{scheme}://goof', map_location='cpu', logger='silent')
    assert not known.exists()


@pytest.mark.parametrize('address', ['s3://bucket/x.pth', 'petrel://bucket/x.pth', 'cluster:s3://bucket/x.pth'])
def test_buckets_load_as_files_do(address, tmp_path, monkeypatch):
    ATTACKS['os.system'](tmp_path / 'evil.pth', tmp_path / 'ran')
    good = io.BytesIO()
    torch.save({'a': torch.ones(2)}, good)
    content = {'petrel': good.getvalue()}

    monkeypatch.setattr('olor_mm.engine.loading.get', lambda _, backend_args: content[backend_args['backend']])
    found = CheckpointLoader.load_checkpoint(address, map_location='cpu', logger='silent')
    assert torch.equal(found['a'], torch.ones(2))
    assert last_loaded() == address
    content['petrel'] = (tmp_path / 'evil.pth').read_bytes()
    with pytest.raises(UnsafeCheckpointError, match=re.escape(address)):
        CheckpointLoader.load_checkpoint(address, map_location='cpu', logger='silent')
    assert not (tmp_path / 'ran').exists()


def test_pavi_says_what_it_needs():
    with pytest.raises(ImportError, match=r'pavi://x needs the package pavi: give a file'):
        CheckpointLoader.load_checkpoint('pavi://x', map_location='cpu', logger='silent')


@pytest.mark.usefixtures('reader')
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


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'text',
        (2**62).to_bytes(8, 'little') + b'{}',
        (2).to_bytes(8, 'little') + b'[]',
        (64).to_bytes(8, 'little') + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,4]}}    ' + bytes(4),
        (64).to_bytes(8, 'little') + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,-4]}}         ' + bytes(4),
    ],
)
def test_a_broken_safetensors_file_is_named(content, tmp_path):
    pytest.importorskip('safetensors.torch')
    file = tmp_path / 'broken.safetensors'
    file.write_bytes(content)
    with pytest.raises(BrokenCheckpointError, match=r'broken\.safetensors is no file of safetensors, or an incomplete'):
        load_from_local(str(file))
    with pytest.raises(BrokenCheckpointError, match=r'broken\.safetensors'):
        anchors_from_file(file, [('a', torch.ones(1))])


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth: no such checkpoint file'):
        load_from_local('nowhere.pth')


def test_a_folder_of_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is a folder.*strategy=dict\(type='olor_mm\.FSDPStrategy'\)"):
        load_from_local(str(tmp_path))
