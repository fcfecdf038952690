"""A checkpoint that was changed after it was written never loads as if it had not been."""

import io
import random
import zipfile

import pytest
import torch

from olor_mm.engine import BrokenCheckpointError, load_from_local
from olor_mm.engine.integrity import damage, newest_whole
from olor_mm.tooling.weights import check_file

SAVED = {
    'state_dict': {'a': torch.arange(3000.0), 'b': torch.zeros(7, dtype=torch.int64)},
    'meta': {'epoch': 3, 'cfg': 'lr = 0.1\n' * 20},
}


def written():
    stream = io.BytesIO()
    torch.save(SAVED, stream)
    return stream.getvalue()


def positions(data):
    """Every byte of the headers, the pickle and the table of contents would be many: a seeded choice, and the edges."""
    draw = random.Random(0)
    edges = [0, 1, 30, len(data) - 1, len(data) - 20, len(data) - 30]
    inside = [data.index(SAVED['state_dict']['a'].numpy().tobytes()) + k for k in (0, 1, 7000)]
    return edges + inside + [draw.randrange(len(data)) for _ in range(200)]


def test_a_flipped_bit_is_found_or_harmless(tmp_path):
    data, file, refused = written(), tmp_path / 'x.pth', 0
    for position in positions(data):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        try:
            found = load_from_local(str(file), 'cpu')
        except BrokenCheckpointError:
            refused += 1
            continue
        # Padding and dates in headers may change.
        assert found['meta'] == SAVED['meta']
        assert all(torch.equal(found['state_dict'][name], value) for name, value in SAVED['state_dict'].items())
    assert refused > 100


def test_torch_alone_takes_a_flipped_bit_for_a_weight(tmp_path):
    """The reason for the check; it may go where torch makes it itself."""
    data = bytearray(written())
    data[data.index(SAVED['state_dict']['a'].numpy().tobytes()) + 4003] ^= 1
    (tmp_path / 'x.pth').write_bytes(data)
    assert damage(tmp_path / 'x.pth') is not None
    try:
        found = torch.load(tmp_path / 'x.pth', weights_only=True)
    except RuntimeError:
        pytest.skip(f'torch {torch.__version__} looks at the checksums itself')
    assert not torch.equal(found['state_dict']['a'], SAVED['state_dict']['a'])


@pytest.mark.parametrize('part', [0, 1, 100, 5000, -1])
def test_a_file_that_was_cut_off(part, tmp_path):
    (tmp_path / 'x.pth').write_bytes(written()[:part])
    with pytest.raises(BrokenCheckpointError, match=r'x\.pth'):
        load_from_local(str(tmp_path / 'x.pth'))


def test_files_without_checksums_load(tmp_path):
    torch.save(SAVED, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert damage(tmp_path / 'old.pth') is None
    assert load_from_local(str(tmp_path / 'old.pth'))['meta'] == SAVED['meta']
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this torch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(SAVED, tmp_path / 'none.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / 'none.pth') as archive:
        assert archive.testzip() is not None
    assert damage(tmp_path / 'none.pth') is None
    assert load_from_local(str(tmp_path / 'none.pth'))['meta'] == SAVED['meta']


def test_the_newest_whole_one(tmp_path):
    files = [tmp_path / name for name in ('gone.pth', 'empty.pth', 'cut.pth', 'whole.pth', 'older.pth')]
    for file, content in zip(files[1:], (b'', written()[:-50], written(), written()), strict=True):
        file.write_bytes(content)
    found, wrong = newest_whole(files)
    assert found == files[3]
    assert wrong == dict(zip(files, ('it is missing', 'it is empty', 'its end is missing'), strict=False))
    assert newest_whole(files[:2])[0] is None


def test_a_folder_of_shards(tmp_path):
    (tmp_path / 'shards').mkdir()
    assert 'empty' in damage(tmp_path / 'shards')
    for rank in range(2):
        (tmp_path / 'shards' / f'rank{rank}.pth').write_bytes(written())
    assert damage(tmp_path / 'shards') is None
    (tmp_path / 'shards' / 'rank1.pth').write_bytes(written()[:-50])
    assert damage(tmp_path / 'shards') == 'rank1.pth: its end is missing'


def test_a_shard_that_is_missing(tmp_path):
    for rank in (0, 2):
        (tmp_path / f'rank{rank}.pth').write_bytes(written())
    assert damage(tmp_path) == 'rank1.pth: it is missing'


def test_a_shard_with_a_number_beyond_all_bounds(tmp_path):
    (tmp_path / 'rank99999999999999.pth').write_bytes(written())
    assert damage(tmp_path) == 'rank0.pth: it is missing'


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, 'Permission denied')

    (tmp_path / 'x.pth').write_bytes(written())
    monkeypatch.setattr('pathlib.Path.open', refused)
    assert damage(tmp_path / 'x.pth') == 'it cannot be read (Permission denied)'


def test_a_safetensors_file_may_begin_as_a_zip_archive_does(tmp_path):
    """With the length of its header, which is 'PK' in one file of many."""
    save_file = pytest.importorskip('safetensors.torch').save_file
    file = tmp_path / 'x.safetensors'
    save_file({'a': torch.ones(2)}, file, metadata={'fill': ''})
    length = int.from_bytes(file.read_bytes()[:8], 'little')
    save_file({'a': torch.ones(2)}, file, metadata={'fill': 'x' * (int.from_bytes(b'PK', 'little') - length)})
    assert file.read_bytes()[:2] == b'PK'
    assert damage(file) is None
    check_file(str(file), 'the file')
    assert torch.equal(load_from_local(str(file))['state_dict']['a'], torch.ones(2))
