"""Nothing in the code that is shipped runs texts or reads files that could run: looked up in the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ('olor_mm', 'tools', 'benchmarks')
    for path in (REPO / folder).rglob('*.py')
    if '.mim' not in path.relative_to(REPO).parts
) + [REPO / 'setup.py']
SCRIPTS = sorted((REPO / 'tools').glob('*.sh'))

#: Calls by their names, the last part alone where it is the same under every import.
NEVER = {
    *('eval', 'exec', 'compile', 'execfile', 'input'),
    *('os.system', 'os.popen', 'os.startfile', 'subprocess.getoutput', 'subprocess.getstatusoutput', 'pty.spawn'),
    *('pickle.load', 'pickle.loads', 'cPickle.load', 'cPickle.loads', 'dill.load', 'dill.loads', 'cloudpickle.load'),
    *('cloudpickle.loads', 'joblib.load', 'marshal.load', 'marshal.loads', 'shelve.open', 'pandas.read_pickle'),
    *('pd.read_pickle', 'torch.jit.load', 'torch.hub.load', 'torch.hub.load_state_dict_from_url', 'load_url'),
    *('torch.package.PackageImporter', 'yaml.unsafe_load', 'yaml.full_load', 'tempfile.mktemp', 'os.tempnam'),
    *('extractall', 'shutil.unpack_archive'),
}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f'{_name(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else '?'


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def unsafe_calls(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of each call that must not be there."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        last = name.rpartition('.')[2]
        if name in NEVER or last in ('extractall', 'load_url'):
            yield node.lineno, name
        if 'shell' in options and not _is(options['shell'], False):
            yield node.lineno, 'shell='
        if name == '__import__' and not isinstance(node.args[0], ast.Constant):
            yield node.lineno, '__import__ of a value'
        if name == 'torch.load':
            restricted = isinstance(options.get('pickle_module'), ast.Name)
            if not _is(options.get('weights_only'), True) and not restricted:
                yield node.lineno, 'torch.load without weights_only=True'
        if name in ('np.load', 'numpy.load') and not (
            'allow_pickle' not in options or _is(options['allow_pickle'], False)
        ):
            yield node.lineno, 'numpy.load with allow_pickle'
        if name == 'yaml.load' and _name(options.get('Loader') or node.args[-1]) != 'yaml.SafeLoader':
            yield node.lineno, 'yaml.load'


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.relative_to(REPO).as_posix())
def test_no_call_runs_a_text_or_a_file(file: Path) -> None:
    assert not list(unsafe_calls(file.read_text(encoding='utf-8')))


def test_only_the_reader_of_weights_unpickles() -> None:
    """A subclass of Unpickler, and torch's load, have one place each."""
    found = {'torch.load': set(), 'Unpickler': set()}
    for file in FILES:
        tree = ast.parse(file.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) == 'torch.load':
                found['torch.load'].add(file.relative_to(REPO).as_posix())
            if isinstance(node, ast.ClassDef) and any(_name(base) == 'pickle.Unpickler' for base in node.bases):
                found['Unpickler'].add(file.relative_to(REPO).as_posix())
    assert found['Unpickler'] == {'olor_mm/tooling/prepare/arrays.py'}
    assert 'olor_mm/rollback/_files.py' in found['torch.load']


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.name)
def test_no_script_evaluates_a_text(script: Path) -> None:
    code = '\n'.join(line for line in script.read_text(encoding='utf-8').splitlines() if not line.startswith('#'))
    assert 'set -euo pipefail' in code
    assert 'eval' not in code
    assert '`' not in code
    assert '-c "' not in code


@pytest.mark.parametrize(
    ('source', 'said'),
    [
        ('eval(x)', 'eval'),
        ('os.system(x)', 'os.system'),
        ('subprocess.run(x, shell=True)', 'shell='),
        ('subprocess.run(x, shell=y)', 'shell='),
        ('torch.load(x)', 'torch.load without weights_only=True'),
        ('torch.load(x, weights_only=False)', 'torch.load without weights_only=True'),
        ('np.load(x, allow_pickle=True)', 'numpy.load with allow_pickle'),
        ('yaml.load(x, Loader=yaml.Loader)', 'yaml.load'),
        ('pickle.loads(x)', 'pickle.loads'),
        ('tar.extractall(x)', 'tar.extractall'),
        ('__import__(x)', '__import__ of a value'),
    ],
)
def test_what_must_not_be_there_is_seen(source: str, said: str) -> None:
    assert [reason for _, reason in unsafe_calls(source)] == [said]


@pytest.mark.parametrize(
    'source',
    ['re.compile(x)', 'torch.load(x, weights_only=True)', 'np.load(x)', 'json.load(x)', '__import__("olor_mm")'],
)
def test_what_may_be_there_is_not(source: str) -> None:
    assert not list(unsafe_calls(source))
