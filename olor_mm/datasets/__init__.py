"""Data sets that the toolboxes lack. Importing it imports mmpretrain, whose ``BaseDataset`` they extend."""

from ._base import CheckedDataset
from ._chosen import labels_of
from ._domains import DomainDataset
from ._errors import DatasetLayoutError, UnreadableImageError
from .class_subset import ClassSubset
from .domain_subset import DomainSubset
from .hold_out import HoldOut
from .ip102 import IP102
from .office_home import OfficeHome
from .pacs import PACS
from .places_lt import PlacesLT
from .svhn import SVHN
from .synset_folders import SynsetFolders

__all__ = [
    'IP102',
    'PACS',
    'SVHN',
    'CheckedDataset',
    'ClassSubset',
    'DatasetLayoutError',
    'DomainDataset',
    'DomainSubset',
    'HoldOut',
    'OfficeHome',
    'PlacesLT',
    'SynsetFolders',
    'UnreadableImageError',
    'labels_of',
]
