"""What is known of each data set: how it lies on the disk, what it counts, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .arrays import cifar100, svhn
from .extras import ip102_names, pacs_lists, whole_svhn
from .findings import Findings
from .records import Reader, coco, cub, domain_folders, image_lists, scene_parsing, stanford_cars

__all__ = ['SPECS', 'Spec']

# The MD5 sums are those that mmpretrain and torchvision look for.
_CIFAR100_DIGESTS = {
    'cifar-100-python/train': '16019d7e3df5f24257cddd939b257f8d',
    'cifar-100-python/test': 'f0ef6b0ae62326f3e7ffdfab6717acfc',
    'cifar-100-python/meta': '7973b15100ade9c7d40fb424638fde48',
}


@dataclass(frozen=True)
class Spec:
    """A data set.

    Args:
        name: What the command line calls it.
        title: What its authors call it.
        dataset: The class that reads it in a config.
        data_root: Where our configs, and else the toolboxes', look for it.
        home: Where it is to be had: the page of the project, not of a file.
        archives: The files to download from there, and what to know about them.
        layout: How it lies on the disk, as a tree.
        needs: Files and folders without which it is not there, each in the names that it may have.
        parts: The images of each split or domain.
        classes: How many classes it has.
        records: Its reader.
        part: What ``parts`` are: ``'split'`` or ``'domain'``. Defaults to ``'split'``.
        has_labels: Whether every image has one class. Defaults to True.
        optional: The parts that may be absent. Defaults to none.
        class_minimum: The least images that a class has, in a part. Defaults to 1 in each.
        mask_limit: The largest value of a mask. Defaults to 0: there are no masks.
        digests: MD5 sums of files. Defaults to none.
        extra: A further check. Defaults to none.
        whole: What takes the place of decoding where there are no image files. Defaults to none.
        folds: Whether split files are written: it has no official splits. Defaults to False.
    """

    name: str
    title: str
    dataset: str
    data_root: str
    home: str
    archives: tuple[str, ...]
    layout: str
    needs: tuple[tuple[str, ...], ...]
    parts: Mapping[str, int]
    classes: int
    records: Reader
    part: str = 'split'
    has_labels: bool = True
    optional: frozenset[str] = frozenset()
    class_minimum: Mapping[str, int] = field(default_factory=dict)
    mask_limit: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    extra: Callable[[Path, Findings], None] | None = None
    whole: Callable[[Path, Findings], None] | None = None
    folds: bool = False


def _needs(*names: str) -> tuple[tuple[str, ...], ...]:
    """One tuple for each name; alternatives are divided by ``|``."""
    return tuple(tuple(name.split('|')) for name in names)


_SPECS = (
    Spec(
        name='cifar100',
        title='CIFAR-100',
        dataset='mmpretrain.CIFAR100',
        data_root='data/cifar100',
        home='https://www.cs.toronto.edu/~kriz/cifar.html',
        archives=('cifar-100-python.tar.gz; mmpretrain.CIFAR100 downloads it by itself when a training starts',),
        layout='DIR\n└── cifar-100-python\n    ├── train\n    ├── test\n    └── meta',
        needs=_needs('cifar-100-python/train', 'cifar-100-python/test', 'cifar-100-python/meta'),
        parts={'train': 50000, 'test': 10000},
        classes=100,
        records=cifar100,
        class_minimum={'train': 500, 'test': 100},
        digests=_CIFAR100_DIGESTS,
    ),
    Spec(
        name='svhn',
        title='SVHN (cropped digits)',
        dataset='olor_mm.SVHN',
        data_root='data/svhn',
        home='http://ufldl.stanford.edu/housenumbers/',
        archives=('train_32x32.mat', 'test_32x32.mat', "extra_32x32.mat (for split='extra' and 'train+extra' only)"),
        layout='DIR\n├── train_32x32.mat\n├── test_32x32.mat\n└── extra_32x32.mat (optional)',
        needs=_needs('train_32x32.mat', 'test_32x32.mat'),
        parts={'train': 73257, 'test': 26032, 'extra': 531131},
        classes=10,
        records=svhn,
        optional=frozenset({'extra'}),
        whole=whole_svhn,
    ),
    Spec(
        name='cub200',
        title='CUB-200-2011',
        dataset='mmpretrain.CUB',
        data_root='data/CUB_200_2011',
        home='https://www.vision.caltech.edu/datasets/cub_200_2011/',
        archives=('CUB_200_2011.tgz',),
        layout=(
            'DIR\n├── images\n│   ├── 001.Black_footed_Albatross, ... 200 class folders\n├── images.txt\n'
            '├── image_class_labels.txt\n└── train_test_split.txt'
        ),
        needs=_needs('images.txt', 'image_class_labels.txt', 'train_test_split.txt', 'images'),
        parts={'train': 5994, 'test': 5794},
        classes=200,
        records=cub,
    ),
    Spec(
        name='stanford_cars',
        title='Stanford Cars',
        dataset='mmpretrain.StanfordCars',
        data_root='data/stanford_cars',
        home='https://ai.stanford.edu/~jkrause/cars/car_dataset.html (its links may be dead: look for a copy)',
        archives=(
            'cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat, which goes into devkit/',
            'or car_ims.tgz and cars_annos.mat',
        ),
        layout=(
            'DIR\n├── cars_train\n├── cars_test\n└── devkit\n    ├── cars_train_annos.mat\n'
            '    └── cars_test_annos_withlabels.mat\nor\nDIR\n├── car_ims\n└── cars_annos.mat'
        ),
        needs=_needs(
            'devkit/cars_train_annos.mat|cars_annos.mat',
            'devkit/cars_test_annos_withlabels.mat|cars_annos.mat',
            'cars_train|car_ims',
            'cars_test|car_ims',
        ),
        parts={'train': 8144, 'test': 8041},
        classes=196,
        records=stanford_cars,
    ),
    Spec(
        name='places_lt',
        title='Places-LT',
        dataset='olor_mm.PlacesLT',
        data_root='data/places_lt',
        home='https://liuziwei7.github.io/projects/LongTail.html',
        archives=(
            'Places_LT_train.txt, Places_LT_val.txt, Places_LT_test.txt from there',
            'the images of Places365-Standard, 256x256, train and val: http://places2.csail.mit.edu/download.html',
        ),
        layout=(
            'DIR\n├── Places_LT_train.txt\n├── Places_LT_val.txt\n├── Places_LT_test.txt\n'
            '└── the images, at the paths that the lists give, such as data_256/a/airfield/00000001.jpg'
        ),
        needs=_needs('Places_LT_train.txt', 'Places_LT_val.txt', 'Places_LT_test.txt'),
        parts={'train': 62500, 'val': 7300, 'test': 36500},
        classes=365,
        records=image_lists({split: f'Places_LT_{split}.txt' for split in ('train', 'val', 'test')}),
        class_minimum={'train': 5, 'val': 20, 'test': 100},
    ),
    Spec(
        name='ip102',
        title='IP102 v1.1',
        dataset='olor_mm.IP102',
        data_root='data/ip102',
        home='https://github.com/xpwu95/IP102',
        archives=('the part for classification, ip102_v1.1; classes.txt lies in the repository itself',),
        layout=(
            'DIR\n├── images\n│   ├── 00000.jpg, ...\n├── train.txt\n├── val.txt\n├── test.txt\n'
            '└── classes.txt (optional: the names)'
        ),
        needs=_needs('train.txt', 'val.txt', 'test.txt', 'images'),
        parts={'train': 45095, 'val': 7508, 'test': 22619},
        classes=102,
        records=image_lists({split: f'{split}.txt' for split in ('train', 'val', 'test')}, images='images'),
        extra=ip102_names,
    ),
    Spec(
        name='office_home',
        title='Office-Home',
        dataset='olor_mm.OfficeHome',
        data_root='data/office_home',
        home='https://www.hemanthdv.org/officeHomeDataset.html',
        archives=('OfficeHomeDataset_10072016.zip',),
        layout=(
            'DIR\n├── Art\n│   ├── Alarm_Clock, ... 65 class folders of images\n├── Clipart\n├── Product\n'
            '└── Real World (or Real_World, RealWorld)'
        ),
        needs=_needs('Art', 'Clipart', 'Product', 'Real World|Real_World|RealWorld'),
        parts={'Art': 2427, 'Clipart': 4365, 'Product': 4439, 'Real World': 4357},
        classes=65,
        records=domain_folders('OfficeHome'),
        part='domain',
        folds=True,
    ),
    Spec(
        name='pacs',
        title='PACS',
        dataset='olor_mm.PACS',
        data_root='data/pacs',
        home='https://domaingeneralization.github.io/',
        archives=('the images (folder kfold), and the lists *_{train,crossval,test}_kfold.txt, which are optional',),
        layout=(
            'DIR\n├── art_painting\n│   ├── dog, ... 7 class folders of images\n├── cartoon\n├── photo\n├── sketch\n'
            "└── art_painting_train_kfold.txt, ... 12 lists (optional: for folds='official')"
        ),
        needs=_needs('art_painting', 'cartoon', 'photo', 'sketch'),
        parts={'art_painting': 2048, 'cartoon': 2344, 'photo': 1670, 'sketch': 3929},
        classes=7,
        records=domain_folders('PACS'),
        part='domain',
        extra=pacs_lists,
        folds=True,
    ),
    Spec(
        name='coco',
        title='COCO 2017',
        dataset='mmdet.CocoDataset',
        data_root='data/coco',
        home='https://cocodataset.org/#download',
        archives=('train2017.zip', 'val2017.zip', 'annotations_trainval2017.zip'),
        layout=(
            'DIR\n├── annotations\n│   ├── instances_train2017.json\n│   └── instances_val2017.json\n├── train2017\n'
            '└── val2017'
        ),
        needs=_needs(
            'annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017', 'val2017'
        ),
        parts={'train2017': 118287, 'val2017': 5000},
        classes=80,
        records=coco,
        has_labels=False,
    ),
    Spec(
        name='ade20k',
        title='ADE20K (scene parsing, 150 classes)',
        dataset='mmseg.ADE20KDataset',
        data_root='data/ade/ADEChallengeData2016',
        home='http://sceneparsing.csail.mit.edu/',
        archives=('ADEChallengeData2016.zip',),
        layout=(
            'DIR\n├── images\n│   ├── training\n│   └── validation\n└── annotations\n    ├── training\n'
            '    └── validation'
        ),
        needs=_needs('images/training', 'images/validation', 'annotations/training', 'annotations/validation'),
        parts={'training': 20210, 'validation': 2000},
        classes=150,
        records=scene_parsing,
        has_labels=False,
        mask_limit=150,
    ),
)

SPECS: Mapping[str, Spec] = {spec.name: spec for spec in _SPECS}
