"""tools/predict_tasks.py: several classifiers that were tuned by DTL label images with one backbone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope

from ..engine.loading import load_from_local
from ..engine.trained_only import LEFT_OUT
from ..models import DTLGroup
from . import settings
from .errors import InputError
from .names import check_names
from .weights import check_file

__all__ = ['predict_tasks']

_IMAGES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'}


def predict_tasks(argv: Sequence[str]) -> None:
    """Predict as ``tools/predict_tasks.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If there are no images, or the tasks cannot share a backbone.
    """
    args = _parser().parse_args(argv)
    files = _images(Path(args.images).expanduser())
    group, pipeline, classes = _group(args)
    found: dict[str, dict[str, Any]] = {}
    for batch in _batches(files, args.batch_size):
        data = pseudo_collate([pipeline({'img_path': str(file), 'img': None}) for file in batch])
        for task, samples in group.test_step(data).items():
            for file, sample in zip(batch, samples, strict=True):
                found.setdefault(str(file), {})[task] = _answer(sample, classes[task])
    text = json.dumps(found, indent=2)
    if args.out is None:
        print(text)
        return
    out = Path(args.out).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + '\n')
    print(f'{out}: {len(files)} images, tasks {", ".join(classes)}')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='predict_tasks.py',
        description='Label images by several tasks whose models were tuned by DTL from the same weights. The backbone '
        'is in memory once, and what lies in front of its block M runs once for all tasks.',
    )
    parser.add_argument('images', help='an image, or a folder of images')
    parser.add_argument(
        '--task',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a task; say it once for each',
    )
    parser.add_argument('--out', help='JSON file to write; default: print')
    parser.add_argument('--batch-size', type=int, default=32, help='images at a time (default: 32)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help="'cpu', 'cuda', ...")
    return parser


def _images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob('*') if file.suffix.lower() in _IMAGES) if path.is_dir() else []
    if not files:
        raise InputError(f'{path} is no image and no folder with images')
    return files


def _batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    if size < 1:
        raise InputError(f'--batch-size {size} must be 1 at least')
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _group(args: argparse.Namespace) -> tuple[DTLGroup, Any, dict[str, Iterable[str] | None]]:
    """All tasks' models, how images are prepared for them, and the names of their classes."""
    group, pipelines, classes = DTLGroup(), [], {}
    for name, config, checkpoint in args.task:
        cfg = _config(config)
        model, classes[name] = _model(cfg, config, checkpoint)
        try:
            group.add(name, model.to(args.device))
        except ValueError as error:
            raise InputError(f'--task {name}: {error}') from error
        pipelines.append(cfg.test_dataloader.dataset.pipeline)
    if any(pipeline != pipelines[0] for pipeline in pipelines):
        raise InputError(
            "the tasks' configs prepare test images in several ways",
            'give their configs the same test_dataloader.dataset.pipeline',
        )
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return group, Compose(pipelines[0]), classes


def _config(file: str) -> Config:
    cfg = settings.load_config(argparse.Namespace(config=file, cfg_options=None, launcher='none', work_dir=None))
    settings.register_scope(cfg)
    check_names(cfg)
    return cfg


def _model(cfg: Config, config: str, file: str) -> tuple[torch.nn.Module, Iterable[str] | None]:
    check_file(file, 'the checkpoint of a task')
    checkpoint = load_from_local(file, 'cpu')
    state = checkpoint.get('state_dict', checkpoint)
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        model: torch.nn.Module = registry.build(settings.model_of(cfg))
    if LEFT_OUT in state:
        model.init_weights()  # type: ignore[operator]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(f'{file} does not fit the model of {config}', str(error)) from error
    return model, ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')


def _answer(sample: Any, classes: Any) -> dict[str, Any]:
    if not hasattr(sample, 'pred_score'):
        raise InputError('the tasks are no classifiers', 'for others use olor_mm.models.DTLGroup in Python')
    score, label = (value.item() for value in sample.pred_score.max(0))
    return {'label': label, 'score': score, **({'class': classes[label]} if classes else {})}
