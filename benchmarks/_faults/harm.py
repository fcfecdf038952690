"""Ways to harm files between two runs."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from olor_mm.engine import load_from_local

__all__ = ['HARMS', 'change']


def cut(folder: Path) -> None:
    """The latest checkpoint ends in its middle."""
    file = folder / 'epoch_2.pth'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(folder: Path, where: str, seed: int = 0) -> None:
    """One bit of the latest checkpoint is another: in a weight, in theta_0, in the pickle, in the table of contents."""
    file = folder / 'epoch_2.pth'
    data, draw = bytearray(file.read_bytes()), random.Random(seed)
    content = load_from_local(str(file), 'cpu')
    places: Mapping[str, Callable[[], int]] = {
        'a weight': lambda: data.index(content['state_dict']['backbone.stem.weight'].numpy().tobytes()) + 3,
        'theta_0': lambda: data.index(_anchor(content).numpy().tobytes()) + 7,
        'the pickle': lambda: data.index(b'state_dict') + 2,
        'the table of contents': lambda: len(data) - draw.randrange(30, 60),
    }
    data[places[where]()] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def _anchor(content: dict) -> torch.Tensor:
    return next(
        s['rollback_anchor'] for s in content['optimizer']['state'].values() if s.get('rollback_anchor') is not None
    )


def record(text: str | bytes | None) -> Callable[[Path], None]:
    """last_checkpoint says something else, or is gone."""

    def harm(folder: Path) -> None:
        file = folder / 'last_checkpoint'
        if text is None:
            file.unlink()
        else:
            file.write_bytes(text if isinstance(text, bytes) else text.format(folder=folder).encode())

    return harm


def change(edit: Callable[[dict], Any]) -> Callable[[Path], None]:
    """The latest checkpoint is edited, and written whole."""

    def harm(folder: Path) -> None:
        content = load_from_local(str(folder / 'epoch_2.pth'), 'cpu')
        edit(content)
        torch.save(content, folder / 'epoch_2.pth')

    return harm


def nothing(folder: Path) -> None:
    """Files are left as they are."""


def both_cut(folder: Path) -> None:
    """Every checkpoint of the run is cut off."""
    for file in folder.glob('*.pth'):
        file.write_bytes(file.read_bytes()[:1000])


HARMS: dict[str, Callable[[Path], None]] = {
    'nothing': nothing,
    'cut': cut,
    'all cut': both_cut,
    **{
        f'flip {w}': lambda folder, w=w: flip(folder, w)
        for w in ('a weight', 'theta_0', 'the pickle', 'the table of contents')
    },
    'no record': record(None),
    'empty record': record(''),
    'garbled record': record(b'\xff\x00\x07\xfe'),
    'record of nothing': record('{folder}/epoch_9.pth'),
    'no optimizer': change(lambda content: content.pop('optimizer')),
    'names alone': change(
        lambda content: content['optimizer'].update(rollback={'names': content['optimizer']['rollback']['names']})
    ),
}
