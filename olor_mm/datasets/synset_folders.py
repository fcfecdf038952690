"""Images in folders that are named by WordNet ids, under the labels of ImageNet-1K or of a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

from olor_mm.registry import DATASETS

from ._errors import DatasetLayoutError
from ._files import some

__all__ = ['SynsetFolders']


@DATASETS.register_module()
class SynsetFolders(CustomDataset):
    """Folders of images by WordNet id, such as ``n01443537``, under the labels of a head with more classes.

    It is for a part of ImageNet's classes with a head that was pre-trained on all of them: Tiny-ImageNet, ImageNet-R or
    ImageNet-A. mmpretrain's ``CustomDataset`` would number the folders that are there.

    Args:
        synsets: A text file with a WordNet id at the beginning of each line, in the order of the labels. Defaults to
            None: ImageNet-1K's, which timm has.
        **kwargs: Arguments of mmpretrain's ``CustomDataset``, such as ``data_root``, ``data_prefix`` and ``pipeline``.

    Raises:
        ValueError: If a folder's name is no WordNet id of the list.
        ImportError: If no list is given and timm is not installed.

    Example:
        >>> dataset = dict(type='olor_mm.SynsetFolders', data_root='data/tiny_imagenet', data_prefix='train')
    """

    def __init__(self, synsets: str | None = None, **kwargs: Any) -> None:
        self.synsets = synsets
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict for every image; ``gt_label`` counted as in the list."""
        ids = _imagenet() if self.synsets is None else _read(self.synsets)
        labels = {synset: label for label, synset in enumerate(ids)}
        self._metainfo.pop('classes', None)
        samples: list[dict[str, Any]] = super().load_data_list()
        folders: dict[str, int] = self.folder_to_idx
        unknown = sorted(set(folders) - set(labels))
        if unknown:
            where = 'ImageNet-1K' if self.synsets is None else self.synsets
            raise DatasetLayoutError(
                f'{self.img_prefix}: {some(unknown, 3)} are no WordNet ids of {where}; folders must be named as '
                f'{ids[0]} is'
            )
        names = {number: labels[folder] for folder, number in folders.items()}
        for sample in samples:
            sample['gt_label'] = names[sample['gt_label']]
        self._metainfo['classes'] = tuple(IMAGENET_CATEGORIES if self.synsets is None else ids)
        return samples


def _imagenet() -> list[str]:
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError(
            f'the WordNet ids of ImageNet-1K are read from timm, which cannot be imported: {error}; '
            'pip install timm, or give a list: synsets=FILE'
        ) from error
    names: list[str] = ImageNetInfo('imagenet-1k').label_names()
    return names


def _read(file: str) -> list[str]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'synsets={file!r}: there is no such file; looked for {path.absolute()}')
    ids = [line.split()[0].strip(',') for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f'synsets={file!r} must have a WordNet id on each line, each once')
    return ids
