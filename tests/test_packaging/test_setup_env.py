"""The set-up behind `make`: stamps, what an interrupted pip leaves, mmcv without operators, what the user is told."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/setup_env.py as a module, its parts as attributes of the names that they have there."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import setup_env

    return setup_env


def add_dist(site: Path, name: str, version: str = '1.0', files: tuple[str, ...] = (), record: bool = True) -> None:
    info = site / f'{name}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Name: {name}\n')
    if record:
        (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in (f'{info.name}/METADATA', *files)))


@pytest.fixture
def environment(parts: ModuleType, tmp_path: Path):
    """An environment as the set-up sees it, without an interpreter that would run."""
    made = parts.Environment(tmp_path / '.venv')
    made.python.parent.mkdir(parents=True)
    made.python.touch()
    (made.folder / 'pyvenv.cfg').write_text('home = /usr/bin\nversion = 3.11.7\n')
    made.site().mkdir(parents=True)
    return made


def test_sweep_forgets_what_a_killed_pip_left(parts: ModuleType, environment) -> None:
    site = environment.site()
    (site / 'whole.py').touch()
    (site / '~orch').mkdir()
    add_dist(site, 'whole', files=('whole.py', '__pycache__/whole.cpython-311.pyc'))
    add_dist(site, 'unfinished', record=False)
    add_dist(site, 'plundered', files=('plundered.py',))
    assert sorted(parts.sweep(site)) == ['plundered-1.0', 'unfinished-1.0']
    assert environment.installed() == {'whole': '1.0'}
    assert not (site / '~orch').exists()


def test_a_step_is_fresh_until_its_key_or_a_version_changes(environment) -> None:
    add_dist(environment.site(), 'Some_Thing')
    assert not environment.fresh('step', 'key')
    environment.write_stamp('step', 'key', ['some-thing'])
    assert environment.fresh('step', 'key')
    assert not environment.fresh('step', 'another key')
    (environment.site() / 'Some_Thing-1.0.dist-info').rename(environment.site() / 'Some_Thing-2.0.dist-info')
    assert not environment.fresh('step', 'key')


def test_a_torn_stamp_is_no_stamp(environment) -> None:
    environment.write_stamp('step', 'key', [])
    (environment.state / 'step.json').write_text('{"key": "k')
    assert not environment.fresh('step', 'key')


class Answers:
    """Stands for `Environment.ask`: the operators fail as often as told."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if '--need' not in arguments:
            return subprocess.CompletedProcess(arguments, 0, stdout='0 0\n', stderr='')
        self.failures -= 1
        text = "mmcv: built without its operators (No module named 'mmcv._ext')\n" if self.failures >= 0 else ''
        return subprocess.CompletedProcess(arguments, int(bool(text)), stdout=text, stderr='')


@pytest.mark.parametrize(
    ('failures', 'built_for', 'calls', 'error'),
    [
        (0, '', ['cached'], False),
        (0, '2.11.0', ['cached'], False),
        (0, '2.10.0', ['anew'], False),  # the operators of another torch may import and yet be wrong
        (1, '', ['cached', 'anew'], False),
        (2, '', ['cached', 'anew'], True),
    ],
)
def test_mmcv_without_operators_is_compiled_anew_or_stops_the_set_up(
    parts: ModuleType, environment, monkeypatch, failures: int, built_for: str, calls: list[str], error: bool
) -> None:
    made: list[str] = []
    torch_now = {'torch': '2.11.0'}
    monkeypatch.setattr(environment, 'installed', lambda: torch_now)
    monkeypatch.setattr(environment, 'stamp', lambda step: {'torch': built_for})
    monkeypatch.setattr(environment, 'ask', Answers(failures))

    def pip_install(step: str, *arguments: str, **env: str) -> None:
        assert env['MMCV_WITH_OPS'] == '1'
        assert '--no-build-isolation' in arguments
        made.append('anew' if '--no-cache-dir' in arguments else 'cached')

    monkeypatch.setattr(environment, 'pip_install', pip_install)
    (step,) = (step for step in parts.steps() if step.name == 'mmcv')
    if error:
        with pytest.raises(parts.SetupError, match=r'(?s)built without its operators.*MAX_JOBS=1.*run this again'):
            step.run(environment)
    else:
        step.run(environment)
    assert made == calls


