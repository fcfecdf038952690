"""What a method does to a model: the class that all derive from, and how a config names one."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from olor_mm.registry import METHODS, type_name

__all__ = ['Method', 'build_method', 'check_patterns', 'child', 'matches', 'plain']

#: A weight that LoRA changes where it is read.
_PARAMETRIZED = re.compile(r'\.parametrizations\.(\w+)\.original$')


class Method:
    """Changes a model that has just been built, before it is wrapped for several devices and before weights come.

    Args:
        part: Path of the pre-trained part in the model: what the method works on. All outside of it is new and is
            trained. Defaults to 'backbone'.
        train: Regular expressions; parameters of the part in whose names one of them is found are trained too.
            Defaults to ().

    Raises:
        ValueError: If an option cannot be right; the message names it, its value and the remedy.
    """

    #: Whether original parameters get other names: it is then applied before the methods that go by names.
    renames = False
    #: Whether what it adds begins with pre-trained values, so that a rollback can go back to them.
    pretrained = False

    def __init__(self, part: str = 'backbone', train: str | Sequence[str] = ()) -> None:
        if not isinstance(part, str):
            raise ValueError(f"{self}: part={part!r} must be the path of a part of the model, such as 'backbone'")
        self.part = part
        self.train = check_patterns(train, f'{self}: train')
        #: Names in the model of the parameters and buffers that the method put there.
        self.added: list[str] = []

    def __str__(self) -> str:
        return type(self).__name__

    def apply(self, model: nn.Module) -> None:
        """Change the model; what is put into it is named in ``added``.

        Raises:
            ValueError: If it is a model that the method cannot take.
        """

    def has(self, name: str) -> bool:
        """Whether a parameter of the model is in the pre-trained part, by its name."""
        return not self.part or name.startswith(f'{self.part}.')

    def trains(self, name: str) -> bool:
        """Whether a parameter of the model is trained, by its name."""
        return not self.has(name) or name in self.added or matches(self.train, name)

    def pulled_back(self, name: str) -> bool:
        """Whether a rollback (OLOR) takes a parameter that the method put there back to where it starts.

        What a method adds has no pre-trained value, so the rollback leaves it alone unless this says otherwise.
        """
        return False

    def weights_are_in(self, model: nn.Module) -> None:
        """Set up what depends on the pre-trained weights.

        Called when the model's weights were initialised or loaded, unless what the method put there was loaded with
        them. It may be called more than once, and with weights that are not finite: they are looked for that way.
        """

    def report(self, model: nn.Module) -> str:
        """A line for the log that says what was done; empty if there is nothing to say."""
        return ''


def build_method(cfg: object) -> Method:
    """The method that a config names.

    Args:
        cfg: ``dict(type='LoRA', ...)``, or the name alone.

    Raises:
        ValueError: If there is no such method, or it has no such option.
    """
    if isinstance(cfg, str):
        cfg = {'type': cfg}
    if not isinstance(cfg, Mapping) or not cfg.get('type'):
        raise ValueError(f"model.method={cfg!r} must be a dict with a type, such as dict(type='Linear')")
    options = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
    kind = cfg['type']
    found: Any = kind if inspect.isclass(kind) else METHODS.get(type_name(kind))
    if found is None:
        known = sorted(METHODS.module_dict)
        raise ValueError(f'model.method: there is no method {kind!r}{_alike(str(kind), known)}; there are: {known}')
    signature = inspect.signature(found)
    known = [name for name in signature.parameters if name not in ('args', 'kwargs')]
    for option in options:
        if option not in known:
            raise ValueError(
                f'model.method: {type_name(kind)} has no option {option!r}{_alike(option, known)}; it has: '
                f'{", ".join(known)}'
            )
    missing = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name in known]
    missing = [name for name in missing if name not in options]
    if missing:
        raise ValueError(f'model.method: {type_name(kind)} needs {missing[0]}: set model.method.{missing[0]}')
    made: Method = found(**options)
    return made


def child(model: nn.Module, path: str, option: str) -> nn.Module:
    """A part of a model.

    Args:
        model: The model.
        path: Of the part; '' for the model.
        option: What an error says that the path was given as.

    Raises:
        ValueError: If there is none.
    """
    module = model
    for name in path.split('.') if path else ():
        known = dict(module.named_children())
        if name not in known:
            raise ValueError(
                f'{option}={path!r}: {type(module).__name__} has no {name!r}; it has: {", ".join(known) or "no parts"}'
            )
        module = known[name]
    return module


def check_patterns(patterns: object, option: str) -> list[re.Pattern[str]]:
    """Compiled regular expressions.

    Raises:
        ValueError: If they are none.
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Iterable) else [None]
    found = [pattern for pattern in given if isinstance(pattern, str) and pattern]
    if len(found) < len(given):
        raise ValueError(f'{option}={patterns!r} must be a regular expression or a list of some')
    try:
        return [re.compile(pattern) for pattern in found]
    except re.error as error:
        raise ValueError(f'{option}={patterns!r}: {error.pattern!r} is no regular expression: {error}') from error


def matches(patterns: Iterable[re.Pattern[str]], name: str) -> bool:
    """Whether one of them is found in a name."""
    return any(pattern.search(name) for pattern in patterns)


def plain(name: str) -> str:
    """The name of a parameter as it is without LoRA, which changes some weights where they are read."""
    return _PARAMETRIZED.sub(r'.\1', name)


def _alike(name: str, known: Sequence[str]) -> str:
    folded = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), folded, n=1)
    return f', did you mean {folded[near[0]]!r}?' if near else ''
