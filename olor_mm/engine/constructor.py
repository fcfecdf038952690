"""The constructor that turns rollback on for any config, around whatever constructor groups the parameters."""

from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from torch import nn

from olor_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

from .checks import check_inner, check_optimizer_cfg
from .session import RollbackSession
from .settings import RollbackSettings
from .unfreeze import later_trained
from .wrappers import RollbackMixin, promote
from .zero import promoted

__all__ = ['OLOROptimWrapperConstructor']

#: Options of the toolboxes' layer-decay constructors. MMEngine's default one ignores them without a word.
_LAYER_DECAY = {'num_layers', 'decay_rate', 'decay_type', 'layer_decay_rate'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OLOROptimWrapperConstructor:
    """Builds an optimizer wrapper with weight rollback (OLOR) for any model of any MMEngine project.

    It wraps another constructor (``rollback.inner``), whose groups, ``paramwise_cfg`` and wrapper options stay exactly
    as they are, and puts the class with rollback in place of the wrapper type that the config, or ``--amp``, names.

    Args:
        optim_wrapper_cfg: Config of the wrapper; its ``rollback`` dict holds the settings of
            :class:`~olor_mm.engine.RollbackSettings`.
        paramwise_cfg: Handed to the inner constructor. Defaults to None.

    Raises:
        ValueError: If a setting is unknown, missing or cannot be right; the message names option, value and remedy.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='olor_mm.OLOROptimWrapperConstructor',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     rollback=dict(max_level=1e-2, power=2))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        if not isinstance(optim_wrapper_cfg, dict):
            raise TypeError(f'optim_wrapper must be a dict, but is {type(optim_wrapper_cfg).__name__}')
        self.optim_wrapper_cfg = optim_wrapper_cfg.copy()
        self.paramwise_cfg = paramwise_cfg
        self.settings = RollbackSettings.from_cfg(self.optim_wrapper_cfg.pop('rollback', None))
        if 'optimizer' in self.optim_wrapper_cfg:
            self.optim_wrapper_cfg['optimizer'] = promoted(self.optim_wrapper_cfg['optimizer'])
        check_inner(self.settings.inner, OLOROptimWrapperConstructor)
        if self.settings.inner['type'] == 'DefaultOptimWrapperConstructor':
            check_optimizer_cfg(self.optim_wrapper_cfg.get('optimizer'))
        ignored = _LAYER_DECAY & set(paramwise_cfg or {})
        if ignored and self.settings.inner['type'] == 'DefaultOptimWrapperConstructor':
            raise ValueError(
                f'optim_wrapper.paramwise_cfg has {", ".join(sorted(ignored))}, which DefaultOptimWrapperConstructor '
                'ignores: give the constructor that the config had before as optim_wrapper.rollback.inner.type, as '
                'mmdet.LearningRateDecayOptimizerConstructor'
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper for ``model``.

        Raises:
            ValueError: If the settings do not fit the model.
        """
        with later_trained(model):
            return self._build(model)

    def _build(self, model: nn.Module) -> OptimWrapper:
        session = RollbackSession(self.settings, model)
        wrapper_cfg = self.optim_wrapper_cfg.copy()
        wrapper_cfg['type'] = promote(wrapper_cfg.get('type', 'OptimWrapper'))
        wrapper_cfg['rollback'] = session
        inner: dict[str, Any] = {
            'optim_wrapper_cfg': wrapper_cfg,
            'paramwise_cfg': self.paramwise_cfg,
            **self.settings.inner,
        }
        wrapper = MMENGINE_CONSTRUCTORS.build(inner)(model)
        if not isinstance(wrapper, RollbackMixin):
            raise ValueError(
                f'optim_wrapper.rollback.inner.type={self.settings.inner["type"]!r} builds a {type(wrapper).__name__} '
                'of its own, which has no rollback: give each of its optimizers this constructor instead'
            )
        return wrapper
