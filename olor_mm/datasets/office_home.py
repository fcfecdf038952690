"""Office-Home: 65 classes of everyday objects in four domains."""

from typing import Any, ClassVar

from olor_mm.registry import DATASETS

from ._domains import DomainDataset

__all__ = ['OfficeHome']

_CLASSES = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch
Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet Kettle
Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes
Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon TV Table Telephone
ToothBrush Toys Trash_Can Webcam
"""


@DATASETS.register_module()
class OfficeHome(DomainDataset):
    """Office-Home (Venkateswara and others, CVPR 2017): 15,588 images of 65 classes in 4 domains.

    The layout is that of the published archive, with or without its folder ``OfficeHomeDataset_10072016``. The domain
    ``'Real World'`` may lie in ``Real_World`` or ``RealWorld``: ::

        data/office_home
        ├── Art
        │   ├── Alarm_Clock
        │   │   ├── 00001.jpg
        │   │   └── ...
        │   └── ...
        ├── Clipart
        ├── Product
        └── Real World

    Args:
        data_root: The folder that holds the domains. Defaults to ``'data/office_home'``.
        split: ``'train'`` or ``'test'``. Defaults to ``'train'``.
        **kwargs: Arguments of :class:`DomainDataset`: ``train_domains``, ``test_domains``, ``num_folds``, ``fold``,
            ``seed``; and of mmpretrain's ``BaseDataset``.

    Example:
        >>> test = OfficeHome('data/office_home', 'test', test_domains=('Real World',), train_domains=('Art',))
    """

    METAINFO: ClassVar = {'classes': tuple(_CLASSES.split())}
    NUM_CLASSES = 65
    DOMAINS: ClassVar = {
        'Art': ('Art',),
        'Clipart': ('Clipart',),
        'Product': ('Product',),
        'Real World': ('Real World', 'Real_World', 'RealWorld'),
    }
    COUNTS: ClassVar = {'Art': 2427, 'Clipart': 4365, 'Product': 4439, 'Real World': 4357}
    FOLDERS = ('', 'OfficeHomeDataset_10072016')
    LAYOUT = (
        'DIR, or DIR/OfficeHomeDataset_10072016\n├── Art\n│   ├── Alarm_Clock, ... 65 class folders of images\n'
        '├── Clipart\n├── Product\n└── Real World'
    )

    def __init__(self, data_root: str = 'data/office_home', split: str = 'train', **kwargs: Any) -> None:
        super().__init__(data_root, split, **kwargs)
