"""The data sets in the format in which they are published, a few images of nothing in each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

from olor_mm.datasets import IP102, PACS, DomainDataset, PlacesLT

__all__ = ['jpeg', 'make_domains', 'make_ip102', 'make_lists', 'make_places', 'make_svhn', 'write']


def jpeg(shade: int = 128, side: int = 16) -> bytes:
    """A grey JPEG image."""
    return cv2.imencode('.jpg', np.full((side, side, 3), shade, np.uint8))[1].tobytes()


def make_domains(
    root: Path, kind: type[DomainDataset], per_class: int = 3, spelling: Mapping[str, str] | None = None
) -> Path:
    """Folders ``<domain>/<class>`` with JPEG images, and beside them what file managers leave behind."""
    for domain in kind.DOMAINS:
        for label, name in enumerate(kind.METAINFO['classes']):
            folder = root / (spelling or {}).get(domain, domain) / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                (folder / f'pic_{number:03d}.jpg').write_bytes(jpeg(label))
            for rubbish in ('.DS_Store', '._pic_000.jpg', 'Thumbs.db', 'desktop.ini'):
                (folder / rubbish).write_bytes(b'not an image')
    return root


def make_lists(root: Path, per_class: int = 3, crossval: int = 1) -> None:
    """The lists published with PACS, for folders that :func:`make_domains` made: the last images are ``crossval``."""
    for domain in PACS.DOMAINS:
        lines = [
            (number, f'{domain}/{name}/pic_{number:03d}.jpg {label}')
            for label, name in enumerate(PACS.METAINFO['classes'], 1)
            for number in range(per_class)
        ]
        parts = {
            'train': [line for number, line in lines if number < per_class - crossval],
            'crossval': [line for number, line in lines if number >= per_class - crossval],
            'test': [line for _, line in lines],
        }
        for part, chosen in parts.items():
            (root / f'{domain}_{part}_kfold.txt').write_text('\n'.join(chosen) + '\n')


def make_svhn(root: Path, counts: Mapping[str, int], seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """``<name>_32x32.mat`` for each name, compressed as published; returns X and y as written."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, count in counts.items():
        images = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f'{name}_32x32.mat', {'X': images, 'y': labels}, do_compression=True)
        written[name] = images, labels
    return written


def make_places(root: Path) -> Path:
    """Places-LT's lists and images: two to train and one to test for each class, in the folders of Places365."""
    lists: dict[str, list[str]] = {split: [] for split in PlacesLT.SPLITS}
    for label in range(PlacesLT.NUM_CLASSES):
        # Half of the scenes have a folder below their own, as apartment_building/outdoor does.
        scene = f's/scene_{label:03d}' + ('/outdoor' if label % 2 else '')
        lists['train'] += [f'data_256/{scene}/{number:08d}.jpg {label}' for number in (1, 2)]
        lists['val'].append(f'data_256/{scene}/00000003.jpg {label}')
        lists['test'].append(f'val_256/Places365_val_{label:08d}.jpg {label}')
    for split, lines in lists.items():
        write(root, (line.rpartition(' ')[0] for line in lines))
        (root / f'Places_LT_{split}.txt').write_text('\n'.join(lines) + '\n')
    return root


def make_ip102(root: Path, names: Sequence[str] | None = None) -> Path:
    """IP102's lists and images, one image a class and split, and ``classes.txt`` where names are given."""
    for offset, split in enumerate(IP102.SPLITS):
        lines = [f'{3 * label + offset:05d}.jpg {label}' for label in range(IP102.NUM_CLASSES)]
        write(root / 'images', (line.partition(' ')[0] for line in lines))
        (root / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    if names:
        # Blanks and tabs of the published file included.
        text = ''.join(f'{number:<2} {name} \t\t\t\n' for number, name in enumerate(names, 1))
        (root / 'classes.txt').write_text(text)
    return root


def write(root: Path, paths: Iterable[str]) -> None:
    """An image at each path below ``root``."""
    content = jpeg()
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
