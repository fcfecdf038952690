"""Are the data where the config says? Asked before anything is built, so that the answer comes in seconds."""

from __future__ import annotations

import inspect
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from .errors import InputError

__all__ = ['check_coco_json', 'check_data']

_COCO_KEYS = ('images', 'annotations', 'categories')
# Beyond this size (bytes) a json is searched instead of parsed: COCO's own takes 20 s to parse.
_PARSE_LIMIT = 32 * 2**20
_SHARED_OUT_BY = ('train_domains', 'test_domains', 'folds', 'num_folds', 'fold', 'seed')


def check_data(cfg: Mapping[str, Any], *splits: str) -> None:
    """See that the files and folders of data sets and evaluators exist and that COCO annotations are such.

    Data sets that fetch themselves, and paths on remote storage, are left to themselves.

    Args:
        cfg: The config of a run.
        splits: Which of ``'train'``, ``'val'``, ``'test'`` the run reads.

    Raises:
        InputError: At the first thing that is missing: what was looked for, the layout expected, the option for it.
    """
    _check_shared_out(cfg)
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for where, dataset in _datasets(loader, f'{split}_dataloader'):
            _check_dataset(cfg, where, dataset)
        evaluators = cfg.get(f'{split}_evaluator') or []
        if isinstance(evaluators, Mapping):
            _check_evaluator(f'{split}_evaluator', evaluators)
            continue
        for index, evaluator in enumerate(evaluators):
            if isinstance(evaluator, Mapping):
                _check_evaluator(f'{split}_evaluator.{index}', evaluator)


def check_coco_json(file: Path, where: str) -> dict[str, Any] | None:
    """See that a file is an annotation file in COCO's format.

    Args:
        file: The file, which exists.
        where: The key of the config that names it.

    Returns:
        Its content, or None if the file is too large to be parsed for a check.

    Raises:
        InputError: If it is not.
    """
    expected = f'expected: one json object with the lists {", ".join(_COCO_KEYS)}'
    option = f'set it with: --data-root DIR or --cfg-options {where}=FILE'
    if file.stat().st_size > _PARSE_LIMIT:
        with file.open('rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            missing = [key for key in _COCO_KEYS if content.find(f'"{key}"'.encode()) < 0]
            whole = content[:64].lstrip()[:1] == b'{' and content[-64:].rstrip()[-1:] == b'}'
        if missing or not whole:
            raise InputError(f'{file} is not a complete COCO annotation file', expected, option)
        return None
    try:
        content_json = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f'{file} is not json: {error}', expected, option) from error
    found = sorted(content_json)[:8] if isinstance(content_json, dict) else type(content_json).__name__
    if not isinstance(content_json, dict) or any(not isinstance(content_json.get(key), list) for key in _COCO_KEYS):
        raise InputError(f'{file} is not a COCO annotation file: it holds {found}', expected, option)
    return content_json


