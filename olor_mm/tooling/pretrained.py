"""``--pretrained``: another checkpoint for the model's backbone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from mmengine.registry import MODELS

from ..engine.vit_checkpoints import plain_address, scheme_for
from .errors import InputError
from .weights import Shapes, is_pretrained, shapes_in_file

__all__ = ['check_vit_names', 'replace_pretrained']


def replace_pretrained(cfg: MutableMapping[str, Any], file: str) -> list[str]:
    """Make a file the checkpoint of the model's backbone, in place.

    The prefix of the backbone's names in the file is found by comparing them, with their shapes, to the backbone's
    own: the prefix of the config where it fits, else the one that fits most tensors. A ViT's checkpoint under the names
    of another library is translated.

    Args:
        cfg: The config of a run.
        file: A checkpoint on the disk, or any address that MMEngine loads from.

    Returns:
        Lines for the log: how many tensors matched, and what was replaced.

    Raises:
        InputError: If the file is missing, is no checkpoint or has no tensor for the backbone, or if the model has no
            backbone or several.
    """
    where, backbone = _find_backbone(cfg)
    shapes = shapes_in_file(file)
    old = _pretrained_entry(backbone)
    wanted = _shapes_of_backbone(cfg, backbone)
    prefix, matched = _find_prefix(wanted, shapes, old.get('prefix') if old else None)
    scheme, translated = _translate(wanted, file)
    # mmseg's VisionTransformer loads a file as it is, whatever prefix its init_cfg names.
    as_it_is = not (prefix and scheme == 'vit2mmseg:') and not _has_other_positions(shapes, prefix)
    if translated > matched or (translated and translated == matched and not as_it_is):
        file, prefix, matched = f'{scheme}{file}', '', translated
        shapes = shapes_in_file(file)
    notes = [f'--pretrained: {matched} of {len(wanted)} tensors of {where} are in {file} (prefix {prefix!r})']
    notes += _other_sizes(wanted, shapes, prefix)
    if not matched and not backbone.get('convert_weights'):
        raise InputError(
            f'--pretrained {file} has nothing for {where}: no tensor has the name and shape of one of its own',
            f'the backbone has: {_some(wanted)}',
            f'the file has: {_some(shapes)}',
        )
    entry = dict(type='Pretrained', checkpoint=file, **(dict(prefix=prefix) if prefix else {}))
    _set_entry(backbone, entry)
    return notes + _drop_other_sources(cfg, where, backbone)


def check_vit_names(cfg: Mapping[str, Any]) -> None:
    """See that a ViT's local checkpoint has the names of the model that loads it.

    Under another library's names nothing loads, and MMEngine trains on from random weights.

    Args:
        cfg: The config of a run.

    Raises:
        InputError: If less than half of the backbone is there under its names; the message says what loads it.
    """
    for where, backbone in _walk_backbones(cfg.get('model'), 'model'):
        entry = _pretrained_entry(backbone) or {}
        file, kind = entry.get('checkpoint'), str(backbone.get('type')).rpartition('.')[2]
        if not isinstance(file, str) or '://' in file or plain_address(file) != file or kind != 'VisionTransformer':
            continue
        wanted = _shapes_of_backbone(cfg, backbone)
        matched = _count(wanted, shapes_in_file(file, f'{where}.init_cfg.checkpoint'), entry.get('prefix') or '')
        scheme = scheme_for(wanted)
        if scheme and 2 * matched < len(wanted):
            raise InputError(
                f'{where}.init_cfg.checkpoint={file} has {matched} of the {len(wanted)} tensors of {where} under its '
                'names',
                f'a ViT under the names of timm, OpenCLIP, mmpretrain or mmseg loads as: {scheme}{file}',
            )


def _translate(wanted: Shapes, file: str) -> tuple[str, int]:
    """The scheme that translates a ViT's checkpoint for this backbone, and how many tensors match then."""
    scheme = scheme_for(wanted)
    if scheme is None or plain_address(file) != file:
        return '', 0
    try:
        shapes = shapes_in_file(f'{scheme}{file}')
    except InputError:
        return '', 0
    return scheme, _count(wanted, shapes, '')


