"""Tiny data sets for tests, made from nothing: coloured shapes with exact masks, in COCO's format and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ('disc', 'square', 'triangle')
CATEGORIES = [dict(id=number, name=name, supercategory='shape') for number, name in enumerate(CLASSES, start=1)]


def make_coco(root: Path, train: int = 8, val: int = 4, size: tuple[int, int] = (96, 128), seed: int = 0) -> Path:
    """Write a data set of shapes: COCO's folders, json files and JPEG photographs of nothing.

    Args:
        root: Folder to make; it gets ``train2017``, ``val2017`` and ``annotations``.
        train: Number of training images. Defaults to 8.
        val: Number of validation images. Defaults to 4.
        size: Height and width of the images in pixels. Defaults to (96, 128).
        seed: Of everything that is drawn. Defaults to 0.

    Returns:
        ``root``.
    """
    rng = np.random.default_rng(seed)
    (root / 'annotations').mkdir(parents=True)
    for split, count in (('train2017', train), ('val2017', val)):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for _ in range(count):
            image_id = len(images) + 1
            name = f'{image_id:012d}.jpg'
            image, instances = _draw(rng, *size)
            cv2.imwrite(str(root / split / name), image)
            images.append(dict(id=image_id, file_name=name, height=size[0], width=size[1]))
            for instance in instances:
                annotations.append(dict(instance, id=len(annotations) + 1, image_id=image_id, iscrowd=0))
        content = dict(images=images, annotations=annotations, categories=CATEGORIES)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return root


def _draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One image of noise with three shapes, and their polygons; the category is the shape."""
    image = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    instances = []
    for column, kind in enumerate(rng.permutation(3)):
        centre = np.array([(column + 0.5) * width / 3, height / 2 + rng.uniform(-height / 5, height / 5)])
        radius = rng.uniform(0.1, 0.15) * width
        corners = (24, 4, 3)[kind]
        angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        polygon = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        polygon = polygon.clip(0, [width - 1, height - 1])
        colour = tuple(int(value) for value in rng.integers(140, 255, 3))
        cv2.fillPoly(image, [polygon.round().astype(np.int32)], colour)
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        x, y = polygon[:, 0], polygon[:, 1]
        instances.append(
            dict(
                category_id=CATEGORIES[kind]['id'],
                bbox=[*low.tolist(), *(high - low).tolist()],
                area=float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2),
                segmentation=[polygon.reshape(-1).tolist()],
            )
        )
    return image, instances
