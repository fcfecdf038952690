"""Child registries of MMEngine's, scope ``orchard``."""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='orchard', locations=['orchard.models'])
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='orchard', locations=['orchard.data'])
