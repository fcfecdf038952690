"""The methods of ``--methods``: from a word to settings of a config."""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...engine import RollbackSettings
from ...models import build_method
from ...registry import METHODS, type_name
from ...rollback.rules import RULES
from ..errors import InputError

__all__ = ['Variant', 'check_base', 'check_settings', 'known_methods', 'parse_method']

_TUNED = 'olor_mm.Tuned'
_CONSTRUCTOR = 'OLOROptimWrapperConstructor'
_ROLLBACK = 'optim_wrapper.rollback'
_L2_SP = 'l2-sp'
#: What a rule's value without a name is, and what it has where nothing is said.
_RULE_OPTIONS = {'projection': 'radius'}
#: Settings of the rollback that make a method, with their values where a method does not say them.
_OFF: dict[str, Any] = {
    'rule': 'olor', 'max_level': 0, 'min_level': 0, 'power': 1, 'radius': None, 'ball': 'tensor',
    'level_schedule': None, 'l2_sp': None,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A method to be compared.

    Attributes:
        label: As it was given; what tables call it.
        options: ``key=value`` pairs for ``--cfg-options``.
        config: The config file, where it is another one. Defaults to None.
        plain: Whether it is full fine-tuning and nothing else.
    """

    label: str
    options: tuple[str, ...] = ()
    config: str | None = None
    plain: bool = False

    @property
    def folder(self) -> str:
        """Its name as a folder."""
        return re.sub(r'[^\w.,=+-]+', '_', self.label)


@dataclass
class _Part:
    """One method of a word: its name as the registry has it, and its options in the order given."""

    name: str
    rule: bool
    options: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def known_methods() -> dict[str, str]:
    """Words for methods to their names: those of the registry, the rules of the rollback, and L2-SP."""
    # At the first look-up the registry imports its parts.
    METHODS.get('Full')
    names = [*METHODS.module_dict, *RULES, _L2_SP]
    return {_plain(name): name for name in names}


def check_base(cfg: Config) -> None:
    """See that a config can be put under methods.

    Raises:
        InputError: If it has one already.
    """
    model = cfg.get('model') or {}
    if type_name(model.get('type')) == type_name(_TUNED):
        raise InputError(
            f'the config has a method already: model.method={model.get("method", "Full")!r:.200}',
            'give the config without it, such as full_...: the methods are put on it here',
            'as a method of its own it can be compared: --methods NAME=FILE.py',
        )


def parse_method(text: str, base: Config) -> Variant:
    """A word of ``--methods``.

    Args:
        text: ``NAME``, ``NAME=VALUE``, ``NAME=VALUE,OPTION=VALUE,...``, several of these joined by ``+``, or one's own
            ``name=FILE.py`` or ``name='key=value key=value'``.
        base: The config that is compared.

    Raises:
        InputError: If there is no such method; the message names what it may have meant.
    """
    known = known_methods()
    name, equals, value = text.partition('=')
    if equals and value.endswith('.py'):
        if not Path(value).expanduser().is_file():
            raise InputError(f'--methods {text}: the config is missing', f'looked for: {Path(value).absolute()}')
        return Variant(_own_name(name, text), config=value)
    words = re.split(r'\+(?=[\w-]+(?:[=,+]|$))', text)
    if _plain(re.split('[=,]', words[0])[0]) not in known:
        if equals and '=' in value:
            return Variant(_own_name(name, text), options=tuple(_pairs(value, text)))
        _refuse(text, re.split('[=,]', words[0])[0], known)
    parts = [_part(word, text, known) for word in words]
    for kind, told in ((True, 'rules of the rollback'), (False, 'methods of model.method')):
        same = [part.name for part in parts if part.rule is kind and part.name != _L2_SP]
        if len(same) > 1:
            raise InputError(f'--methods {text}: {" and ".join(same)} are both {told}', 'one of each goes together')
    settings: dict[str, str] = {}
    for part in parts:
        if not part.rule and part.name != 'Full':
            settings.update(_tuned(part, base))
    settings.update(_rollback([part for part in parts if part.rule], base, text))
    for part in parts:
        settings.update(part.settings)
    plain = len(parts) == 1 and parts[0].name == 'Full' and not parts[0].settings
    return Variant(text, tuple(f'{key}={value}' for key, value in settings.items()), plain=plain)


def check_settings(label: str, cfg: Config) -> None:
    """See that the options of a method are its own, before anything is run.

    Args:
        label: The word that was given.
        cfg: The config with them.

    Raises:
        InputError: If one is not; the message names it and what it may have meant.
    """
    model, rollback = cfg.get('model') or {}, (cfg.get('optim_wrapper') or {}).get('rollback')
    try:
        if type_name(model.get('type')) == type_name(_TUNED):
            given = model.get('method', 'Full')
            for each in given if isinstance(given, (list, tuple)) else [given]:
                build_method(each)
        if rollback is not None:
            RollbackSettings.from_cfg(rollback)
    except (ValueError, TypeError) as error:
        raise InputError(f'--methods {label}: {error}') from error


def _part(word: str, text: str, known: Mapping[str, str]) -> _Part:
    first, *rest = _split(word)
    name, equals, value = first.partition('=')
    if _plain(name) not in known:
        _refuse(text, name, known)
    found = known[_plain(name)]
    part = _Part(found, rule=found in RULES or found == _L2_SP)
    if equals:
        part.options[_main_option(part, text)] = value
    for pair in rest:
        key, equals, value = pair.partition('=')
        if not equals or not key or not value:
            raise InputError(f'--methods {text}: {pair!r} must be OPTION=VALUE')
        (part.settings if '.' in key else part.options)[key] = value
    return part


def _main_option(part: _Part, text: str) -> str:
    """The option that a value without a name is for: of a method of the registry its first one."""
    if part.rule:
        return 'alpha' if part.name == _L2_SP else _RULE_OPTIONS.get(part.name, 'max_level')
    kind: Any = METHODS.get(part.name)
    options = [name for name in inspect.signature(kind).parameters if name not in ('args', 'kwargs')]
    if not options:
        raise InputError(f'--methods {text}: {part.name} has no options')
    return options[0]


def _tuned(part: _Part, base: Config) -> dict[str, str]:
    of = base.model.get('type')
    found = {'model.type': _TUNED, 'model.of': str(of), 'model.method.type': part.name}
    return {**found, **{f'model.method.{key}': value for key, value in part.options.items()}}


def _rollback(parts: list[_Part], base: Config, text: str) -> dict[str, str]:
    """Settings of the rollback: those of the rule, and none of the base's; it is off where no rule was given."""
    before = (base.get('optim_wrapper') or {}).get('rollback')
    if not parts:
        return {} if before is None else _written({}, before)
    wanted: dict[str, Any] = {}
    as_before = False
    for part in parts:
        if part.name == _L2_SP:
            options = {'alpha': 0.01, 'beta': 0.01, **part.options}
            wanted.update({f'l2_sp.{key}': value for key, value in options.items()})
            continue
        wanted.update(part.options)
        if part.name != 'olor':
            wanted['rule'] = part.name
        elif 'max_level' not in part.options:
            _check_levels(before, text)
            as_before = True
        if part.name == 'spd':
            wanted.setdefault('max_level', 1.0)
            wanted.setdefault('min_level', wanted['max_level'])
    found = _written(wanted, {} if as_before or before is None else before)
    constructor = (base.get('optim_wrapper') or {}).get('constructor')
    if type_name(constructor) != _CONSTRUCTOR:
        found['optim_wrapper.constructor'] = f'olor_mm.{_CONSTRUCTOR}'
        if constructor is not None:
            found[f'{_ROLLBACK}.inner.type'] = str(constructor)
    return found


def _check_levels(before: Any, text: str) -> None:
    """See that the config itself has the levels of an ``olor`` without one."""
    if not isinstance(before, Mapping) or not before.get('max_level') or before.get('rule', 'olor') != 'olor':
        raise InputError(
            f'--methods {text}: the level is not said, and the config has none',
            'say it: olor=0.01,power=2; tools/search.py looks for a good one',
        )


def _written(wanted: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, str]:
    """Pairs that give what is wanted and undo the rest of what was there before."""
    found = {f'{_ROLLBACK}.{key}': str(value) for key, value in wanted.items()}
    parts = {key.partition('.')[0] for key in wanted}
    for key, value in _OFF.items():
        if key not in parts and before.get(key, value) != value:
            found[f'{_ROLLBACK}.{key}'] = str(value)
    if not {'max_level', 'radius', 'l2_sp'} & parts and 'max_level' not in found and before:
        found[f'{_ROLLBACK}.max_level'] = '0'
    return found


def _pairs(value: str, text: str) -> list[str]:
    try:
        pairs = shlex.split(value)
    except ValueError as error:
        raise InputError(f'--methods {text}: {error}') from error
    for pair in pairs:
        if '=' not in pair or not pair.partition('=')[0]:
            raise InputError(f"--methods {text}: {pair!r} must be key=value, as in mine='train_cfg.max_epochs=3'")
    return pairs


def _split(word: str) -> list[str]:
    """Parts between commas that stand in no brackets."""
    parts, depth = [''], 0
    for letter in word:
        depth += (letter in '([') - (letter in ')]')
        if letter == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += letter
    return parts


def _own_name(name: str, text: str) -> str:
    if not name:
        raise InputError(f'--methods {text}: the name is missing, as in mine={text.lstrip("=")}')
    return name


def _refuse(text: str, name: str, known: Mapping[str, str]) -> None:
    near = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.5)
    words = sorted({_word(each) for each in known.values()})
    raise InputError(
        f'--methods {text}: there is no method {name!r}' + (f'; did you mean {_word(known[near[0]])}?' if near else ''),
        f'there are: {", ".join(words)}',
        "one's own: NAME=FILE.py, or NAME='key=value key=value'",
    )


def _plain(name: str) -> str:
    return name.lower().replace('-', '').replace('_', '')


def _word(name: str) -> str:
    """A method's name as it is written on the command line."""
    return re.sub(r'(?<=[a-z])(?=[A-Z][a-z]{3})', '-', name).lower()
