"""What is built and installed: wheel, sdist and editable, into environments that pip must leave as they are.

Everything is built from a copy of the checkout, without network: `--no-build-isolation --no-deps`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip('setuptools', minversion='64')
pytest.importorskip('wheel')

ROOT = Path(__file__).resolve().parents[2]
# What git does not track and a build must not depend on.
NOT_COPIED = shutil.ignore_patterns(
    '.git',
    '.venv*',
    '.mim',
    'build',
    'dist',
    '*.egg-info',
    '__pycache__',
    'work_dirs',
    'data',
    '.*_cache',
    '.hypothesis',
)
# They make environments for a checkout, and stay there.
MAKERS = ('tools/_setup/', 'tools/setup_env.py', 'tools/_matrix/', 'tools/matrix.py')
CONFIG = 'packaging_probe.py'


def run_python(*arguments: str, cwd: Path, python: str = sys.executable, **env: str) -> str:
    """Runs Python away from this checkout and returns its output; a failure shows all of it."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith('PIP_') and k != 'PYTHONPATH'}
    environ = {**inherited, 'PIP_NO_INDEX': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_NO_INPUT': '1', **env}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f'{arguments} failed in {cwd}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}')
    return done.stdout


def build(source: Path, kind: str, out: Path) -> Path:
    """Builds through the PEP 517 hooks, as pip and build do, without isolation: no network."""
    out.mkdir(parents=True, exist_ok=True)
    code = f'from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))'
    return out / run_python('-c', code, cwd=source).splitlines()[-1]


@pytest.fixture(scope='module')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the checkout with one config more, ``packaging_probe.py``, that the tests look for and change."""
    copy = tmp_path_factory.mktemp('checkout') / 'olor_mm'
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    (copy / 'configs' / CONFIG).write_text('value = 1\n')
    return copy


@pytest.fixture(scope='module')
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, 'wheel', tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, 'sdist', tmp_path_factory.mktemp('sdist'))


# Distributions that stand for an environment's own: upstream's names and the fork's.
STACK = ('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain')
FORK = ('torch', 'torchvision', 'onedl-mmcv', 'onedl-mmengine', 'onedl-mmdetection', 'onedl-mmpretrain')
READ_CONFIG = (
    "import olor_mm, pathlib; print(olor_mm.__file__, pathlib.Path(olor_mm.cfg('packaging_probe')).read_text())"
)


def names_in(archive: Path) -> set[str]:
    if archive.suffix == '.whl':
        with zipfile.ZipFile(archive) as file:
            return set(file.namelist())
    with tarfile.open(archive) as file:
        return {name.split('/', 1)[1] for name in file.getnames() if '/' in name}


def mim_files(root: Path) -> set[str]:
    """What `.mim` should hold, from the checkout itself."""
    files = [path for name in ('configs', 'tools') for path in (root / name).rglob('*') if path.is_file()]
    kept = (path.relative_to(root).as_posix() for path in files if path.suffix != '.pyc')
    shipped = {name for name in kept if not name.startswith(MAKERS)}
    return {f'olor_mm/.mim/{name}' for name in shipped | {'model-index.yml'}}


def new_environment(folder: Path, stack: tuple[str, ...] = ()) -> Path:
    """A virtual environment that sees this one's setuptools and holds dummies of ``stack``; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / 'bin' / 'python'
    site = Path(
        run_python(
            '-c', "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder, python=str(python)
        ).strip()
    )
    import setuptools

    # Appended, not first: nothing of ours may shadow what is installed there.
    (site / 'builder.pth').write_text(str(Path(setuptools.__file__).resolve().parents[1]))
    for name in stack:
        info = site / f'{name.replace("-", "_")}-1.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (info / 'INSTALLER').write_text('dummy\n')
        (info / 'RECORD').write_text(f'{info.name}/METADATA,,\n{info.name}/INSTALLER,,\n{info.name}/RECORD,,\n')
    return python


def snapshot(python: Path) -> dict[str, float]:
    """Every file of the dummy distributions with its time of change."""
    site = next(python.parents[1].glob('lib/python*/site-packages'))
    return {str(path): path.stat().st_mtime for info in site.glob('*-1.0.dist-info') for path in info.iterdir()}


@pytest.mark.slow
def test_the_wheel_carries_configs_tools_index_typing_and_licence(wheel: Path, checkout: Path) -> None:
    names = names_in(wheel)
    assert {name for name in names if name.startswith('olor_mm/.mim/')} == mim_files(checkout)
    assert 'olor_mm/py.typed' in names
    assert any(name.endswith('LICENSE') for name in names)
    assert {name.split('/')[0] for name in names} == {'olor_mm', f'{wheel.name.split("-py3")[0]}.dist-info'}


