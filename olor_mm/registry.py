"""Child registries of MMEngine's, scope ``olor_mm``.

A part named ``olor_mm.<Name>`` is found from the root registry and from any
project's scope without an import in the config: the ``locations`` below are
imported by the registry itself at the first look-up.
"""

from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

__all__ = [
    'DATASETS',
    'HOOKS',
    'METHODS',
    'METRICS',
    'MODELS',
    'OPTIMIZERS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'STRATEGIES',
    'type_name',
]

_ENGINE = ['olor_mm.engine']

OPTIM_WRAPPERS = Registry('optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='olor_mm', locations=_ENGINE)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='olor_mm',
    locations=_ENGINE,
)
STRATEGIES = Registry('strategy', parent=MMENGINE_STRATEGIES, scope='olor_mm', locations=_ENGINE)
OPTIMIZERS = Registry('optimizer', parent=MMENGINE_OPTIMIZERS, scope='olor_mm', locations=_ENGINE)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='olor_mm', locations=[*_ENGINE, 'olor_mm.evaluation'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='olor_mm', locations=['olor_mm.models'])
#: What ``model.method`` names: ways to fine-tune.
METHODS = Registry('method', scope='olor_mm', locations=['olor_mm.models'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='olor_mm', locations=['olor_mm.evaluation'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='olor_mm', locations=['olor_mm.datasets'])


def type_name(kind: Any) -> str:
    """The bare name of what a config gives as a ``type``: a name, with a scope or a module in front, or the class."""
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
