"""PACS: seven classes in four domains."""

from typing import Any, ClassVar

from olor_mm.registry import DATASETS

from ._domains import DomainDataset

__all__ = ['PACS']


@DATASETS.register_module()
class PACS(DomainDataset):
    """PACS (Li and others, ICCV 2017): 9,991 images of 7 classes in 4 domains.

    The layout is that of the published archive, with or without its folder ``kfold``: ::

        data/pacs
        ├── art_painting
        │   ├── dog
        │   │   ├── pic_001.jpg
        │   │   └── ...
        │   └── ...
        ├── cartoon
        ├── photo
        └── sketch

    Args:
        data_root: The folder that holds the domains. Defaults to ``'data/pacs'``.
        split: ``'train'`` or ``'test'``. Defaults to ``'train'``.
        **kwargs: Arguments of :class:`DomainDataset`: ``train_domains``, ``test_domains``, ``folds``, ``num_folds``,
            ``fold``, ``seed``; and of mmpretrain's ``BaseDataset``.

    Example:
        >>> train = PACS('data/pacs', 'train', test_domains=('sketch',), train_domains=('photo', 'cartoon'))
    """

    METAINFO: ClassVar = {'classes': ('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person')}
    NUM_CLASSES = 7
    DOMAINS: ClassVar = {name: (name,) for name in ('art_painting', 'cartoon', 'photo', 'sketch')}
    COUNTS: ClassVar = {'art_painting': 2048, 'cartoon': 2344, 'photo': 1670, 'sketch': 3929}
    FOLDERS = ('', 'kfold')
    LAYOUT = (
        'DIR, or DIR/kfold\n├── art_painting\n│   ├── dog, ... 7 class folders of images\n├── cartoon\n├── photo\n'
        '└── sketch'
    )

    def __init__(self, data_root: str = 'data/pacs', split: str = 'train', **kwargs: Any) -> None:
        super().__init__(data_root, split, **kwargs)