def _find_backbone(cfg: Mapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
    found = list(_walk_backbones(cfg.get('model'), 'model'))
    if len(found) != 1:
        names = ', '.join(where for where, _ in found) or 'no model.backbone'
        raise InputError(
            f'--pretrained needs a model with one backbone, but this config has {names}',
            'set the checkpoint itself: --cfg-options model.<part>.init_cfg.checkpoint=FILE',
        )
    return found[0]


def _walk_backbones(node: Any, where: str) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    if not isinstance(node, MutableMapping):
        return
    if isinstance(node.get('backbone'), MutableMapping):
        yield f'{where}.backbone', node['backbone']
        return
    for key in [key for key in node if key != 'type']:
        yield from _walk_backbones(node[key], f'{where}.{key}')


def _pretrained_entry(backbone: Mapping[str, Any]) -> Mapping[str, Any] | None:
    init_cfg = backbone.get('init_cfg') or []
    entries = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg
    return next((entry for entry in entries if is_pretrained(entry)), None)


def _set_entry(backbone: MutableMapping[str, Any], entry: dict[str, Any]) -> None:
    init_cfg = backbone.get('init_cfg')
    if isinstance(init_cfg, (list, tuple)):
        backbone['init_cfg'] = [*(other for other in init_cfg if not is_pretrained(other)), entry]
    else:
        others = [init_cfg] if init_cfg and not is_pretrained(init_cfg) else []
        backbone['init_cfg'] = [*others, entry] if others else entry


def _drop_other_sources(cfg: MutableMapping[str, Any], where: str, backbone: MutableMapping[str, Any]) -> list[str]:
    """Take out what would load over the backbone afterwards; ``load_from`` is the user's to decide on."""
    notes = []
    for holder, name in ((cfg['model'], 'model'), (backbone, where)):
        if holder.get('pretrained'):
            notes.append(f'--pretrained replaces {name}.pretrained={holder["pretrained"]!r}')
            holder['pretrained'] = None
    init_cfg = cfg['model'].get('init_cfg')
    if isinstance(init_cfg, Mapping) and is_pretrained(init_cfg):
        notes.append(f'--pretrained replaces model.init_cfg={dict(init_cfg)!r}')
        cfg['model']['init_cfg'] = None
    if cfg.get('load_from') and not cfg.get('resume'):
        notes.append(f'load_from={cfg["load_from"]!r} is loaded after --pretrained and wins where both have a tensor')
    return notes


def _shapes_of_backbone(cfg: Mapping[str, Any], backbone: Mapping[str, Any]) -> Shapes:
    bare = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        module = registry.build(bare)
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _find_prefix(wanted: Shapes, given: Shapes, old: str | None) -> tuple[str, int]:
    """The prefix under which most of the wanted tensors are in the file, and how many that are."""
    first = [name for name in wanted if '.' in name][:1] + list(wanted)[:1]
    endings = {name[: -len(end)] for end in first for name in given if name.endswith(end)}
    prefixes = [*([old] if old is not None else []), 'backbone.', '', *sorted(endings)]
    counts = {prefix: _count(wanted, given, prefix) for prefix in prefixes}
    if old is not None and counts[old]:
        return old, counts[old]
    best = max(counts, key=lambda prefix: counts[prefix])
    return best, counts[best]


def _other_sizes(wanted: Shapes, given: Shapes, prefix: str) -> list[str]:
    joint = _joint(prefix)
    other = [name for name in wanted if given.get(joint + name, wanted[name]) != wanted[name]]
    return [
        f'--pretrained: {name} is {given[joint + name]} there, {wanted[name]} in the model'
        + (', which resizes it' if name == 'pos_embed' else ', which keeps its initial values')
        for name in other[:3]
    ]


def _has_other_positions(given: Shapes, prefix: str) -> bool:
    """Whether a ViT's position embeddings are not those of a class token and a square of patches."""
    shape = given.get(f'{_joint(prefix)}pos_embed')
    return shape is not None and len(shape) == 3 and math.isqrt(shape[1] - 1) ** 2 != shape[1] - 1


def _joint(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith('.') else f'{prefix}.'


def _count(wanted: Shapes, given: Shapes, prefix: str) -> int:
    joint = _joint(prefix)
    return sum(given.get(joint + name) == shape for name, shape in wanted.items())


def _some(shapes: Shapes, count: int = 3) -> str:
    names = [f'{name} {"x".join(map(str, shape)) or "scalar"}' for name, shape in list(shapes.items())[:count]]
    return ', '.join(names) + (f', ... ({len(shapes)} in all)' if len(shapes) > count else '') or 'no tensor'
