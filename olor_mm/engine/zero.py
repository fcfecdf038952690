"""MMEngine's ZeroRedundancyOptimizer with checkpoints: its state is gathered by all ranks, and then saved by one.

MMEngine's own gathers when its state is asked for, which its Runner does on the first rank alone: the others never
come, and the first checkpoint hangs.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapperDict
from mmengine.optim.optimizer.zero_optimizer import ZeroRedundancyOptimizer as _ZeroRedundancyOptimizer
from torch.optim import Optimizer

from olor_mm.registry import OPTIMIZERS, type_name
from olor_mm.rollback._shards import is_zero

__all__ = ['SHARING', 'ZeroRedundancyOptimizer', 'announce', 'check_zero', 'check_zero_cfg', 'gather', 'promoted']

_NAME = 'ZeroRedundancyOptimizer'
#: Options of its own, beside those of the optimizer that it shares out.
SHARING = frozenset({'process_group', 'parameters_as_bucket_view', 'overlap_with_ddp'})


@OPTIMIZERS.register_module()
class ZeroRedundancyOptimizer(_ZeroRedundancyOptimizer):
    """Shards the optimizer's state, theta_0 with it, over the ranks of a data-parallel run.

    In a config with ``OLOROptimWrapperConstructor`` it takes the place of ``ZeroRedundancyOptimizer`` by itself. Its
    checkpoints fit any number of processes. They need :class:`~olor_mm.engine.DurableCheckpointHook`, which lets all
    ranks gather the state before one saves it.

    Args:
        params: As torch's optimizers take them.
        optimizer_type: Name of the optimizer in ``torch.optim`` that makes the steps.
        kwargs: Its options.

    Raises:
        ValueError: If there is no process group to share it out in.
    """

    def __init__(self, params: Any, optimizer_type: str, **kwargs: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                f'optim_wrapper.optimizer.type={_NAME} shares the state out over processes, and this one was started '
                f'alone: start it with tools/dist_train.sh, or set optim_wrapper.optimizer.type={optimizer_type!r}'
            )
        super().__init__(params, optimizer_type, **kwargs)
        #: Whether a hook gathers its state before it is saved.
        self.is_gathered = False
        self._at_hand = False

    def gather(self) -> None:
        """Bring the state of all ranks to the first one. Every rank must call it."""
        self.consolidate_state_dict(to=0)
        self._at_hand = self.rank == 0

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """A step of this rank's share; the new weights are then sent round."""
        self._at_hand = False
        self._all_state_dicts: list[dict[str, Any]] = []
        return super().step(*args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this rank's share; ``state_dict`` stays as it is, and no second copy of the share is kept."""
        super().load_state_dict({**state_dict, 'state': dict(state_dict['state'])})
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """The whole state on the first rank, after :meth:`gather`; empty on the others.

        Raises:
            RuntimeError: If there was a step since, or nothing was gathered.
        """
        if self.rank != 0:
            return {}
        if not self._at_hand:
            raise RuntimeError(_NOT_GATHERED)
        # Not MMEngine's, which gathers: here one rank is alone.
        return super(_ZeroRedundancyOptimizer, self).state_dict()


_NOT_GATHERED = (
    f'the state of {_NAME} is on all ranks, and one alone cannot save it: set '
    "default_hooks.checkpoint.type='olor_mm.DurableCheckpointHook', which lets all of them gather it first"
)


def promoted(optimizer: Any) -> Any:
    """The config of an optimizer, with our class where it names MMEngine's.

    Raises:
        ValueError: If it does not say which optimizer is shared out, or there is none of that name.
    """
    if not _names_it(optimizer):
        return optimizer
    kind = optimizer.get('optimizer_type')
    known = [name for name, value in vars(torch.optim).items() if isinstance(value, type) and name != 'Optimizer']
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1) or ['AdamW']
        raise ValueError(
            f'optim_wrapper.optimizer.optimizer_type={kind!r} must be the name of the optimizer in torch.optim that '
            f'{_NAME} shares out, such as {near[0]!r}'
        )
    return {**optimizer, 'type': ZeroRedundancyOptimizer}


def check_zero_cfg(optimizer: Any, hooks: Any) -> None:
    """See that a config with ZeroRedundancyOptimizer has what its checkpoints need.

    Args:
        optimizer: ``optim_wrapper.optimizer``.
        hooks: ``default_hooks``.

    Raises:
        ValueError: If it lacks ``optimizer_type``, or its checkpoint hook does not gather the state.
    """
    if promoted(optimizer) is optimizer:
        return
    hook = (hooks or {}).get('checkpoint', {'type': 'CheckpointHook'})
    if isinstance(hook, Mapping) and type_name(hook.get('type')) == 'CheckpointHook':
        raise ValueError(_NOT_GATHERED)


def _names_it(optimizer: Any) -> bool:
    return isinstance(optimizer, Mapping) and type_name(optimizer.get('type')) == _NAME


def check_zero(optimizer: Optimizer) -> None:
    """See, before the first step, that its checkpoints will not hang; nothing with any other optimizer.

    Raises:
        ValueError: If it is a ZeroRedundancyOptimizer that no hook gathers, or that none can.
    """
    if not is_zero(optimizer):
        return
    if not isinstance(optimizer, ZeroRedundancyOptimizer):
        raise ValueError(
            f"the run's {_NAME} is {type(optimizer).__module__}'s, whose state one rank cannot save: name it in the "
            f"config, optim_wrapper.optimizer=dict(type='{_NAME}', optimizer_type=...), and ours takes its place"
        )
    if not optimizer.is_gathered:
        raise ValueError(_NOT_GATHERED)


def _sharded(optim_wrapper: Any) -> list[ZeroRedundancyOptimizer]:
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    optimizers = [getattr(wrapper, 'optimizer', None) for wrapper in wrappers]
    return [optimizer for optimizer in optimizers if isinstance(optimizer, ZeroRedundancyOptimizer)]


def announce(optim_wrapper: Any) -> None:
    """Note that a hook will call :func:`gather` on all ranks before each checkpoint."""
    for optimizer in _sharded(optim_wrapper):
        optimizer.is_gathered = True


def gather(optim_wrapper: Any) -> None:
    """Gather the state of whatever is sharded in a wrapper, or in several. Every rank must call it."""
    for optimizer in _sharded(optim_wrapper):
        optimizer.gather()
