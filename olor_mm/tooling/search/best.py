"""The best config: a small file that inherits the user's, with everything in it that its trial was started with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ... import cfg as shipped_config
from ...engine.replacing import put_in_place
from .. import data_root, settings
from ..errors import InputError
from ..options import train_parser
from ..pretrained import replace_pretrained

__all__ = ['final_config', 'overrides', 'write_config']

_DELETE = '_delete_'
#: Who starts a run and where it writes is no part of what it does.
_NOT_INHERITED = ('launcher', 'work_dir', 'resume')
#: Keys of files that weights come from.
_FILES = ('checkpoint', 'pretrained', 'load_from', 'anchor')


def final_config(argv: Sequence[str]) -> Config:
    """The config that a run of tools/train.py builds its Runner from.

    Args:
        argv: The arguments of tools/train.py.

    Raises:
        InputError: If the config or an option is the user's to mend.
    """
    args = train_parser().parse_args([str(part) for part in argv])
    cfg = settings.load_config(args)
    settings.register_scope(cfg)
    settings.apply_loaders(cfg, args)
    if args.data_root:
        data_root.move_data_root(cfg, str(Path(args.data_root).expanduser()))
    if args.amp:
        settings.apply_amp(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        settings.apply_auto_scale_lr(cfg)
    if args.pretrained:
        replace_pretrained(cfg, args.pretrained)
    return cfg


def overrides(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What a config must say to become another one when it inherits ``base``: as little as possible.

    Args:
        base: The config that is inherited.
        wanted: What is to come out.

    Returns:
        A dict whose merge into ``base``, by MMEngine's rules, is ``wanted``.
    """
    said: dict[str, Any] = {}
    for key, value in wanted.items():
        if key not in base:
            said[key] = _plain(value)
        elif _same(base[key], value):
            continue
        elif not isinstance(value, Mapping):
            said[key] = _plain(value)
        elif isinstance(base[key], Mapping) and not base[key].keys() - value.keys():
            said[key] = overrides(base[key], value)
        else:
            said[key] = {_DELETE: True, **_plain(value)}
    return said


def write_config(file: Path, argv: Sequence[str], about: Sequence[str]) -> None:
    """Write a config that does what a run of tools/train.py with these arguments does, from any folder.

    Args:
        file: Where to write; ``.py``.
        argv: The arguments of the run: a config, and options.
        about: Lines of the comment at its head.
    """
    args = train_parser().parse_args([str(part) for part in argv])
    source = Path(args.config).expanduser().absolute()
    wanted = final_config(argv)
    base = final_config([str(source)])
    _from_anywhere(wanted)
    head = ''.join(f'# {line}\n' for line in about)
    said = Config(overrides(_without(base), _without(wanted))).pretty_text
    part = file.with_name(f'.{file.stem}_part.py')
    try:
        part.write_text(f'{head}_base_ = [{_address(source)}]\n\n{said}', encoding='utf-8')
        if not _gives(part, wanted):
            # Of the new style, or something that inheriting cannot say.
            part.write_text(f'{head}\n{_whole(wanted)}', encoding='utf-8')
        put_in_place(part, file)
    finally:
        part.unlink(missing_ok=True)


def _gives(file: Path, wanted: Config) -> bool:
    try:
        found = final_config([str(file)])
    except (InputError, RuntimeError, KeyError, TypeError):
        return False
    return _same(_without(found), _without(wanted))


def _from_anywhere(cfg: Config) -> None:
    """Make absolute what leads to data and weights from the folder that the search was started in."""
    try:
        old = data_root.old_data_root(cfg)
    except InputError:
        # Several roots without a common folder: they stay as they are.
        old = ''
    if old and '://' not in old and not Path(old).is_absolute() and Path(old).exists():
        data_root.move_data_root(cfg, str(Path(old).absolute()))
    for key in ('model', 'optim_wrapper'):
        _absolute(cfg.get(key))
    if isinstance(cfg.get('load_from'), str):
        cfg.load_from = _resolved(cfg.load_from)


def _absolute(node: Any) -> None:
    items: Any = ()
    if isinstance(node, MutableMapping):
        items = list(node.items())
        for key, value in items:
            if key in _FILES and isinstance(value, str):
                node[key] = _resolved(value)
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    for _, value in items:
        _absolute(value)


def _resolved(path: str) -> str:
    """An absolute path where there is such a file here; schemes such as ``vit2mmpretrain:`` stay in front."""
    head, _, tail = path.rpartition(':')
    scheme = f'{head}:' if head and '/' not in head else ''
    file = Path(tail if scheme else path)
    return f'{scheme}{file.absolute()}' if '://' not in path and file.is_file() else path


def _address(source: Path) -> str:
    """How a config is named in ``_base_``: one that olor_mm ships by its name, wherever it is installed."""
    for folder in (source.parent, *source.parent.parents):
        name = source.relative_to(folder).as_posix()
        try:
            if Path(shipped_config(name)).samefile(source):
                return f"__import__('olor_mm').cfg({name!r})"
        except (FileNotFoundError, ValueError):
            continue
    return repr(str(source))


def _without(cfg: Config) -> dict[str, Any]:
    return {key: value for key, value in cfg.to_dict().items() if key not in _NOT_INHERITED}


def _whole(cfg: Config) -> str:
    whole = copy.deepcopy(cfg)
    for key in _NOT_INHERITED:
        whole.pop(key, None)
    return str(whole.pretty_text)


def _same(one: Any, other: Any) -> bool:
    """Equal in kind too: a tuple is no list, 1 is not True."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value
