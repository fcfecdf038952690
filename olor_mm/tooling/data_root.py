"""``--data-root``: move every data set and evaluator of a config to another folder at once.

Paths are compared part by part, never as text, so that ``data/coco`` does not match ``data/coco2``. URLs such as
``s3://bucket/coco`` count as absolute paths.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from .errors import InputError

__all__ = ['move_data_root', 'old_data_root', 'sections']

Parts = tuple[str, ...]

# Where a relative path may be meant even though no data_root says so.
_PATH_KEYS = ('data_root', 'data_prefix', 'ann_file', 'seg_prefix', 'img_prefix', 'img_path', 'seg_map_path', 'img')
# Not data: where results go, and how storage is reached.
_SKIPPED_KEYS = ('type', 'outfile_prefix', 'output_dir', 'out_file_path', 'backend_args', 'metainfo')


def move_data_root(cfg: MutableMapping[str, Any], new_root: str) -> list[str]:
    """Rewrite every path of data sets and evaluators from the config's old data root to a new one, in place.

    The old root is the ``data_root`` of the data sets. Where they have several, it is the folder that holds them all:
    with ``data/VOC2007`` and ``data/VOC2012``, ``--data-root DIR`` gives ``DIR/VOC2007`` and ``DIR/VOC2012``.
    Absolute paths outside the old root stay what they are.

    Args:
        cfg: The config of a run.
        new_root: The folder that takes the old root's place.

    Returns:
        One line for every value that changed: ``'<key>: <old> -> <new>'``.

    Raises:
        InputError: If the data sets have roots without a common folder, or if the config has no data set.
    """
    move = _Move(old_data_root(cfg), new_root)
    for key, section in sections(cfg):
        moved = _relocate(section, key, move)
        if not key.startswith('model.'):
            cfg[key] = moved
    if not move.changes and _split(new_root) != move.old:
        raise InputError(
            '--data-root found no path to move in this config',
            f'looked in: {", ".join(key for key, _ in sections(cfg)) or "no data loader or evaluator at all"}',
            'set the paths one by one: --cfg-options train_dataloader.dataset.data_root=DIR ...',
        )
    if isinstance(cfg.get('data_root'), str):
        cfg['data_root'] = move(cfg['data_root'], 'data_root')
    return move.changes


def old_data_root(cfg: MutableMapping[str, Any]) -> str:
    """The folder that holds every data set of a config; ``''`` where no data set names one.

    Raises:
        InputError: If the roots have no folder in common.
    """
    roots = sorted({root for _, section in sections(cfg) for root in _roots(section)})
    if not roots:
        top = cfg.get('data_root')
        return top if isinstance(top, str) else ''
    parts = [_split(root) for root in roots]
    common: Parts = ()
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common += column[:1]
    if common in ((), ('/',)) and len(set(parts)) > 1:
        raise InputError(
            f'--data-root cannot move data sets that have no folder in common: {", ".join(roots)}',
            'set them one by one: --cfg-options train_dataloader.dataset.data_root=DIR ...',
        )
    return _join(common)


def sections(cfg: MutableMapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parts of a config that read data, with their keys: data loaders, evaluators, data sets in the model."""
    for key in list(cfg):
        if key.endswith(('_dataloader', '_evaluator')) and cfg[key]:
            yield key, cfg[key]
    prototype = (cfg.get('model') or {}).get('prototype')
    if isinstance(prototype, MutableMapping):
        yield 'model.prototype', prototype


def _roots(node: Any) -> Iterator[str]:
    if isinstance(node, MutableMapping):
        if isinstance(node.get('data_root'), str) and node['data_root']:
            yield node['data_root']
        for key in node:
            yield from _roots(node[key])
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _roots(item)


def _relocate(node: Any, where: str, move: _Move, rooted: bool = False) -> Any:
    """``node`` with the paths below it rewritten; mappings change in place.

    Args:
        node: A value of the config.
        where: Its key, for the report.
        move: What to replace, and the report.
        rooted: Whether relative paths here are relative to a ``data_root`` beside them. Defaults to False.
    """
    if isinstance(node, MutableMapping):
        rooted = rooted or bool(node.get('data_root'))
        for key in [key for key in node if key not in _SKIPPED_KEYS]:
            # A pipeline's paths are its own; nothing joins them with the data set's data_root.
            value = _relocate(node[key], f'{where}.{key}', move, rooted and key != 'pipeline')
            if value is not node[key]:
                node[key] = value
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_relocate(item, f'{where}.{index}', move, rooted) for index, item in enumerate(node))
    if isinstance(node, str) and not (rooted and not where.endswith('.data_root') and not _is_absolute(node)):
        moved = move(node, where)
        if moved != node:
            move.changes.append(f'{where}: {node!r} -> {moved!r}')
        return moved
    return node


class _Move:
    """Replaces an old root by a new one and keeps the report.

    Args:
        old: The old root; may be empty, then relative paths go below the new one.
        new: The new root.
    """

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = _split(old), new
        self.changes: list[str] = []

    def __call__(self, path: str, where: str) -> str:
        keys = where.split('.')
        parts = _split(path)
        below = parts[: len(self.old)] == self.old
        # Any word of a config could be a relative path, and any could spell the root itself: then the key decides.
        if not self.old or parts == self.old:
            below = below and any(key in _PATH_KEYS for key in keys[-2:]) and (bool(self.old) or not _is_absolute(path))
        if not below or (not path and keys[-1] == 'data_root'):
            return path
        moved = _join((*_split(self.new), *parts[len(self.old) :]))
        return f'{moved}/' if path.endswith('/') and not moved.endswith('/') else moved


def _is_absolute(path: str) -> bool:
    return path.startswith('/') or '://' in path


def _split(path: str) -> Parts:
    scheme, separator, rest = path.partition('://')
    if separator:
        return (f'{scheme}://', *(part for part in rest.split('/') if part))
    head = ('/',) if path.startswith('/') else ()
    return (*head, *(part for part in path.split('/') if part not in ('', '.')))


def _join(parts: Parts) -> str:
    if parts[:1] == ('/',):
        return '/' + '/'.join(parts[1:])
    if parts and parts[0].endswith('://'):
        return parts[0] + '/'.join(parts[1:])
    return '/'.join(parts)
