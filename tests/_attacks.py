"""Checkpoint files that would run something where they are loaded without care: each touches a marker file."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class Evil:
    """Calls a function of the reader's when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class EvilModule(nn.Module):
    """A module pickled whole: its ``__setstate__`` is the reader's code, its class the writer's choice."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.marker = str(marker)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state['marker']).touch()
        self.__dict__.update(state)


def _save(value: Any) -> Callable[[Path, Path], None]:
    def write(file: Path, marker: Path) -> None:
        torch.save(value(marker), file)

    return write


def _in_place_of_data(data: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    """A file of torch.save whose pickle is written by hand, with what Python's own pickler never writes."""

    def write(file: Path, marker: Path) -> None:
        buffer = io.BytesIO()
        torch.save({'state_dict': {}}, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(file, 'w') as new:
            for item in old.namelist():
                new.writestr(item, data(marker) if item.endswith('data.pkl') else old.read(item))

    return write


def _text(text: str) -> bytes:
    return b'X' + len(text.encode()).to_bytes(4, 'little') + text.encode()


def _short(text: str) -> bytes:
    return b'\x8c' + bytes([len(text)]) + text.encode()


def _touch(marker: Path) -> str:
    return f'touch "{marker}"'


#: numpy's own functions for pickles, wherever this numpy keeps them.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float64(1).__reduce__()[0]

#: An empty HistoryBuffer on the stack, and an empty dict for its state.
_HISTORY = b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}'


def _dtype(code: str, order: str, names: Any, fields: Any, flags: int = 63) -> Any:
    """A dtype that declares its numbers to be pointers to objects."""
    return Evil(np.dtype, code, False, True, state=(3, order, None, names, fields, 8, 8, flags))


def _array(dtype: Any) -> Any:
    """Two elements of 8 bytes that point nowhere."""
    return Evil(_RECONSTRUCT, np.ndarray, (0,), b'b', state=(1, (2,), dtype, False, b'A' * 16))


def forged_array(file: Path) -> None:
    """An array whose dtype says of numbers that they are objects to be counted and freed."""
    torch.save({'x': _array(_dtype('f8', '<', None, None))}, file)


