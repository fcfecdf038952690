"""A reader of pickles that runs nothing of the file: what ``torch.load`` needs from a ``pickle_module``.

For a torch whose own ``weights_only`` takes no list of further names. Every name in the file stands for what the list
has for it and nothing else, and only what is on the list is called, created or given a state.
"""

import pickle
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import IO, Any

import torch

__all__ = ['restricted_pickle', 'torch_names']

_CONSTANTS: dict[str, Callable[[], Any]] = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
    'EMPTY_DICT': dict,
    'EMPTY_SET': set,
}
_NUMBERS = {'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'}
_TEXTS = {
    *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
}
_LITERALS = _NUMBERS | _TEXTS
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_PUTS = {'PUT', 'BINPUT', 'LONG_BINPUT'}
_GETS = {'GET', 'BINGET', 'LONG_BINGET'}


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Python's way to write bytes into a pickle of protocol 2."""
    if not isinstance(text, str) or encoding != 'latin1':
        raise pickle.UnpicklingError(f'Trying to encode as {encoding!r}, which no checkpoint needs')
    return text.encode('latin1')


def torch_names() -> dict[str, Any]:
    """What the tensors in a file of ``torch.save`` name, without the layouts that a load does not check."""
    names: dict[str, Any] = {
        'collections.OrderedDict': OrderedDict,
        'collections.Counter': Counter,
        'builtins.set': set,
        'builtins.complex': complex,
        'builtins.bytearray': bytearray,
        '_codecs.encode': _encode,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'torch.nn.parameter.Parameter': torch.nn.Parameter,
        'torch._tensor._rebuild_from_type_v2': torch._tensor._rebuild_from_type_v2,
        'torch.Tensor': torch.Tensor,
    }
    names.update({f'torch.{name}': value for name, value in vars(torch).items() if isinstance(value, torch.dtype)})
    for name in ('tensor', 'tensor_v2', 'parameter', 'parameter_with_state'):
        if hasattr(torch._utils, f'_rebuild_{name}'):
            names[f'torch._utils._rebuild_{name}'] = getattr(torch._utils, f'_rebuild_{name}')
    return names


def restricted_pickle(names: Mapping[str, Any], buildable: Collection[type]) -> Any:
    """What to hand to ``torch.load`` as ``pickle_module``, with ``weights_only=False``.

    Args:
        names: Full name in the file to what stands for it. Only these are called.
        buildable: Types whose instances may be given a state by their ``__setstate__``.
    """

    class Unpickler(_Unpickler):
        def __init__(self, file: IO[bytes], **_: Any) -> None:
            super().__init__(file, {**torch_names(), **names}, buildable)

    def load(file: IO[bytes], **_: Any) -> Any:
        return Unpickler(file).load()

    return SimpleNamespace(__name__='olor_mm.restricted_pickle', Unpickler=Unpickler, load=load)


class _Unpickler:
    """A pickle machine of the operations that tensors and plain data are written with."""

    def __init__(self, file: IO[bytes], names: Mapping[str, Any], buildable: Collection[type]) -> None:
        self._file = file
        self._names = names
        self._callable = {id(value) for value in names.values()}
        self._buildable = buildable
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.persistent_load: Callable[[Any], Any] = self._no_storage

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; torch overrides it for its storages."""
        # Protocol 2 writes Python 2's name.
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full not in self._names:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full} was not an allowed global.')
        return self._names[full]

    def load(self) -> Any:
        """The object that the file holds from here on."""
        for operation, argument, _ in pickletools.genops(self._file):
            if operation.name == 'STOP':
                return self._stack.pop()
            self._run(operation.name, argument)
        raise EOFError('the pickle has no end')

    def _run(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise pickle.UnpicklingError('a tuple of nothing')
            stack[-count:] = [tuple(stack[-count:])]
        elif name == 'GLOBAL':
            stack.append(self.find_class(*argument.split(' ', 1)))
        elif name not in ('PROTO', 'FRAME'):
            method = getattr(self, f'_do_{name.lower()}', None)
            if method is None:
                raise pickle.UnpicklingError(f'Unsupported operand {name}')
            method()

    def _no_storage(self, _: Any) -> Any:
        raise pickle.UnpicklingError('Unsupported storage outside a checkpoint')

    def _do_mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _do_memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_tuple(self) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _do_list(self) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _do_dict(self) -> None:
        items = self._pop_mark()
        self._stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _top(self, *types: type) -> Any:
        if type(self._stack[-1]) not in types:
            raise pickle.UnpicklingError(f'Trying to add to a {type(self._stack[-1]).__name__}')
        return self._stack[-1]

    def _do_append(self) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _do_appends(self) -> None:
        items = self._pop_mark()
        self._top(list).extend(items)

    def _do_additems(self) -> None:
        items = self._pop_mark()
        self._top(set).update(items)

    def _do_setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(dict, OrderedDict, Counter)[key] = value

    def _do_setitems(self) -> None:
        items = self._pop_mark()
        target = self._top(dict, OrderedDict, Counter)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _do_stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError('Unsupported global: a name is a text')
        self._stack.append(self.find_class(module, name))

    def _do_reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if id(function) not in self._callable or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f'Trying to call reduce for unrecognized function {function!r:.100}')
        self._stack.append(function(*arguments))

    def _do_newobj(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if id(kind) not in self._callable or not isinstance(kind, type) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f'Trying to create an instance of {kind!r:.100}')
        self._stack.append(kind.__new__(kind, *arguments))

    def _do_build(self) -> None:
        state, instance = self._stack.pop(), self._stack[-1]
        if type(instance) is OrderedDict and isinstance(state, dict):
            # The versions of modules, which Module.state_dict() keeps there.
            if '_metadata' in state:
                instance._metadata = state['_metadata']  # type: ignore[attr-defined]
        elif type(instance) in self._buildable:
            instance.__setstate__(state)
        else:
            raise pickle.UnpicklingError(f'Trying to give a state to a {type(instance).__name__}')

    def _do_binpersid(self) -> None:
        identity = self._stack.pop()
        # Files of torch < 1.6 have numbers there; 'module' would make torch read and write files of source code.
        if not isinstance(identity, int) and not (
            isinstance(identity, tuple) and identity[:1] in (('storage',), (b'storage',))
        ):
            raise pickle.UnpicklingError(f'Unsupported storage {identity!r:.100}')
        self._stack.append(self.persistent_load(identity))