@pytest.mark.parametrize('name', ['openmmlab', 'openmim'])
def test_what_would_move_other_packages_is_installed_without_its_dependencies(
    parts: ModuleType, environment, monkeypatch, name: str
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(environment, 'pip_install', lambda step, *arguments: calls.append(arguments))
    (step,) = (step for step in parts.steps() if step.name == name)
    step.run(environment)
    ((*arguments,),) = calls
    assert '--no-deps' in arguments
    assert {str(file) for file in step.inputs} <= set(arguments)


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('openmim 0.3.9 requires opendatalab, which is not installed.', False),
        ('mmengine 0.10.7 requires opencv-python, which is not installed.', False),
        ('requests 2.34.2 requires urllib3, which is not installed.', True),
    ],
)
def test_only_what_is_not_left_out_on_purpose_is_reported(
    parts: ModuleType, environment, monkeypatch, capsys, line: str, said: bool
) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        checks = 'check' in arguments
        return subprocess.CompletedProcess(arguments, int(checks), stdout=f'{line}\n' if checks else '', stderr='')

    monkeypatch.setattr(environment, 'ask', ask)
    (step,) = (step for step in parts.steps() if step.name == 'check')
    step.run(environment)
    assert (line in capsys.readouterr().out) == said


def test_a_failing_step_names_its_log_and_the_likely_cause(parts: ModuleType, environment, monkeypatch) -> None:
    command = ['sh', '-c', 'echo "ERROR: No space left on device"; exit 3']
    with pytest.raises(parts.SetupError, match=r'(?s)status 3.*disk is full.*torch\.log.*No space left'):
        environment.run('torch', command, 'pip')


@pytest.mark.parametrize(
    ('can_venv', 'has_header', 'compiler', 'packages'),
    [
        (False, True, 'sh', 'python3.11-venv'),
        (True, False, 'sh', 'python3.11-dev'),
        (False, False, 'no-such-compiler', 'python3.11-venv python3.11-dev build-essential'),
        (True, True, 'sh', None),
    ],
)
def test_debians_packages_are_named_all_at_once(
    parts: ModuleType, monkeypatch, can_venv: bool, has_header: bool, compiler: str, packages: str | None
) -> None:
    monkeypatch.setenv('CXX', compiler)
    python = parts.Interpreter('/usr/bin/python3', (3, 11, 2), '/usr', can_venv, has_header)
    if packages is None:
        parts.needed_of_the_host(python, make_venv=True, compile_mmcv=True)
    else:
        with pytest.raises(parts.SetupError, match=rf'apt-get install {packages}$'):
            parts.needed_of_the_host(python, make_venv=True, compile_mmcv=True)


@pytest.mark.parametrize('name', ['/no/such/python', 'no-such-python', '/bin/true'])
def test_a_python_that_does_not_run_is_refused(parts: ModuleType, monkeypatch, name: str) -> None:
    monkeypatch.setenv('PYTHON', name)
    with pytest.raises(parts.SetupError, match=r'is no Python that runs.*3\.10, 3\.11 and 3\.12'):
        parts.named_python()


def test_an_environment_of_others_is_not_removed(parts: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / '.venv'
    folder.mkdir()
    (folder / 'theirs').touch()
    base = parts.Interpreter('/usr/bin/python3', (3, 11, 2), '/usr', True, True)
    with pytest.raises(parts.SetupError, match='was not made by this set-up'):
        parts.make_venv(parts.Environment(folder), base, keep=False)
    assert (folder / 'theirs').exists()


def test_an_interrupted_clearing_can_be_repeated(parts: ModuleType, environment, monkeypatch) -> None:
    environment.write_stamp('torch', 'key', [])
    base = parts.Interpreter('/usr/bin/python3', (3, 12, 1), '/usr', True, True)

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.shutil, 'rmtree', interrupted)
        with pytest.raises(KeyboardInterrupt):
            parts._clear(environment, base)
    assert not environment.fresh('torch', 'key')
    parts._clear(environment, base)
    assert list(environment.folder.iterdir()) == [environment.state]


