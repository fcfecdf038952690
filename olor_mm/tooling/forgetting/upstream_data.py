"""``--upstream``: a folder or a config becomes data sets, and the original head is fetched."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DATASETS, MODELS

from ...evaluation.heads import read_file
from .. import settings
from ..data_checks import check_data
from ..data_root import move_data_root
from ..errors import InputError
from ..loaders import retold, transforms_of_test
from ..names import check_names
from .bench import Bench, file_digest, plain_loader
from .classes import map_classes, read_class_map
from .heads import NoHeadError, check_backbone, head_of
from .origin import file_of
from .upstream import Upstream

__all__ = ['build_upstream']

_LAYOUT = ('expected: DIR/train/<class>/*.jpg and DIR/val/<class>/*.jpg, or DIR/<class>/*.jpg',)
#: The parts of a folder that are the queries, beside ``train``.
_QUERIES = ('val', 'test', 'validation')


def build_upstream(args: argparse.Namespace, bench: Bench) -> Upstream:
    """The upstream data of ``--upstream``, with the original head where that can be had.

    Args:
        args: Of the command line.
        bench: Of the config.

    Raises:
        InputError: If the data, the config or an option is the user's to mend.
    """
    path = Path(args.upstream).expanduser()
    if path.is_dir():
        found = _of_folder(path, args, bench)
    elif path.is_file():
        found = _of_config(path, args, bench)
    else:
        raise InputError(
            '--upstream is neither a folder of images nor a config', f'looked for: {path.absolute()}', *_LAYOUT
        )
    if found.bank is None and 'head' not in args.measures:
        raise InputError(f'--upstream {path} has no train_dataloader, which kNN needs', 'set it, or --measures head')
    if 'knn' not in args.measures:
        found.bank = None
    found.present = sorted({int(found.queries.get_data_info(i)['gt_label']) for i in range(len(found.queries))})
    _limit(found, args.upstream_images, args.upstream_seed)
    if 'head' in args.measures:
        _add_head(found, args, bench)
    if found.bank is None and found.head is None:
        raise InputError(f'--upstream {path}: there is nothing to measure', *found.notes)
    found.record['measures'] = [found.bank is not None, found.head is not None, list(found.ks), found.outputs]
    return found


# ---------------------------------------------------------------- data


def _of_folder(path: Path, args: argparse.Namespace, bench: Bench) -> Upstream:
    if not hasattr(bench.model, 'extract_feat') or 'head' not in bench.cfg.model:
        raise InputError(
            f'--upstream {path} is a folder, and {bench.cfg.model.get("type")} is no classifier that could read it',
            'give a config of mmpretrain with model, train_dataloader and test_dataloader: its model is given the '
            'backbone',
        )
    if args.upstream_data_root:
        raise InputError('--upstream-data-root is for a config', f'but --upstream {path} is a folder')
    parts = {part.name for part in path.iterdir() if part.is_dir()}
    queries = next((name for name in _QUERIES if name in parts), None)
    notes = []
    if 'train' in parts and queries is not None:
        bank, asked = (_folder(path / part, bench) for part in ('train', queries))
        if bank.metainfo['classes'] != asked.metainfo['classes']:
            odd = sorted({*bank.metainfo['classes']} ^ {*asked.metainfo['classes']})
            raise InputError(f'{path}: train and {queries} have other classes: {odd[0]!r} is in one alone', *_LAYOUT)
    else:
        whole = _folder(path, bench)
        bank, asked = _shared_out(whole, path, args.upstream_seed)
        notes.append(
            f'{path} has no train and val: a fifth of each class, drawn by --upstream-seed {args.upstream_seed}, is '
            f'asked about ({len(asked)} images), the others are the bank ({len(bank)})'
        )
    listed = [[str(Path(i['img_path']).relative_to(path)), Path(i['img_path']).stat().st_size]
              for data in (bank, asked) for i in map(data.get_data_info, range(len(data)))]  # fmt: skip
    record = {'folder': listed, 'pipeline': transforms_of_test(bench.cfg)}
    return Upstream(
        bank, asked, plain_loader(bench.cfg), bank.metainfo['classes'], record, tuple(args.knn_k), notes=notes
    )


def _folder(path: Path, bench: Bench) -> Any:
    if not any(part.is_dir() for part in path.iterdir()):
        raise InputError(f'{path} has no class folders', *_LAYOUT)
    pipeline = transforms_of_test(bench.cfg)
    try:
        return DATASETS.build(
            dict(type='mmpretrain.CustomDataset', data_root=str(path), pipeline=pipeline, test_mode=True)
        )
    except RuntimeError as error:
        raise InputError(f'{path} has no images in its class folders', str(error), *_LAYOUT) from error


def _shared_out(dataset: Any, root: Path, seed: int) -> tuple[Any, Any]:
    # The data sets need mmpretrain, and seconds.
    from ...datasets._folds import stratified_folds

    files = [str(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    names = [Path(file).relative_to(root).as_posix() for file in files]
    # A class may have folders of its own.
    flat = {name: f'{name.split("/")[0]}/{name.replace("/", "|")}' for name in names}
    folds = stratified_folds(flat.values(), 5, seed)
    asked = [i for i, name in enumerate(names) if folds[flat[name]] == 0]
    bank = [i for i, name in enumerate(names) if folds[flat[name]] != 0]
    return dataset.get_subset(bank), dataset.get_subset(asked)


def _of_config(path: Path, args: argparse.Namespace, bench: Bench) -> Upstream:
    given = argparse.Namespace(config=str(path), cfg_options=None, launcher='none', work_dir=bench.cfg.work_dir)
    cfg = settings.load_config(given)
    settings.register_scope(cfg)
    check_names(cfg)
    settings.apply_loaders(cfg, args)
    if args.upstream_data_root:
        move_data_root(cfg, str(Path(args.upstream_data_root).expanduser()))
    if cfg.get('test_dataloader') is None:
        cfg.test_dataloader = cfg.get('val_dataloader')
    if cfg.get('test_dataloader') is None:
        raise InputError(f'--upstream {path} has neither test_dataloader nor val_dataloader', 'set one of them')
    check_data(cfg, 'test', *(['train'] if cfg.get('train_dataloader') is not None else []))
    scope = cfg.get('default_scope')
    with DATASETS.switch_scope_and_registry(scope) as registry:
        bank = None
        if cfg.get('train_dataloader') is not None:
            # The training images under the transforms of the test.
            bank = registry.build(retold(cfg.train_dataloader.dataset, transforms_of_test(cfg)))
        asked = registry.build(copy.deepcopy(cfg.test_dataloader.dataset))
    classes = (asked.metainfo or {}).get('classes')
    if not classes:
        labels = [int(asked.get_data_info(i)['gt_label']) for i in range(len(asked))]
        classes = tuple(map(str, range(max(labels) + 1)))
    record = {'test': cfg.test_dataloader.dataset, 'train': (cfg.get('train_dataloader') or {}).get('dataset')}
    found = Upstream(bank, asked, plain_loader(cfg), classes, record, tuple(args.knn_k))
    if bank is None:
        found.notes.append(f'{path} has no train_dataloader: no kNN')
    if cfg.get('model') is not None:
        with MODELS.switch_scope_and_registry(scope) as registry:
            found.reader = registry.build(_without_files(settings.model_of(cfg))).eval()
        found.record['reader'] = settings.model_of(cfg)
        if not hasattr(found.reader, 'extract_feat') or not hasattr(bench.model, 'backbone'):
            raise InputError(f'--upstream {path}: the model must be a classifier of mmpretrain, or be left out')
    elif not hasattr(bench.model, 'extract_feat') or 'head' not in bench.cfg.model:
        raise InputError(
            f'--upstream {path} has no model, and {bench.cfg.model.get("type")} is no classifier',
            'give it a model of mmpretrain: it is given the backbone',
        )
    return found


def _without_files(model: Any) -> Any:
    """The weights come from elsewhere."""
    bare = copy.deepcopy(model)
    for part in [bare, *(each for each in bare.values() if isinstance(each, Mapping))]:
        for key in ('init_cfg', 'pretrained'):
            part.pop(key, None)
    return bare


def _limit(found: Upstream, images: int | None, seed: int) -> None:
    """At most so many images of bank and queries, drawn by the seed."""
    if images is None:
        return
    generator = torch.Generator().manual_seed(seed)
    for part in ('bank', 'queries'):
        data = getattr(found, part)
        if data is not None and len(data) > images:
            drawn = torch.randperm(len(data), generator=generator)[:images].sort().values.tolist()
            setattr(found, part, data.get_subset(drawn))
            found.record[part] = drawn


# ---------------------------------------------------------------- the original head


def _add_head(found: Upstream, args: argparse.Namespace, bench: Bench) -> None:
    source = args.head or bench.source
    try:
        weights = read_file(source)
        if found.reader is None:
            check_backbone(weights, bench.origin, 'backbone')
        cfg = found.record.get('reader', {}).get('head') if found.reader is not None else None
        head = head_of(weights, cfg)
        outputs = head.num_classes
        given = read_class_map(args.class_map) if args.class_map else None
        found.outputs, how = map_classes(found.classes, outputs, given)
    except NoHeadError as error:
        if args.head or args.class_map:
            raise InputError(f'the accuracy of the original head cannot be had: {error}') from None
        found.notes.append(f'no accuracy of the original head: {error}')
        return
    found.head = head
    found.notes.append(f'the original head has {outputs} outputs, of which {len(found.present)} are asked for: {how}')
    file = file_of(source)
    found.record['head'] = [source if file is None else file_digest(file), cfg]
