"""--unpack: an archive is not trusted, nothing is overwritten, and an interrupted run goes on."""

import io
import os
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from olor_mm.tooling import InputError
from olor_mm.tooling.prepare import archives
from olor_mm.tooling.prepare.archives import unpack
from tests.test_tools._prepare_sets import MAKERS, Prepare, digests

ENDINGS = {'zip': 'zip', 'tar': 'tar', 'tgz': 'gztar', 'tar.gz': 'gztar', 'tar.xz': 'xztar', 'tar.bz2': 'bztar'}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    return Prepare(monkeypatch, capsys)


def write(file: Path, members: dict[str, bytes]) -> Path:
    """A zip or tar archive with these members, whatever their names."""
    if file.suffix == '.zip':
        with zipfile.ZipFile(file, 'w') as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return file
    with tarfile.open(file, 'w:gz' if file.name.endswith('gz') else 'w') as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.mark.parametrize('ending', ENDINGS)
def test_from_the_archive_to_ok(prepared: Prepare, tmp_path: Path, ending: str) -> None:
    spec = MAKERS['cub200'](tmp_path / 'packed' / 'CUB_200_2011')
    before = digests(tmp_path / 'packed')
    root = tmp_path / 'my data'
    root.mkdir()
    made = shutil.make_archive(str(tmp_path / 'made'), ENDINGS[ending], tmp_path / 'packed')
    archive = root / f'CUB_200_2011.{ending}'
    shutil.copy(made, archive)
    offered = prepared('--root', root, spec=spec)
    assert offered.code == 2
    assert archive.name in offered.err
    assert '--unpack' in offered.err
    unpacked = prepared('--root', root, '--unpack', spec=spec)
    assert unpacked.code == 0
    assert f'{len(before)} files written, 0 were there already' in unpacked.out
    assert f"--data-root '{root / 'CUB_200_2011'}'" in unpacked.out
    assert {**before, archive.name: digests(root)[archive.name]} == digests(root)
    again = prepared('--root', root, '--unpack', spec=spec)
    assert again.code == 0
    assert f'0 files written, {len(before)} were there already' in again.out


@pytest.mark.parametrize('ending', ['zip', 'tar', 'tgz'])
@pytest.mark.parametrize(
    'name', ['../evil.txt', 'a/../../evil.txt', '{tmp}/evil.txt', '..\\evil.txt', 'C:\\evil.txt', 'a/..']
)
def test_paths_that_lead_out(tmp_path: Path, ending: str, name: str) -> None:
    root = tmp_path / 'in' / 'root'
    root.mkdir(parents=True)
    # Where a test that fails leaves its file, nobody is harmed.
    name = name.format(tmp=tmp_path)
    archive = write(root / f'bad.{ending}', {'fine.txt': b'1', name: b'evil'})
    before = digests(tmp_path)
    with pytest.raises(InputError, match='leads out of the folder'):
        unpack(archive, root)
    assert digests(tmp_path) == before


def test_a_traversal_on_the_command_line(prepared: Prepare, tmp_path: Path) -> None:
    (tmp_path / 'root').mkdir()
    write(tmp_path / 'root' / 'images.zip', {'../evil.txt': b'evil'})
    found = prepared('pacs', '--root', tmp_path / 'root', '--unpack')
    assert found.code == 2
    assert "'../evil.txt'" in found.err
    assert not (tmp_path / 'evil.txt').exists()


@pytest.mark.parametrize('kind', ['zip link', 'link', 'hard link', 'fifo'])
def test_links_and_devices(tmp_path: Path, kind: str) -> None:
    if kind == 'zip link':
        archive = tmp_path / 'bad.zip'
        with zipfile.ZipFile(archive, 'w') as opened:
            info = zipfile.ZipInfo('images')
            info.external_attr = 0o120777 << 16
            opened.writestr(info, '/etc')
            opened.writestr('images/passwd', 'x')
    else:
        archive = tmp_path / 'bad.tar'
        with tarfile.open(archive, 'w') as opened:
            member = tarfile.TarInfo('images')
            member.type = {'link': tarfile.SYMTYPE, 'hard link': tarfile.LNKTYPE, 'fifo': tarfile.FIFOTYPE}[kind]
            member.linkname = '/etc/passwd'
            opened.addfile(member)
    with pytest.raises(InputError, match='data sets are files and folders'):
        unpack(archive, tmp_path)
    assert os.listdir(tmp_path) == [archive.name]