@pytest.mark.slow
def test_the_sdist_carries_what_builds_it_again(sdist: Path, checkout: Path) -> None:
    names = names_in(sdist)
    assert mim_files(checkout) <= names
    assert {'setup.py', 'pyproject.toml', 'LICENSE', 'model-index.yml', 'configs/packaging_probe.py'} <= names
    assert not [name for name in names if name.startswith('.venv') or '__pycache__' in name]


@pytest.mark.slow
def test_the_metadata_requires_nothing_of_torch_or_openmmlab(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        metadata = Parser().parsestr(file.read(next(n for n in names_in(wheel) if n.endswith('METADATA'))).decode())
    required = metadata.get_all('Requires-Dist') or []
    assert [line for line in required if 'extra ==' not in line] == []
    assert not [line for line in required if line.startswith(('torch', 'mm', 'onedl', 'timm', 'opencv', 'numpy'))]
    assert metadata['Requires-Python'] == '>=3.10'


@pytest.mark.slow
@pytest.mark.parametrize('stack', [STACK, FORK], ids=['upstream', 'fork'])
@pytest.mark.parametrize('kind', ['wheel', 'sdist', 'folder', 'editable'])
def test_installing_leaves_the_stack_alone_and_finds_its_configs(
    kind: str, stack: tuple[str, ...], request: pytest.FixtureRequest, checkout: Path, tmp_path: Path
) -> None:
    python = new_environment(tmp_path / 'env', stack)
    before = snapshot(python)
    source = request.getfixturevalue(kind) if kind in ('wheel', 'sdist') else checkout
    what = ['-e', str(source)] if kind == 'editable' else [str(source)]
    # Dependencies are NOT switched off, and there is no index: anything that pip wanted to fetch would fail here.
    run_python('-m', 'pip', '--python', str(python), 'install', '--no-build-isolation', *what, cwd=tmp_path)
    assert snapshot(python) == before
    assert len(before) == 3 * len(stack)
    file, value = run_python('-c', READ_CONFIG, cwd=tmp_path, python=str(python)).strip().split(maxsplit=1)
    assert Path(file).is_relative_to(checkout) == (kind == 'editable')
    assert value == 'value = 1'


@pytest.mark.slow
def test_two_builds_with_a_change_between_give_the_new_config(checkout: Path, tmp_path: Path) -> None:
    source = tmp_path / 'source'
    shutil.copytree(checkout, source, ignore=NOT_COPIED)
    build(source, 'wheel', tmp_path / 'first')
    (source / 'configs' / CONFIG).write_text('value = 2\n')
    (source / 'configs' / 'another.py').write_text('')
    (source / 'olor_mm' / 'version.py').touch()
    second = build(source, 'wheel', tmp_path / 'second')
    (source / 'configs' / 'another.py').unlink()
    third = build(source, 'wheel', tmp_path / 'third')
    with zipfile.ZipFile(third) as file:
        assert file.read(f'olor_mm/.mim/configs/{CONFIG}').decode() == 'value = 2\n'
    assert 'olor_mm/.mim/configs/another.py' in names_in(second)
    assert 'olor_mm/.mim/configs/another.py' not in names_in(third)
    assert not (source / 'olor_mm' / '.mim').exists(), 'a build leaves no copies in the checkout'


@pytest.mark.slow
def test_an_editable_installation_links_and_is_never_out_of_date(checkout: Path, tmp_path: Path) -> None:
    source = tmp_path / 'source'
    shutil.copytree(checkout, source, ignore=NOT_COPIED)
    stale = source / 'olor_mm' / '.mim' / 'configs'
    stale.mkdir(parents=True)
    (stale / CONFIG).write_text('value = 0\n')
    run_python('setup.py', '-q', 'build_py', cwd=source)
    python = new_environment(tmp_path / 'env')
    command = ['-m', 'pip', '--python', str(python), 'install', '--no-build-isolation', '-e', str(source)]
    run_python(*command, cwd=tmp_path)
    (source / 'configs' / CONFIG).write_text('value = 3\n')
    assert stale.is_symlink()
    assert run_python('-c', READ_CONFIG, cwd=tmp_path, python=str(python)).strip().endswith('value = 3')
    wheel = build(source, 'wheel', tmp_path / 'wheel')
    with zipfile.ZipFile(wheel) as file:
        assert file.read(f'olor_mm/.mim/configs/{CONFIG}').decode() == 'value = 3\n'


def test_the_model_index_is_one_that_mim_can_read() -> None:
    loader = pytest.importorskip('modelindex.load_model_index')
    index = loader.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert [model.name for model in index.models] != []
    for model in index.models:
        assert model.in_collection in {collection.name for collection in index.collections}
        assert (ROOT / model.config).is_file(), f'{model.name}: {model.config} does not exist'
    # That the results are the paper's, and are marked as such, is tested in tests/test_tools/test_list_configs.py.
    assert not index.check(silent=True)
