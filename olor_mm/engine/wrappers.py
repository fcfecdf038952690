"""MMEngine's optimizer wrappers with weight rollback, and the promotion of any wrapper type to one of them."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, ApexOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from torch import nn

from olor_mm.registry import OPTIM_WRAPPERS

from .checks import find
from .saved import changed_rates, initial_rates, warn
from .session import RollbackSession
from .settings import LOADED
from .sharding import STRATEGY
from .zero import check_zero

__all__ = ['AmpOLOROptimWrapper', 'ApexOLOROptimWrapper', 'OLOROptimWrapper', 'RollbackMixin', 'promote']

_CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'


class RollbackMixin:
    """What every wrapper with rollback does; in front of a wrapper class of MMEngine's in the list of bases.

    Args:
        optimizer: The optimizer, as MMEngine's wrappers take it.
        rollback: The session that ``OLOROptimWrapperConstructor`` hands over.
        kwargs: The options of the wrapper in question.

    Raises:
        ValueError: If ``OLOROptimWrapperConstructor`` does not build it: nothing can be done without the model.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, optimizer: torch.optim.Optimizer, rollback: Any = None, **kwargs: Any) -> None:
        if not isinstance(rollback, RollbackSession):
            raise ValueError(
                f'optim_wrapper.type={type(self).__name__!r} alone rolls nothing back, for it never sees the model: '
                f"set optim_wrapper.constructor='{_CONSTRUCTOR}' and optim_wrapper.rollback=dict(max_level=...); "
                'the type may then be left out'
            )
        super().__init__(optimizer=optimizer, **kwargs)  # type: ignore[call-arg]
        self.rollback_session = rollback
        rollback.attach(optimizer)
        # Left out of what torch compiles, which would be a graph for each shape.
        self._samples = torch.compiler.disable(_samples) if rollback.settings.is_on else _samples
        if rollback.pace is not None:
            rollback.pace.wrapper = self
        #: Of the weights as they were resumed, until training goes on: the ledger's version, and samples.
        self._as_resumed: tuple[int, list[torch.Tensor]] | None = None

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Start the rollback: MMEngine's Runner calls this when the weights are in place."""
        super().initialize_count_status(model, init_counts, max_counts)  # type: ignore[misc]
        session = self.rollback_session
        self._check_resumed()
        # SingleDeviceStrategy calls this before load_from is read, too; step() starts what is not started here.
        if init_counts > 0 or session.settings.roots != LOADED or session.ledger.delivered:
            session.start(self.optimizer, resumed=init_counts > 0)

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """A backward pass; theta_0 is brought to the GPU ahead of the step in the last one before it alone."""
        rollback = self.rollback_session.rollback
        if rollback is not None and rollback.keeper is not None and rollback.keeper.prefetch is not None:
            count, every = self._inner_count + 1, self._accumulative_counts  # type: ignore[attr-defined]
            rollback.keeper.prefetch.active = count % every == 0 or count == self._max_counts  # type: ignore[attr-defined]
        super().backward(loss, **kwargs)  # type: ignore[misc]

    def step(self, **kwargs: Any) -> None:
        """A step of the optimizer; its hooks pull the weights back."""
        session = self.rollback_session
        self._as_resumed = None
        session.follow(self.optimizer)
        session.start(self.optimizer)
        self._add_l2_sp()
        if session.verified or session.rollback is None:
            super().step(**kwargs)  # type: ignore[misc]
            return
        session.agreement.check(session.rollback)
        check_zero(self.optimizer)
        before = session.rollback.num_steps
        stepped = [p for p in session.rollback.levels if p.grad is not None]
        samples = self._samples(stepped)
        super().step(**kwargs)  # type: ignore[misc]
        # A scaler may skip the optimizer's step, and with a static scale that leaves no trace but weights that stay.
        skipped = session.rollback.num_steps == before and all(map(_same, self._samples(stepped), samples))
        session.verify(before, skipped)

    def _add_l2_sp(self) -> None:
        """The term of L2-SP, once for each step and before gradients are clipped."""
        rollback, penalty = self.rollback_session.rollback, self.rollback_session.settings.penalty
        if rollback is None or penalty is None or not rollback.levels:
            return
        # What a scaler multiplies losses by: the gradients are not divided by it yet. Asked this way, the host does not
        # wait for the device.
        scaler = getattr(self, 'loss_scaler', None)
        scale: Any = 1.0
        if scaler is not None and scaler.is_enabled():
            scale = scaler.scale(torch.ones((), device=next(iter(rollback.levels)).device))
        rollback.add_l2_sp(scale)

    def _clip_grad(self) -> None:
        shards = self.rollback_session.shards
        if shards is None or getattr(self, 'grad_name', '') != 'grad_norm':
            super()._clip_grad()  # type: ignore[misc]
            return
        # MMEngine's way takes the norm of what this rank holds.
        params = [p for group in self.optimizer.param_groups for p in group['params']]
        norm = shards.clip_grad_norm(params, **self.clip_grad_kwargs)  # type: ignore[attr-defined]
        self.message_hub.update_scalar('train/grad_norm', float(norm))  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """The wrapper's state, and under ``rollback`` the names of what is pulled back; nothing more at level 0."""
        state: dict[str, Any] = super().state_dict()  # type: ignore[misc]
        if not self.rollback_session.settings.is_on:
            return state
        return {**state, 'rollback': self.rollback_session.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapper's state; theta_0 is part of the optimizer's."""
        state_dict = dict(state_dict)
        saved = state_dict.pop('rollback', None)
        self.rollback_session.check_model(self.optimizer, state_dict)
        rates = initial_rates(self.optimizer)
        super().load_state_dict(state_dict)  # type: ignore[misc]
        warn(changed_rates(rates, initial_rates(self.optimizer)))
        session = self.rollback_session
        session.load_state_dict(saved)
        if session.rollback is not None:
            self._as_resumed = session.ledger.version, self._samples(session.rollback.levels)

    def _check_resumed(self) -> None:
        """See that the weights are those that were resumed, where nothing was loaded since."""
        session, resumed, self._as_resumed = self.rollback_session, self._as_resumed, None
        if resumed is None or session.rollback is None or session.ledger.version != resumed[0]:
            return
        if not all(map(_same, self._samples(session.rollback.levels), resumed[1])):
            raise RuntimeError(
                'the weights have changed since the checkpoint was resumed. MMEngine does so where Runner.val() or '
                'Runner.test() comes before Runner.train(): it loads the checkpoint for the first and initialises the '
                'model anew for the second. Validate with a Runner of its own'
            )


@OPTIM_WRAPPERS.register_module()
class OLOROptimWrapper(RollbackMixin, OptimWrapper):
    """``OptimWrapper`` with weight rollback (OLOR). Built by ``OLOROptimWrapperConstructor``."""


@OPTIM_WRAPPERS.register_module()
class AmpOLOROptimWrapper(RollbackMixin, AmpOptimWrapper):
    """``AmpOptimWrapper`` with weight rollback (OLOR). Built by ``OLOROptimWrapperConstructor``."""

    def __init__(self, optimizer: torch.optim.Optimizer, rollback: Any = None, **kwargs: Any) -> None:
        super().__init__(optimizer, rollback, **kwargs)
        risky = any(group.get('fused') and group.get('momentum') for group in optimizer.param_groups)
        if risky and self.loss_scaler.is_enabled():
            print_log(
                f'{type(optimizer).__name__} with fused=True and momentum under a loss scaler: where the scaler skips '
                'the very first step, as a dynamic one often does, torch (2.5 to 2.15 at least) leaves the momentum '
                'uninitialised and the next step destroys the weights, with weight rollback or without: take '
                'fused=True out of optim_wrapper.optimizer',
                logger='current',
                level=logging.WARNING,
            )


@OPTIM_WRAPPERS.register_module()
class ApexOLOROptimWrapper(RollbackMixin, ApexOptimWrapper):
    """``ApexOptimWrapper`` with weight rollback (OLOR). Built by ``OLOROptimWrapperConstructor``."""


_PROMOTED: dict[type, type] = {
    OptimWrapper: OLOROptimWrapper,
    AmpOptimWrapper: AmpOLOROptimWrapper,
    ApexOptimWrapper: ApexOLOROptimWrapper,
}


#: Wrappers of engines that keep the weights elsewhere.
_OWN_WEIGHTS = {'DeepSpeedOptimWrapper': 'DeepSpeed', 'ColossalAIOptimWrapper': 'ColossalAI'}


def _samples(params: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """A copy of each parameter's first row, which a step changes if it changes anything."""
    local = [param.to_local() if hasattr(param, 'to_local') else param for param in params]
    return [(param[:1] if param.dim() else param).detach().clone() for param in local]


def _same(value: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(value, other, rtol=0.0, atol=0.0, equal_nan=True)


def promote(wrapper_type: str | type) -> type:
    """The class with rollback that takes the place of a wrapper type.

    Args:
        wrapper_type: A class, or its name in the registry.

    Returns:
        A subclass of the given class (itself if it has rollback already).

    Raises:
        ValueError: If the name is not registered, or the class is no ``OptimWrapper``, as DeepSpeed's is not.
    """
    found: Any = wrapper_type
    if isinstance(wrapper_type, str):
        found = find(MMENGINE_OPTIM_WRAPPERS, wrapper_type)
        if found is None:
            raise ValueError(
                f'optim_wrapper.type={wrapper_type!r} is not in the registry of optimizer wrappers: use OptimWrapper, '
                'AmpOptimWrapper or ApexOptimWrapper'
            )
    name = getattr(found, '__name__', str(found))
    if name in _OWN_WEIGHTS:
        raise ValueError(
            f'optim_wrapper.type={name!r}: weight rollback does not support {_OWN_WEIGHTS[name]}, which trains copies '
            'of the weights of its own and would overwrite what is pulled back: use DistributedDataParallel (what '
            "Runner does), or for models that are too large for that runner_type='FlexibleRunner' with "
            f"strategy=dict(type='{STRATEGY}'); leave optim_wrapper.type away then"
        )
    if not isinstance(found, type) or not issubclass(found, OptimWrapper):
        raise ValueError(
            f'optim_wrapper.type={wrapper_type!r} is no OptimWrapper, and weight rollback does not support it: use '
            'OptimWrapper, AmpOptimWrapper or ApexOptimWrapper'
        )
    if issubclass(found, RollbackMixin):
        return found
    if found not in _PROMOTED:
        _PROMOTED[found] = type(f'OLOR{found.__name__}', (RollbackMixin, found), {'__doc__': found.__doc__})
    return _PROMOTED[found]