def test_nothing_is_overwritten(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['ip102'](tmp_path)
    (tmp_path / 'mine.txt').write_text('mine')
    (tmp_path / 'link.txt').symlink_to(tmp_path / 'nowhere')
    write(tmp_path / 'a.zip', {'mine.txt': b'theirs', 'link.txt': b'theirs', 'new.txt': b'theirs'})
    found = prepared('--root', tmp_path, '--unpack', spec=spec)
    assert found.code == 1
    assert 'mine.txt: has not the size that a.zip gives; left as it is' in found.out
    assert (tmp_path / 'mine.txt').read_text() == 'mine'
    assert (tmp_path / 'link.txt').is_symlink()
    assert not (tmp_path / 'nowhere').exists()
    assert (tmp_path / 'new.txt').read_text() == 'theirs'


@pytest.mark.parametrize('ending', ['zip', 'tgz'])
def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    members = {f'images/{number}.jpg': bytes([number]) * 5000 for number in range(9)}
    archive = write(tmp_path / f'a.{ending}', members)
    root = tmp_path / 'root'
    root.mkdir()
    real, calls = os.replace, []

    def fourth_stops(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(archives.os, 'replace', fourth_stops)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root)
    assert sorted(path.name for path in (root / 'images').iterdir()) == ['0.jpg', '1.jpg', '2.jpg']
    assert unpack(archive, root) == (6, 3, [])
    assert {name: (root / name).read_bytes() for name in members} == members


@pytest.mark.parametrize('ending', ['zip', 'tar', 'tgz'])
@pytest.mark.parametrize('damage', ['cut', 'text', 'bit'])
def test_damaged_archives(tmp_path: Path, ending: str, damage: str) -> None:
    noise = os.urandom(20000)
    archive = write(tmp_path / f'a.{ending}', {'1.jpg': noise, '2.jpg': noise[::-1]})
    content = bytearray(archive.read_bytes())
    content[10000] ^= 0xFF
    archive.write_bytes({'cut': bytes(content[:30000]), 'text': b'<html>404</html>', 'bit': bytes(content)}[damage])
    root = tmp_path / 'root'
    root.mkdir()
    if (ending, damage) == ('tar', 'bit'):
        # A tar archive has no check sums of what it holds: decoding finds it.
        assert unpack(archive, root)[0] == 2
        return
    with pytest.raises(InputError, match='download it again'):
        unpack(archive, root)
    assert not [path for path in root.iterdir() if path.name.startswith('.')]


def test_litter_is_left_out(tmp_path: Path) -> None:
    litter = ['__MACOSX/a/._1.jpg', 'a/._1.jpg', 'a/.DS_Store', 'a/Thumbs.db']
    archive = write(tmp_path / 'a.zip', {'a/1.jpg': b'1', **dict.fromkeys(litter, b'x')})
    (tmp_path / 'root').mkdir()
    assert unpack(archive, tmp_path / 'root') == (1, 0, [])
    assert digests(tmp_path / 'root').keys() == {'a/1.jpg'}


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / 'a.zip', {'a/1.jpg': bytes(1000)})
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda folder: usage(999, 0, 999))
    with pytest.raises(InputError, match='does not fit'):
        unpack(archive, tmp_path)
    assert not (tmp_path / 'a').exists()


def test_a_file_where_a_folder_has_to_be(tmp_path: Path) -> None:
    archive = write(tmp_path / 'a.zip', {'a/1.jpg': b'1'})
    (tmp_path / 'a').touch()
    with pytest.raises(InputError, match='cannot be unpacked'):
        unpack(archive, tmp_path)


def test_nothing_to_unpack(prepared: Prepare, tmp_path: Path) -> None:
    spec = MAKERS['ip102'](tmp_path)
    found = prepared('--root', tmp_path, '--unpack', spec=spec)
    assert found.code == 0
    assert 'no archive' in found.out