def _torchscript(file: Path, _: Path) -> None:
    class Program(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.jit.script(Program()).save(str(file))


def _legacy(file: Path, marker: Path) -> None:
    payload = {'state_dict': {'x': Evil(os.system, _touch(marker))}}
    torch.save(payload, file, _use_new_zipfile_serialization=False)


def _tar(file: Path, marker: Path) -> None:
    with tarfile.open(file, 'w') as tar:
        for name in ('storages', 'tensors', 'pickle'):
            data = pickle.dumps(Evil(os.system, _touch(marker)), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _tar_and_zip(file: Path, marker: Path) -> None:
    _tar(file, marker)
    with zipfile.ZipFile(file, 'a') as archive:
        archive.writestr('x', 'at the end')


def _plain_pickle(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps({'state_dict': Evil(os.system, _touch(marker))}))


def _magic_is_evil(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps(Evil(os.system, _touch(marker)), protocol=2) * 5)


#: Name to a function that writes the file: (file, marker).
ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    'exec': _save(lambda m: {'state_dict': {'x': Evil(exec, f'open({str(m)!r}, "w").close()')}}),
    'eval': _save(lambda m: {'state_dict': {'x': Evil(eval, f'open({str(m)!r}, "w").close()')}}),
    'os.system': _save(lambda m: {'state_dict': {'x': Evil(os.system, _touch(m))}}),
    'subprocess': _save(lambda m: {'state_dict': {'x': Evil(subprocess.call, ['touch', str(m)])}}),
    'Path.touch': _save(lambda m: {'state_dict': {'x': Evil(Path.touch, m)}}),
    'getattr chain': _in_place_of_data(
        lambda m: (
            b'\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\n'
            + _text('os')
            + b'\x85R'
            + _text('system')
            + b'\x86R'
            + _text(_touch(m))
            + b'\x85R.'
        )
    ),
    'the whole file': _save(lambda m: Evil(os.system, _touch(m))),
    'a key of a dict': _save(lambda m: {'state_dict': {('x', Evil(os.system, _touch(m))): 1}}),
    'optimizer state': _save(
        lambda m: {
            'state_dict': {'x': torch.ones(2)},
            'optimizer': {'state': {0: {'step': Evil(os.system, _touch(m))}}, 'param_groups': []},
        }
    ),
    'theta_0': _save(
        lambda m: {
            'state_dict': {},
            'optimizer': {'state': {0: {'rollback_anchor': Evil(os.system, _touch(m))}}, 'param_groups': []},
        }
    ),
    'meta': _save(lambda m: {'state_dict': {}, 'meta': {'cfg': Evil(os.system, _touch(m))}}),
    'a subclass of Tensor': _save(
        lambda m: {
            'state_dict': {'x': Evil(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (_touch(m),), {})}
        }
    ),
    'hooks of a parameter': _save(
        lambda m: {'state_dict': {'x': Evil(torch._utils._rebuild_parameter, Evil(os.system, _touch(m)), True, {})}}
    ),
    'metadata': _save(lambda m: {'state_dict': Evil(dict, [], state={'_metadata': Evil(os.system, _touch(m))})}),
    'statistics of a history': _in_place_of_data(
        lambda m: _HISTORY + _text('statistics_methods') + b'}' + _text('mean') + b'cposix\nsystem\nssb.'
    ),
    'methods of a history': _in_place_of_data(lambda m: _HISTORY + _text('update') + b'ctorch\nTensor\nsb.'),
    'numbers of a history': _in_place_of_data(
        lambda m: _HISTORY + _text('_log_history') + b'cposix\nsystem\n' + _text(_touch(m)) + b'\x85Rsb.'
    ),
    'numbers of a history that are none': _in_place_of_data(
        lambda m: _HISTORY + _text('_log_history') + b'ctorch\nTensor\nsb.'
    ),
    'an array of objects': _save(lambda m: {'x': np.array([Evil(os.system, _touch(m))], dtype=object)}),
    'an array of a dtype with pointers': _save(
        lambda _: {'x': _array(_dtype('f8', '|', ('a',), {'a': (np.dtype('O'), 0)}))}
    ),
    'a dtype of pointers': _save(lambda _: {'x': Evil(np.dtype, 'O')}),
    'a dtype by its text': _save(lambda _: {'x': Evil(np.dtype, 'f8,O')}),
    'a number of numpy that is none': _save(lambda _: {'x': Evil(_SCALAR, np.dtype('f8'), b'1234')}),
    'an array of another type': _save(lambda _: {'x': Evil(_RECONSTRUCT, np.matrix, (0,), b'b')}),
    'a call of numpy.ndarray': _save(lambda _: {'x': Evil(np.ndarray, (1 << 20,))}),
    'a module': _save(lambda m: EvilModule(m)),
    'pickle.loads': _save(lambda m: {'x': Evil(pickle.loads, pickle.dumps(Evil(os.system, _touch(m))))}),
    'torch.load': _save(lambda m: {'x': Evil(torch.load, str(m))}),
    'torch.hub': _save(lambda m: {'x': Evil(torch.hub.load, str(m.parent), 'x')}),
    'GLOBAL by hand': _in_place_of_data(lambda m: b'\x80\x02cposix\nsystem\n' + _text(_touch(m)) + b'\x85R.'),
    'getattr of a module by hand': _in_place_of_data(
        lambda m: b'\x80\x02c__builtin__\ngetattr\ncos\nsystem\n' + _text('__call__') + b'\x86R.'
    ),
    'getattr of HistoryBuffer by hand': _in_place_of_data(
        lambda m: (
            b'\x80\x02c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\n'
            + _text('__init_subclass__')
            + b'\x86R.'
        )
    ),
    'STACK_GLOBAL': _in_place_of_data(
        lambda m: b'\x80\x04' + _short('posix') + _short('system') + b'\x93' + _text(_touch(m)) + b'\x85R.'
    ),
    'INST': _in_place_of_data(lambda m: b'\x80\x02(' + _text(_touch(m)) + b'iposix\nsystem\n.'),
    'OBJ': _in_place_of_data(lambda m: b'\x80\x02(cposix\nsystem\n' + _text(_touch(m)) + b'o.'),
    'EXT1': _in_place_of_data(lambda m: b'\x80\x02\x82\x01.'),
    'a dotted name': _in_place_of_data(lambda m: b'\x80\x02ctorch\nhub.os.system\n' + _text(_touch(m)) + b'\x85R.'),
    'a name of the list for types': _in_place_of_data(lambda m: b'\x80\x02c\nndarray\n(K\x01tR.'),
    'a persistent module': _in_place_of_data(
        lambda m: b'\x80\x02(' + _text('module') + b'cposix\nsystem\n' + _text('x') + _text('y') + b'tQ.'
    ),
    'a class given a state': _in_place_of_data(
        lambda m: b'\x80\x02ctorch.nn.parameter\nParameter\nN}' + _text('__setstate__') + b'ctorch\nTensor\ns\x86b.'
    ),
    'legacy': _legacy,
    'tar': _tar,
    'tar with a zip at its end': _tar_and_zip,
    'a plain pickle': _plain_pickle,
    'a magic number that runs': _magic_is_evil,
    'TorchScript': _torchscript,
}
