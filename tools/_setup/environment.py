"""The ``.venv`` folder: its stamps, what is installed in it, and what an interrupted pip left there."""

from __future__ import annotations

import configparser
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from .process import SetupError, run_logged, tail

# A user's settings that would send pip's work elsewhere than to .venv, or other packages into it.
UNWANTED = (
    'PYTHONPATH',
    'PYTHONHOME',
    'PIP_USER',
    'PIP_TARGET',
    'PIP_PREFIX',
    'PIP_ROOT',
    'PIP_PYTHON',
    'CONDA_PREFIX',
)


def normal(name: str) -> str:
    """A distribution's name as the index compares it: ``Pre_commit.Hooks`` is ``pre-commit-hooks``."""
    return re.sub(r'[-_.]+', '-', name).lower()


class Environment:
    """One virtual environment and the set-up's state inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / 'bin' / 'python'
        self.state = folder / '.setup'
        self.lock_descriptor: int | None = None

    # -- what is there ------------------------------------------------------------------------------------------------

    def version(self) -> str:
        """``'3.11.7'`` from pyvenv.cfg; empty where there is no complete environment."""
        parser = configparser.ConfigParser()
        try:
            parser.read_string('[venv]\n' + (self.folder / 'pyvenv.cfg').read_text(encoding='utf-8'))
        except (OSError, configparser.Error):
            return ''
        return parser.get('venv', 'version', fallback='') if self.python.exists() else ''

    def site(self) -> Path:
        return self.folder / 'lib' / f'python{".".join(self.version().split(".")[:2])}' / 'site-packages'

    def installed(self) -> dict[str, str]:
        """Name to version of every distribution, read from folder names alone: that takes milliseconds."""
        found = (re.fullmatch(r'(.+)-([^-]+)\.dist-info', path.name) for path in self.site().glob('*.dist-info'))
        return {normal(match[1]): match[2] for match in found if match}

    # -- stamps -------------------------------------------------------------------------------------------------------

    def stamp(self, step: str) -> dict:
        try:
            return json.loads((self.state / f'{step}.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}

    def fresh(self, step: str, key: str) -> bool:
        """Whether ``step`` succeeded with this key and what it installed is still there, in the same versions."""
        stamp = self.stamp(step)
        if stamp.get('key') != key:
            return False
        installed = self.installed()
        return all(installed.get(name) == version for name, version in stamp.get('dists', {}).items())

    def write_stamp(self, step: str, key: str, names: list[str]) -> None:
        """Writes it whole or not at all: a rename is atomic."""
        installed = self.installed()
        stamp = {'key': key, 'dists': {name: installed[name] for name in names if name in installed}}
        stamp['torch'] = installed.get('torch', '')
        self.state.mkdir(parents=True, exist_ok=True)
        new = self.state / f'{step}.json.new'
        new.write_text(json.dumps(stamp, indent=1), encoding='utf-8')
        os.replace(new, self.state / f'{step}.json')

    # -- work ---------------------------------------------------------------------------------------------------------

    def child_env(self, **more: str) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key not in UNWANTED}
        # torch looks for ninja on the path when it compiles.
        env['PATH'] = f'{self.python.parent}{os.pathsep}{env.get("PATH", os.defpath)}'
        env.update(VIRTUAL_ENV=str(self.folder), PYTHONNOUSERSITE='1', PIP_DISABLE_PIP_VERSION_CHECK='1')
        return {**env, **more}

    def log(self, step: str) -> Path:
        return self.state / 'logs' / f'{step}.log'

    def run(self, step: str, command: list[str], what: str, **more_env: str) -> None:
        """Runs a command of a step; its output goes to the step's log.

        Raises:
            SetupError: If it fails, with the log's end and, where the log tells, the likely cause.
        """
        log = self.log(step)
        keep_open = () if self.lock_descriptor is None else (self.lock_descriptor,)
        status = run_logged(command, log, self.child_env(**more_env), keep_open)
        if status:
            hint = _hint(status, log)
            raise SetupError(f'{what} failed (exit status {status}).{hint} The log is {log}; its end:\n{tail(log)}')

    def pip_install(self, step: str, *arguments: str, **more_env: str) -> None:
        sweep(self.site())
        command = [str(self.python), '-m', 'pip', 'install', '--no-input', *arguments]
        self.run(step, command, 'pip install', **more_env)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A short question to the environment's Python."""
        command = [str(self.python), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.child_env(), check=False)


def _hint(status: int, log: Path) -> str:
    if status in (-9, 137):
        return ' It was killed, as when memory runs out: try MAX_JOBS=1.'
    text = tail(log, 60)
    for pattern, hint in (
        ('No space left', ' The disk is full (TMPDIR moves the temporary files).'),
        (
            'Temporary failure in name resolution|Network is unreachable|ConnectionError|'
            'Connection (refused|timed out)|Max retries exceeded|NewConnectionError|ReadTimeoutError',
            ' The package index cannot be reached: see to the network, or to PIP_INDEX_URL and PIP_PROXY.',
        ),
        ('No matching distribution', ' The index that pip uses has no such version: see PIP_INDEX_URL, TORCH_INDEX.'),
        ('Killed|out of memory', ' Memory ran out: try MAX_JOBS=1.'),
    ):
        if re.search(pattern, text):
            return hint
    return ''


def file_key(*parts: object) -> str:
    """A hash of files' contents and of anything else that has a text."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(len(content).to_bytes(8, 'big') + content)
    return digest.hexdigest()


def required_names(file: Path) -> list[str]:
    """The distributions that a requirements file names itself, without the files that it includes."""
    lines = (line.split('#')[0].strip() for line in file.read_text(encoding='utf-8').splitlines())
    found = (re.match(r'[A-Za-z0-9][A-Za-z0-9._-]*', line) for line in lines)
    return [normal(match[0]) for match in found if match]


def sweep(site: Path) -> list[str]:
    """Forgets distributions whose files are not all there, so that pip installs them again; returns their names.

    pip writes a distribution's RECORD last. A killed pip leaves one without it, which it then takes for installed, or
    folders that start with ``~`` from an uninstallation.
    """
    broken = []
    for path in site.glob('~*'):
        shutil.rmtree(path, ignore_errors=True)
    for info in site.glob('*.dist-info'):
        if not _complete(info):
            broken.append(info.name[: -len('.dist-info')])
            shutil.rmtree(info)
    return broken


def _complete(info: Path) -> bool:
    try:
        with (info / 'RECORD').open(encoding='utf-8', newline='') as file:
            names = [row[0] for row in csv.reader(file) if row]
    except OSError:
        return False
    site = str(info.parent)
    return (info / 'METADATA').is_file() and all(
        os.path.lexists(os.path.join(site, name)) for name in names if not name.endswith('.pyc')
    )
