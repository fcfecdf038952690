"""PACS: seven classes in four domains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

from mmengine.logging import print_log

from olor_mm.registry import DATASETS

from ._domains import DomainDataset
from ._errors import DatasetLayoutError
from ._files import images
from ._lists import check_exist, read_list

__all__ = ['PACS']

_OFFICIAL = 'official'
# What the published lists call the splits.
_PARTS = {'train': 'train', 'val': 'crossval', 'test': 'test'}


@DATASETS.register_module()
class PACS(DomainDataset):
    """PACS (Li and others, ICCV 2017): 9,991 images of 7 classes in 4 domains.

    The layout is that of the published archive, with or without its folder ``kfold``. The lists, which are published
    beside it, are needed for ``folds='official'`` alone: ::

        data/pacs
        ├── art_painting
        │   ├── dog
        │   │   ├── pic_001.jpg
        │   │   └── ...
        │   └── ...
        ├── cartoon
        ├── photo
        ├── sketch
        ├── art_painting_train_kfold.txt
        ├── art_painting_crossval_kfold.txt
        ├── art_painting_test_kfold.txt
        └── ...

    With ``folds='official'`` a domain that only trains gives its ``train`` list to ``'train'`` and its ``crossval``
    list, about a tenth, to ``'val'``; one that only tests gives its ``test`` list, which is everything, to ``'test'``.
    A domain in both gives ``train`` to ``'train'`` and ``crossval`` to ``'test'``.

    Args:
        data_root: The folder that holds the domains. Defaults to ``'data/pacs'``.
        split: ``'train'`` or ``'test'``; with the official lists ``'val'`` too. Defaults to ``'train'``.
        **kwargs: Arguments of :class:`DomainDataset`: ``train_domains``, ``test_domains``, ``folds`` (``'stratified'``
            or ``'official'``), ``num_folds``, ``fold``, ``seed``; and of mmpretrain's ``BaseDataset``.

    Example:
        >>> domains = dict(train_domains=('art_painting', 'cartoon', 'photo'), test_domains=('sketch',))
        >>> train, test = PACS('data/pacs', 'train', **domains), PACS('data/pacs', 'test', **domains)
    """

    METAINFO: ClassVar = {'classes': ('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person')}
    NUM_CLASSES = 7
    SPLITS = ('train', 'val', 'test')
    DOMAINS: ClassVar = {name: (name,) for name in ('art_painting', 'cartoon', 'photo', 'sketch')}
    COUNTS: ClassVar = {'art_painting': 2048, 'cartoon': 2344, 'photo': 1670, 'sketch': 3929}
    FOLDERS = ('', 'kfold')
    FOLDS = ('stratified', _OFFICIAL)
    LAYOUT = (
        'DIR, or DIR/kfold\n├── art_painting\n│   ├── dog, ... 7 class folders of images\n├── cartoon\n├── photo\n'
        '└── sketch'
    )

    def __init__(self, data_root: str = 'data/pacs', split: str = 'train', **kwargs: Any) -> None:
        folds = kwargs.get('folds', 'stratified')
        if split == 'val' and folds != _OFFICIAL:
            raise ValueError(
                f"split='val' exists with folds='official' alone, but folds={folds!r}: choose split='train' or 'test'"
            )
        if folds == _OFFICIAL and kwargs.get('fold', 0) != 0:
            raise ValueError(
                f"fold={kwargs['fold']!r} with folds='official': the published lists are one split; set fold=0"
            )
        super().__init__(data_root, split, **kwargs)

    def domains_of_split(self) -> tuple[str, ...]:
        """The domains that give images to the split: to ``'val'`` those that only train."""
        domains = super().domains_of_split()
        return tuple(name for name in domains if not self.is_shared(name)) if self.split == 'val' else domains

    def read_domain(self, folder: Path, domain: str) -> list[tuple[str, int]]:
        """The images of one domain that belong to the split.

        Args:
            folder: The domain's folder.
            domain: Its name.

        Returns:
            For each image ``'<domain>/<class>/<image>'`` and its label.
        """
        if self.folds != _OFFICIAL:
            return super().read_domain(folder, domain)
        part = _PARTS[self.split]
        if self.split == 'test' and self.is_shared(domain):
            part = 'crossval'
        file = self._list(folder, f'{domain}_{part}_kfold.txt')
        entries = [(path, self._label(file, domain, path, label)) for path, label in read_list(file, 7, first_label=1)]
        self.check_classes(folder)
        existing = {f'{domain}/{name}/{image}' for name in self.CLASSES for image in images(folder / name)}
        classes = self.METAINFO['classes']
        kept = [(path, label) for path, label in entries if classes[label] in self.CLASSES]
        check_exist((path for path, _ in kept), existing, file, folder)
        return kept

    def _list(self, folder: Path, name: str) -> Path:
        places = (Path(self.data_root).expanduser(), folder.parent)
        for place in places:
            if (place / name).is_file():
                return place / name
        raise FileNotFoundError(
            f"folds='official' needs the list {name}: looked in {', '.join(sorted({str(place) for place in places}))}\n"
            "put the published lists there, or choose folds='stratified', which needs none"
        )

    def _label(self, file: Path, domain: str, path: str, label: int) -> int:
        """The label of an image, by its folder."""
        parts, classes = path.split('/'), self.METAINFO['classes']
        if len(parts) != 3 or parts[0] != domain or parts[1] not in classes:
            raise DatasetLayoutError(f"{file}: {path!r} is not '{domain}/<class>/<image>'")
        if classes[label] != parts[1]:
            print_log(
                f'{file} gives {path!r} the label {label + 1}, {classes[label]}; its folder decides',
                logger='current',
                level=logging.WARNING,
            )
        return classes.index(parts[1])
