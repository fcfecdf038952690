"""A small two-domain instance segmentation data set in COCO format: circles, squares and triangles.

The categories are the same in both domains and the look is not. Domain A: filled bright shapes on a dark textured
background. Domain B: smaller outlined dark shapes on a light, grainy background. A detector trained on A has to learn
B anew, and nothing in B reminds it of A.

Everything follows from the seed, so two runs write the same bytes.

Layout below the data root::

    A/train/000001.png ...            A/annotations/train.json
    A/val/...                         A/annotations/val.json
    A/test/...                        A/annotations/test.json
    B/...
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CATEGORIES = ('circle', 'square', 'triangle')
SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class Domain:
    """The look of one domain.

    Args:
        background: Range of the mean grey level of the background, 0 to 255.
        contrast: Least distance between a shape's colour and the background's mean, in grey levels.
        radius: Range of the radius of a shape, as a fraction of the image's side.
        count: Smallest and largest number of shapes in an image.
        fill: Opacity of the inside of a shape, 0 to 1; its outline is opaque.
        outline: Width of the outline in pixels; 0 for none.
        stripes: Amplitude of the background's stripes in grey levels.
        blotches: Amplitude of the background's smooth blotches in grey levels.
        grain: Standard deviation of the sensor noise in grey levels.
    """

    background: tuple[float, float]
    contrast: float
    radius: tuple[float, float]
    count: tuple[int, int]
    fill: float
    outline: int
    stripes: float
    blotches: float
    grain: float


DOMAINS = {
    'A': Domain(
        background=(40, 130),
        contrast=110,
        radius=(0.14, 0.24),
        count=(1, 3),
        fill=1.0,
        outline=0,
        stripes=12,
        blotches=25,
        grain=6,
    ),
    'B': Domain(
        background=(120, 215),
        contrast=110,
        radius=(0.10, 0.19),
        count=(2, 4),
        fill=0.4,
        outline=2,
        stripes=0,
        blotches=18,
        grain=16,
    ),
}


def write_dataset(root: Path, sizes: dict[str, dict[str, int]], image_size: int = 96, seed: int = 0) -> None:
    """Writes both domains below ``root``.

    Args:
        root: Data root; made if absent, files in it are overwritten.
        sizes: Number of images by domain and split, such as ``{'A': {'train': 400}}``.
        image_size: Side of the square images in pixels. Defaults to 96.
        seed: Seed of everything. Defaults to 0.
    """
    for name, splits in sizes.items():
        for split, count in splits.items():
            # One independent stream per split: more training images leave the validation images as they were.
            rng = np.random.default_rng([seed, sorted(DOMAINS).index(name), SPLITS.index(split)])
            _write_split(Path(root) / name, split, DOMAINS[name], count, image_size, rng)


def draw_image(domain: Domain, side: int, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image with its instances.

    Returns:
        The BGR image, uint8 of shape (side, side, 3), and for each instance its index into :data:`CATEGORIES` and its
        visible mask, uint8 of shape (side, side).
    """
    image = _background(domain, side, rng)
    paper = image.mean(axis=(0, 1))
    instances: list[tuple[int, np.ndarray]] = []
    for _ in range(int(rng.integers(domain.count[0], domain.count[1] + 1))):
        category = int(rng.integers(len(CATEGORIES)))
        corners, colour = _corners(category, domain, side, rng), _colour(paper, domain.contrast, rng)
        mask = cv2.fillPoly(np.zeros((side, side), np.uint8), [corners], 1)
        if domain.outline:
            cv2.polylines(mask, [corners], True, 1, domain.outline)
        visible = [(other, old & ~mask) for other, old in instances]
        # A shape that would hide much of an earlier one is left out: its remains would be a riddle, not an instance.
        if any(new.sum() < 0.75 * old.sum() for (_, new), (_, old) in zip(visible, instances, strict=True)):
            continue
        instances = [*visible, (category, mask)]
        _paint(image, mask, corners, colour, domain)
    return _camera(image, domain, rng), instances


def _paint(image: np.ndarray, mask: np.ndarray, corners: np.ndarray, colour: tuple[float, ...], domain: Domain) -> None:
    paper = image[mask > 0].mean(axis=0)
    inside = (1 - domain.fill) * paper + domain.fill * np.array(colour)
    cv2.fillPoly(image, [corners], tuple(float(c) for c in inside), cv2.LINE_AA)
    if domain.outline:
        cv2.polylines(image, [corners], True, colour, domain.outline, cv2.LINE_AA)


def _write_split(folder: Path, split: str, domain: Domain, count: int, side: int, rng: np.random.Generator) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        image, instances = draw_image(domain, side, rng)
        file_name = f'{image_id:06d}.png'
        if not cv2.imwrite(str(folder / split / file_name), image):
            raise OSError(f'{folder / split / file_name} could not be written')
        images.append(dict(id=image_id, file_name=file_name, width=side, height=side))
        for category, mask in instances:
            annotations.append(_annotation(len(annotations) + 1, image_id, category, mask))
    categories = [dict(id=i + 1, name=name, supercategory='shape') for i, name in enumerate(CATEGORIES)]
    content = dict(
        info=dict(description=f'olor_mm demo, {folder.name}/{split}'),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=categories,
    )
    (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def _annotation(annotation_id: int, image_id: int, category: int, mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=category + 1,
        iscrowd=0,
        area=int(mask.sum()),
        bbox=[float(x) for x in coco_mask.toBbox(encoded)],
        segmentation=dict(size=list(mask.shape), counts=encoded['counts'].decode('ascii')),
    )


def _background(domain: Domain, side: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth blotches, stripes in a random direction and a tint."""
    coarse = rng.normal(size=(6, 6)).astype(np.float32)
    field = rng.uniform(*domain.background) + domain.blotches * cv2.resize(
        coarse, (side, side), interpolation=cv2.INTER_CUBIC
    )
    angle, wavelength, phase = rng.uniform(0, np.pi), rng.uniform(5, 14), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:side, :side]
    field = field + domain.stripes * np.sin(2 * np.pi / wavelength * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.clip(field[..., None] + rng.normal(0, 8, size=3), 0, 255).astype(np.uint8)


def _corners(category: int, domain: Domain, side: int, rng: np.random.Generator) -> np.ndarray:
    """Corners of a shape, int32 of shape (n, 2), wholly inside the image."""
    radius = rng.uniform(*domain.radius) * side
    centre = rng.uniform(radius + 1, side - radius - 1, size=2)
    count = {'circle': 48, 'square': 4, 'triangle': 3}[CATEGORIES[category]]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(points).astype(np.int32)


def _colour(paper: np.ndarray, contrast: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Any colour that stands out from ``paper``."""
    while True:
        colour = rng.uniform(0, 255, size=3)
        if np.linalg.norm(colour - paper) >= contrast:
            return tuple(float(c) for c in colour)


def _camera(image: np.ndarray, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Slight blur, uneven light and sensor noise, as a cheap camera adds them."""
    side = image.shape[0]
    blurred = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.8)).astype(np.float32)
    y, x = np.mgrid[:side, :side] / side - 0.5
    slope = rng.uniform(-0.25, 0.25, size=2)
    light = 1 + slope[0] * x + slope[1] * y
    noisy = blurred * light[..., None] + rng.normal(0, domain.grain, size=image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)