CHILD = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {tools!r})
from _setup.process import run_logged
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
run_logged(['sh', '-c', 'sleep 60 & echo $! $$; wait'], Path({log!r}), {{'PATH': '/usr/bin:/bin'}})
"""


def test_an_interrupted_step_leaves_no_process_behind(tmp_path: Path) -> None:
    log = tmp_path / 'step.log'
    code = CHILD.format(tools=str(ROOT / 'tools'), log=str(log))
    child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL)
    for _ in range(100):
        numbers = re.findall(r'^(\d+) (\d+)$', log.read_text() if log.exists() else '', re.MULTILINE)
        if numbers:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == 143
    for number in map(int, numbers[0]):
        state = Path(f'/proc/{number}/stat')
        assert not state.exists() or ' Z ' in state.read_text(), f'{number} still runs'


def test_a_second_set_up_waits_for_the_first(parts: ModuleType, tmp_path: Path, capfd) -> None:
    code = (
        f'import sys; sys.path.insert(0, {str(ROOT / "tools")!r})\n'
        'from pathlib import Path; from _setup.host import Lock\n'
        f'with Lock(Path({str(tmp_path / "lock")!r})): print("in", flush=True); sys.stdin.read()'
    )
    first = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == 'in\n'
    second = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert f'process {first.pid}' in second.stdout.readline()
    first.communicate()
    assert second.stdout.readline() == 'in\n'
    assert second.wait(timeout=30) == 0
    second.stdout.close()


def test_every_requirement_is_pinned(parts: ModuleType) -> None:
    from _setup.environment import required_names

    folder = ROOT / 'requirements'
    pinned = set(required_names(folder / 'constraints.txt'))
    for file in folder.glob('*.txt'):
        loose = set(required_names(file)) - pinned
        exact = set(re.findall(r'^([a-z]+)==', file.read_text(), re.MULTILINE))
        assert loose <= exact, f'{file.name}: no version for {sorted(loose - exact)}'


def test_the_checker_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-S', str(ROOT / 'tools' / 'check_env.py'), '--need', 'lint'],
        capture_output=True,
        text=True,
        check=False,
        env={'PATH': os.environ['PATH']},
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == ['ruff: not installed', 'mypy: not installed']


@pytest.mark.slow
@pytest.mark.parametrize('variable', ['PYTHON', 'VIRTUAL_ENV'])
def test_an_environment_that_has_the_packages_is_used_as_it_is(tmp_path: Path, variable: str) -> None:
    shutil.copytree(ROOT / 'tools', tmp_path / 'tools', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    shutil.copy(ROOT / 'Makefile', tmp_path)
    (tmp_path / 'setup.py').touch()
    (tmp_path / 'pyproject.toml').touch()
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHON', 'VIRTUAL_ENV', 'CONDA_PREFIX', 'MAKEFLAGS')}
    env[variable] = sys.executable if variable == 'PYTHON' else sys.prefix
    done = subprocess.run(['make', 'setup'], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    if sys.prefix == sys.base_prefix and variable == 'VIRTUAL_ENV':
        pytest.skip('these tests run in no virtual environment')
    assert done.returncode == 0, done.stdout + done.stderr
    # A make inside of `make test` also says which folder it enters.
    assert f'environment: {sys.prefix}' in done.stdout
    assert not (tmp_path / '.venv').exists()


SUMMARY = '===== 3 passed in 0.10s ====='


@pytest.mark.parametrize(
    ('lint', 'tests', 'summary', 'status', 'last'),
    [
        (0, 0, SUMMARY, 0, SUMMARY),
        (2, 0, SUMMARY, 1, SUMMARY),
        (0, 2, '===== 1 failed, 2 passed in 61.20s (0:01:01) =====', 1, None),
        (0, 2, '===== no tests ran in 0.01s =====', 1, None),
        (0, 0, '3 passed, 1 skipped in 0.10s', 0, None),  # pytest -q
        (0, 0, '', 1, 'no tests were run'),
    ],
)
def test_the_ci_script_ends_with_the_summary_and_the_right_status(
    tmp_path: Path, lint: int, tests: int, summary: str, status: int, last: str | None
) -> None:
    (tmp_path / '.ci').mkdir()
    shutil.copy(ROOT / '.ci' / 'run', tmp_path / '.ci')
    make = tmp_path / 'bin' / 'make'
    make.parent.mkdir()
    make.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        f'lint) exit {lint};;\n'
        f"test) echo '{summary}'; test {tests} -eq 0 || echo 'make: *** [test] Error' >&2; exit {tests};;\nesac\n"
    )
    make.chmod(0o755)
    env = {**os.environ, 'PATH': f'{make.parent}{os.pathsep}{os.environ["PATH"]}'}
    done = subprocess.run([tmp_path / '.ci' / 'run'], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == (last or summary)
