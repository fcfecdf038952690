"""Weight rollback inside MMEngine. Importing it registers the parts and the loaders of checkpoints."""

from mmengine.registry import HOOKS as _MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as _MMENGINE_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as _MMENGINE_WRAPPERS

from .agreement import RankDisagreementError
from .checkpoints import CheckpointNotSavedError, DurableCheckpointHook
from .constructor import OLOROptimWrapperConstructor
from .distance import DiscrepancyHook
from .finite import NonFiniteError
from .hooks import ResumableRandomnessHook
from .loading import BrokenCheckpointError, UnsafeCheckpointError, load_from_local, register_safe_loader
from .session import RollbackSession
from .settings import RollbackSettings
from .strategies import FSDPStrategy
from .trained_only import OtherWeightsError, SaveTrainedHook
from .unfreeze import UnfreezeHook
from .vit_checkpoints import register_vit_schemes
from .wrappers import AmpOLOROptimWrapper, ApexOLOROptimWrapper, OLOROptimWrapper
from .zero import ZeroRedundancyOptimizer

__all__ = [
    'AmpOLOROptimWrapper',
    'ApexOLOROptimWrapper',
    'BrokenCheckpointError',
    'CheckpointNotSavedError',
    'DiscrepancyHook',
    'DurableCheckpointHook',
    'FSDPStrategy',
    'NonFiniteError',
    'OLOROptimWrapper',
    'OLOROptimWrapperConstructor',
    'OtherWeightsError',
    'RankDisagreementError',
    'ResumableRandomnessHook',
    'RollbackSession',
    'RollbackSettings',
    'SaveTrainedHook',
    'UnfreezeHook',
    'UnsafeCheckpointError',
    'ZeroRedundancyOptimizer',
    'load_from_local',
    'register_safe_loader',
    'register_vit_schemes',
]

# The bare names, for configs with custom_imports=dict(imports=['olor_mm']): a lookup without a scope does not descend
# into child registries.
for _registry, _parts in (
    (_MMENGINE_WRAPPERS, (OLOROptimWrapper, AmpOLOROptimWrapper, ApexOLOROptimWrapper)),
    (_MMENGINE_CONSTRUCTORS, (OLOROptimWrapperConstructor,)),
    (_MMENGINE_HOOKS, (DiscrepancyHook, DurableCheckpointHook, ResumableRandomnessHook, SaveTrainedHook, UnfreezeHook)),
):
    for _part in _parts:
        _registry.register_module(module=_part, force=True)

register_safe_loader()
register_vit_schemes()