def _datasets(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The data sets themselves, inside of loaders and of wrappers such as ConcatDataset."""
    if isinstance(node, Mapping):
        if any(key in node for key in ('data_root', 'ann_file', 'data_prefix')):
            yield where, node
            return
        for key in [key for key in node if key not in ('pipeline', 'type')]:
            yield from _datasets(node[key], f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _datasets(item, f'{where}.{index}')


def _check_shared_out(cfg: Mapping[str, Any]) -> None:
    """See that the loaders of a set that is shared out by domains and folds agree how: else train and test overlap."""
    seen: dict[Any, tuple[str, Mapping[str, Any]]] = {}
    for split in ('train', 'val', 'test'):
        for where, dataset in _datasets(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            kind = _class_of(cfg, dataset.get('type'))
            if not hasattr(kind, 'DOMAINS'):
                continue
            first, other = seen.setdefault((kind, dataset.get('data_root')), (where, dataset))
            for key in _SHARED_OUT_BY:
                if _plain(dataset.get(key)) != _plain(other.get(key)):
                    raise InputError(
                        f'{first}.{key}={other.get(key)!r}, but {where}.{key}={dataset.get(key)!r}: images would be '
                        'both trained and tested on',
                        'set it alike for all loaders: --cfg-options '
                        f'{{train,val,test}}_dataloader.dataset.{key}=VALUE in bash',
                    )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (list, tuple)) else value


def _check_dataset(cfg: Mapping[str, Any], where: str, dataset: Mapping[str, Any]) -> None:
    kind = _class_of(cfg, dataset.get('type'))
    if _is_remote(dataset) or _fetches_itself(kind, dataset):
        return
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    prefix = dataset.get('data_prefix') or {}
    named = prefix.items() if isinstance(prefix, Mapping) else ()
    prefixes = {f'data_prefix.{key}': value for key, value in named} if named else {'data_prefix': prefix or ''}
    wanted = {key: value for key, value in prefixes.items() if _is_needed(key, dataset) and isinstance(value, str)}
    for key, value in {'data_root': '', **wanted}.items():
        folder = Path(root, value)
        if not folder.is_dir():
            raise InputError(
                f'the {"data folder" if key == "data_root" else "image folder"} of {where} is missing',
                *_looked_for(folder, root, ann_file, prefixes, f'{where}.{key}'),
                *_own_layout(kind),
            )
    _check_published_layout(kind, where, root)
    if isinstance(ann_file, str) and ann_file:
        file = Path(os.path.join(root, ann_file))
        if not file.exists():
            raise InputError(
                f'the annotation file of {where} is missing',
                *_looked_for(file, root, ann_file, prefixes, f'{where}.ann_file'),
            )
        if _is_coco(kind) and file.is_file():
            _check_coco(dataset, kind, where, file, os.path.join(root, str(prefixes.get('data_prefix.img', ''))))


def _check_published_layout(kind: Any, where: str, root: str) -> None:
    """For sets of mmpretrain that answer a wrong folder with a traceback: CUB and Stanford Cars."""
    from .prepare.locate import guidance, missing_needs
    from .prepare.specs import SPECS

    name = f'{getattr(kind, "__module__", "").partition(".")[0]}.{getattr(kind, "__name__", "")}'
    spec = next((spec for spec in SPECS.values() if spec.dataset == name), None)
    if spec is None or not name.startswith('mmpretrain.'):
        return
    missing = missing_needs(Path(root), spec)
    if missing:
        raise InputError(
            f'{spec.title} is not in the data_root of {where}: {", ".join(missing)} missing',
            f'looked in: {Path(root).absolute()}',
            *guidance(spec, Path(root), ()),
            f'set it with: --data-root DIR or --cfg-options {where}.data_root=PATH',
        )


def _own_layout(kind: Any) -> list[str]:
    """The layout that a data set of ours expects, in lines."""
    layout = getattr(kind, 'LAYOUT', None)
    return ['expected layout:', *(f'    {line}' for line in layout.splitlines())] if isinstance(layout, str) else []


def _looked_for(path: Path, root: str, ann_file: Any, prefixes: Mapping[str, Any], key: str) -> list[str]:
    parts = [str(part) for part in (ann_file, *prefixes.values()) if part and not os.path.isabs(str(part))]
    layout = [f'expected layout: {root or "."}', *(f'    {part}' for part in parts)] if parts else []
    return [f'looked for: {path.absolute()}', *layout, f'set it with: --data-root DIR or --cfg-options {key}=PATH']


def _check_coco(dataset: Mapping[str, Any], kind: Any, where: str, file: Path, images: str) -> None:
    content = check_coco_json(file, f'{where}.ann_file')
    if content is None:
        return
    classes = (dataset.get('metainfo') or {}).get('classes') or (getattr(kind, 'METAINFO', None) or {}).get('classes')
    names = [category.get('name') for category in content['categories']]
    if not _reads_as_coco_does(kind):
        return
    if isinstance(classes, str) and not Path(classes).is_file():
        raise InputError(
            f'{where}.metainfo.classes={classes!r} is a text, not a list of names, and no file of names',
            f'write one name with a comma behind it: classes=({classes!r},)',
        )
    classes = classes if isinstance(classes, (list, tuple)) else ()
    missing = [name for name in classes if name not in names]
    if missing:
        # mmdet numbers the classes that it finds: with some missing, the others get the wrong labels.
        raise InputError(
            f'{len(missing)} of the {len(classes)} classes of {where} are not in its annotation file',
            f'the file {file} has: {_some(names)}',
            f'it lacks: {_some(missing)}',
            f"set them with: --cfg-options {where}.metainfo.classes=\"('name','name')\" and num_classes in the heads",
        )
    if content['images']:
        first = Path(images, str(content['images'][0].get('file_name')))
        if not first.is_file():
            raise InputError(
                f'the images of {where} are not where its annotation file says',
                f'looked for: {first.absolute()}, the first of {len(content["images"])} images in {file}',
                f'set it with: --data-root DIR or --cfg-options {where}.data_prefix.img=DIR',
            )


def _some(names: Sequence[Any], count: int = 8) -> str:
    return ', '.join(map(str, names[:count])) + (f', ... ({len(names)} in all)' if len(names) > count else '')


def _check_evaluator(where: str, evaluator: Mapping[str, Any]) -> None:
    ann_file = evaluator.get('ann_file')
    if isinstance(ann_file, str) and ann_file and not _is_remote(evaluator) and not Path(ann_file).exists():
        raise InputError(
            f'the annotation file of {where} is missing',
            f'looked for: {Path(ann_file).absolute()}',
            f'set it with: --data-root DIR or --cfg-options {where}.ann_file=FILE',
        )


def _class_of(cfg: Mapping[str, Any], kind: Any) -> Any:
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        return registry.get(kind)


def _is_coco(kind: Any) -> bool:
    return any(base.__name__ == 'CocoDataset' for base in getattr(kind, '__mro__', ()))


def _reads_as_coco_does(kind: Any) -> bool:
    """False for LVIS, Objects365 and others that build the paths of their images in their own way."""
    owners = {base.__name__ for base in kind.__mro__ if {'load_data_list', 'parse_data_info'} & set(vars(base))}
    return not owners - {'CocoDataset', 'BaseDataset', 'BaseDetDataset'}


def _fetches_itself(kind: Any, dataset: Mapping[str, Any]) -> bool:
    if not inspect.isclass(kind):
        return False
    parameter = inspect.signature(kind).parameters.get('download')
    return parameter is not None and bool(dataset.get('download', parameter.default))


def _is_remote(node: Mapping[str, Any]) -> bool:
    paths = [str(node.get(key) or '') for key in ('data_root', 'ann_file')]
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or any('://' in path for path in paths)


def _is_needed(key: str, dataset: Mapping[str, Any]) -> bool:
    """Images always; segmentation maps only in training, where no test set without labels can be meant."""
    name = key.rpartition('.')[2]
    return name in ('data_prefix', 'img', 'img_path', 'sub_data_root') or (
        name == 'seg_map_path' and not dataset.get('test_mode')
    )
