"""Data sets that the toolboxes lack. Importing it imports mmpretrain, whose ``BaseDataset`` they extend."""

from ._errors import DatasetLayoutError, UnreadableImageError
from .office_home import OfficeHome
from .pacs import PACS

__all__ = ['PACS', 'DatasetLayoutError', 'OfficeHome', 'UnreadableImageError']
