"""Places-LT: 365 scenes, long-tailed."""

from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from olor_mm.registry import DATASETS

from ._base import CheckedDataset
from ._files import find_root
from ._lists import missing_images, read_list

__all__ = ['PlacesLT']

# Images that are looked for when the data set is built: a folder of Places365 holds thousands that are not listed, and
# asking for 62,500 files one by one takes minutes on network storage.
_PROBES = 64


@DATASETS.register_module()
class PlacesLT(CheckedDataset):
    """Places-LT (Liu and others, CVPR 2019): 62,500 long-tailed images of 365 scenes to train on, drawn from Places365.

    The lists go into ``data_root``, and the images of Places365 below it, wherever the lists say. The names of classes
    are taken from the folders of the training list: ::

        data/places_lt
        ├── Places_LT_train.txt
        ├── Places_LT_val.txt
        ├── Places_LT_test.txt
        └── data_256
            └── a
                ├── airfield
                │   ├── 00000001.jpg
                │   └── ...
                └── ...

    Args:
        data_root: The folder that holds the lists. Defaults to ``'data/places_lt'``.
        split: ``'train'`` (62,500 images), ``'val'`` (7,300) or ``'test'`` (36,500). Defaults to ``'train'``.
        **kwargs: Arguments of :class:`CheckedDataset`. Without ``verify=True`` only some of the images are looked for
            when the data set is built.

    Example:
        >>> test = PlacesLT('data/places_lt', 'test')
    """

    SPLITS = ('train', 'val', 'test')
    NUM_CLASSES = 365
    COUNTS: ClassVar = {'train': 62500, 'val': 7300, 'test': 36500}
    LAYOUT = (
        'DIR\n├── Places_LT_train.txt\n├── Places_LT_val.txt\n├── Places_LT_test.txt\n'
        '└── the images, at the paths that the lists give, such as data_256/a/airfield/00000001.jpg'
    )

    def __init__(self, data_root: str = 'data/places_lt', split: str = 'train', **kwargs: Any) -> None:
        super().__init__(data_root, split, **kwargs)

    def read(self) -> list[dict[str, Any]]:
        """One dict for every image of the split."""
        file = self._list(self.split)
        entries = read_list(file, self.NUM_CLASSES)
        step = max(1, len(entries) // _PROBES)
        missing = [path for path, _ in (*entries[::step], entries[-1]) if not (file.parent / path).is_file()]
        if missing:
            raise missing_images(missing, file, file.parent)
        self.warn_unless(str(file), len(entries), self.COUNTS[self.split])
        return [{'img_path': str(file.parent / path), 'gt_label': label} for path, label in entries]

    def read_classes(self) -> tuple[str, ...] | None:
        """The folders in the training list; None where it is missing or its folders are not the classes."""
        file = self._list('train')
        if not file.is_file():
            return None
        names: dict[int, str] = {}
        for path, label in read_list(file, self.NUM_CLASSES):
            if names.setdefault(label, _scene(path)) != _scene(path):
                return None
        if len(set(names.values())) < self.NUM_CLASSES:
            return None
        return tuple(names[label] for label in range(self.NUM_CLASSES))

    def _list(self, split: str) -> Path:
        lists = {name: f'Places_LT_{name}.txt' for name in self.SPLITS}
        return find_root(self.data_root, ('',), list(lists.values()), self.LAYOUT) / lists[split]


def _scene(path: str) -> str:
    """``'apartment_building/outdoor'`` of ``'data_256/a/apartment_building/outdoor/00000001.jpg'``."""
    parts = PurePosixPath(path).parts[1:-1]
    return '/'.join(parts[1:] if len(parts) > 1 and len(parts[0]) == 1 else parts)
