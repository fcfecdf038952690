"""IP102: 102 insect pests."""

from pathlib import Path
from typing import Any, ClassVar

from olor_mm.registry import DATASETS

from ._base import CheckedDataset
from ._files import find_root, images
from ._lists import check_exist, read_class_names, read_list

__all__ = ['IP102']


@DATASETS.register_module()
class IP102(CheckedDataset):
    """IP102 v1.1 (Wu and others, CVPR 2019): 75,222 images of 102 insect pests, long-tailed.

    The layout is that of the published archive, with or without its folder ``ip102_v1.1``. ``classes.txt``, which is
    published beside the archive, gives the names of classes and may be missing: ::

        data/ip102
        ├── images
        │   ├── 00000.jpg
        │   └── ...
        ├── classes.txt
        ├── train.txt
        ├── val.txt
        └── test.txt

    Args:
        data_root: The folder that holds lists and images. Defaults to ``'data/ip102'``.
        split: ``'train'`` (45,095 images), ``'val'`` (7,508) or ``'test'`` (22,619). Defaults to ``'train'``.
        **kwargs: Arguments of :class:`CheckedDataset`.

    Example:
        >>> test = IP102('data/ip102', 'test')
    """

    SPLITS = ('train', 'val', 'test')
    NUM_CLASSES = 102
    COUNTS: ClassVar = {'train': 45095, 'val': 7508, 'test': 22619}
    FOLDERS = ('', 'ip102_v1.1')
    LAYOUT = (
        'DIR, or DIR/ip102_v1.1\n├── images\n│   ├── 00000.jpg, ...\n├── classes.txt (names; may be missing)\n'
        '├── train.txt\n├── val.txt\n└── test.txt'
    )

    def __init__(self, data_root: str = 'data/ip102', split: str = 'train', **kwargs: Any) -> None:
        super().__init__(data_root, split, **kwargs)

    def read(self) -> list[dict[str, Any]]:
        """One dict for every image of the split."""
        root = self._find_root()
        file, folder = root / f'{self.split}.txt', root / 'images'
        entries = read_list(file, self.NUM_CLASSES)
        check_exist((path for path, _ in entries), set(images(folder)) if folder.is_dir() else set(), file, folder)
        self.warn_unless(str(file), len(entries), self.COUNTS[self.split])
        return [{'img_path': str(folder / path), 'gt_label': label} for path, label in entries]

    def read_classes(self) -> tuple[str, ...] | None:
        """The names in ``classes.txt``, beside the lists or in ``data_root``; None where there is no such file."""
        for folder in (self._find_root(), Path(self.data_root).expanduser()):
            if (folder / 'classes.txt').is_file():
                return read_class_names(folder / 'classes.txt', self.NUM_CLASSES)
        return None

    def _find_root(self) -> Path:
        return find_root(self.data_root, self.FOLDERS, [f'{split}.txt' for split in self.SPLITS], self.LAYOUT)
