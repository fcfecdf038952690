"""FSDPStrategy: MMEngine's, with weight rollback, a resume that works on any torch, and checkpoints that are data."""

import copy
import os.path as osp
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from mmengine._strategy.fsdp import FSDPStrategy as _FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.optim import Optimizer

from olor_mm.registry import STRATEGIES, type_name
from olor_mm.rollback._shards import is_zero

from .ledger import LoadLedger
from .shard_files import check_count, check_world, file_of_rank, load_shards, own_tensors
from .sharding import Shards
from .strategy_options import check_strategy_options

__all__ = ['FSDPStrategy']


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's ``FSDPStrategy`` for runs with weight rollback (OLOR), for ``FlexibleRunner``.

    What differs from MMEngine's:

    - The optimizer wrapper is built before the model is wrapped, so ``paramwise_cfg``, layer-decay constructors and the
      rules for layers see the names and shapes of the model itself.
    - It resumes, whatever the order of arguments that torch has for it.
    - ``'full'`` checkpoints are those of an unsharded run, the optimizer's state included: a run may be resumed with
      another number of processes, or without FSDP. ``'local'`` ones hold each rank's own shards as plain tensors, in
      ``<checkpoint>/rank<i>.pth``, for the same number of processes.
    - What the wrapper saves beside the optimizer's state (the scale of mixed precision) is kept.
    - A file given as ``load_from`` is taken as full weights, whatever ``state_dict_cfg`` is; tensors of another shape
      are left out with a warning, as without FSDP.
    - It runs on CPUs, over gloo, where there is no accelerator.

    Args:
        state_dict_cfg: 'full', 'local' (or 'sharded', the same), or a dict as MMEngine's strategy takes it, whose
            ``state_dict_type`` decides between the two. Defaults to 'full'.
        kwargs: What MMEngine's strategy takes.

    Raises:
        ValueError: If ``model_wrapper.use_orig_params`` is False: several parameters are then one tensor. If an option
            is unknown, or ``state_dict_cfg`` no such value.

    Example:
        >>> runner_type = 'FlexibleRunner'
        >>> strategy = dict(type='olor_mm.FSDPStrategy', model_wrapper=dict(
        ...     auto_wrap_policy=dict(type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
        ...                           min_num_params=int(1e7))))
    """

    def __init__(self, *, state_dict_cfg: str | dict = 'full', **kwargs: Any) -> None:
        if (kwargs.get('model_wrapper') or {}).get('use_orig_params', True) is not True:
            raise ValueError(
                'strategy.model_wrapper.use_orig_params=False makes one tensor of several parameters, which cannot '
                'have levels of their own: set it to True, or leave it out'
            )
        check_strategy_options(type(self), {'state_dict_cfg': state_dict_cfg, **kwargs})
        if state_dict_cfg == 'sharded':
            state_dict_cfg = 'local'
        kind = state_dict_cfg.get('state_dict_type') if isinstance(state_dict_cfg, dict) else None
        if getattr(kind, 'name', kind) == 'SHARDED_STATE_DICT':
            state_dict_cfg = 'local'
        super().__init__(state_dict_cfg=state_dict_cfg, **kwargs)
        self._given: Any = None
        self._built: BaseOptimWrapper | None = None
        self._model_cfg: dict | None = None
        self._ledger: LoadLedger | None = None
        self._in_shards = False
        self.model_wrapper: dict | None = copy.deepcopy(self.model_wrapper)

    # ---------------------------------------------------------------- building

    def _setup_distributed(self, launcher: str = 'pytorch', backend: str = 'nccl', **kwargs: Any) -> None:
        if get_device() == 'cpu':
            # MMEngine's own start asks for a CUDA device.
            dist.init_process_group('gloo')
            return
        super()._setup_distributed(launcher, backend, **kwargs)

    def prepare(self, model: nn.Module | dict, *, optim_wrapper: Any = None, **kwargs: Any) -> Any:
        """See :meth:`mmengine._strategy.SingleDeviceStrategy.prepare`."""
        self._given = optim_wrapper
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model, and watch from now on which of its parameters a checkpoint delivers."""
        if isinstance(model, dict):
            self._model_cfg = copy.deepcopy(model)
        built: nn.Module = super().build_model(model)
        self._ledger = LoadLedger(built)
        return built

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        shards = self._shards = Shards(model, self._rebuild if self._model_cfg is not None else None)
        if self._given is not None:
            self._built = self._build_for_bare(model)
        if get_device() == 'cpu':
            # What is on the CPU already is not copied by offloading, but freed with the gathered weights.
            self.state_dict_config.offload_to_cpu = False
            self.model_wrapper = self.model_wrapper or {'type': 'MMFullyShardedDataParallel'}
            self.model_wrapper.setdefault('device_id', torch.device('cpu'))
        wrapped: nn.Module = super()._wrap_model(model) or model
        shards.bind(wrapped)
        session = getattr(self._built, 'rollback_session', None)
        if session is not None and self._ledger is not None:
            session.adopt(shards, self._ledger)
        if self._ledger is not None:
            self._ledger.close()
        return wrapped

    def _build_for_bare(self, model: nn.Module) -> BaseOptimWrapper:
        """The optimizer wrapper for the bare model: FSDP keeps the parameters, and gives them other data."""
        given = self._given
        if isinstance(given, Optimizer):
            given = OptimWrapper(given)
        if not isinstance(given, BaseOptimWrapper):
            given = given.to_dict() if isinstance(given, Config) else copy.deepcopy(given)
            if type_name(given.get('type')) == 'AmpOLOROptimWrapper':
                given.setdefault('use_fsdp', True)
            given = super().build_optim_wrapper(given, model)
        if isinstance(given, OptimWrapperDict):
            raise ValueError('strategy: FSDP takes one optimizer, and optim_wrapper has several: use DDPStrategy')
        if is_zero(getattr(given, 'optimizer', None)):
            raise ValueError(
                'optim_wrapper.optimizer.type=ZeroRedundancyOptimizer shares out what FSDP has cut already: name the '
                'optimizer itself (optimizer_type) as optim_wrapper.optimizer.type'
            )
        return given

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """The optimizer wrapper that was built before the model was wrapped."""
        if self._built is None:
            return super().build_optim_wrapper(optim_wrapper, model)
        return self._built

    def _rebuild(self) -> nn.Module:
        # The run's own random numbers must not depend on whether the model was built again.
        with torch.random.fork_rng(devices=[]):
            return MODELS.build(copy.deepcopy(self._model_cfg))

    # ---------------------------------------------------------------- saving

    def model_state_dict(self) -> dict[str, Any]:
        """The weights: on the master all of them, or on each rank its shards."""
        if self._is_full_state_dict():
            return self.model.state_dict()
        return {name: value.detach() for name, value in own_tensors(self.model).items()}

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimizer's state: on the master as an unsharded optimizer has it, or on each rank that of its shards."""
        state = self.optim_wrapper.state_dict()
        if not self._is_full_state_dict():
            return state
        params = [p for group in self.optim_wrapper.optimizer.param_groups for p in group['params']]
        whole = self._shards.gather_states(self.optim_wrapper.optimizer.state)
        states = {i: whole[p] for i, p in enumerate(params) if p in whole}
        return {**state, 'state': states}

    def save_checkpoint(self, filename: str, *, extra_ckpt: dict | None = None, **kwargs: Any) -> None:
        """Save a checkpoint; every rank must call it. See :meth:`mmengine._strategy.FSDPStrategy.save_checkpoint`."""
        extra = dict(extra_ckpt or {})
        if not self._is_full_state_dict():
            extra['meta'] = {**extra.get('meta', {}), 'shards': {'rank': self.rank, 'world_size': self.world_size}}
        super().save_checkpoint(filename, extra_ckpt=extra, **kwargs)
        # With shards of its own to write, the master may be through before the others are.
        dist.barrier()

    # ---------------------------------------------------------------- loading

    def load_checkpoint(
        self,
        filename: str,
        *,
        map_location: str | Callable = 'cpu',
        callback: Callable | None = None,
        **kwargs: Any,
    ) -> dict:
        """Load weights: from a file all of them, from a folder the shards of this rank.

        Args:
            filename: A file, an address, or the folder of a checkpoint in shards.
            map_location: Ignored: the tensors are read to the CPU and go from there into the shards.
            callback: Called with the checkpoint before it is used. Defaults to None.
            kwargs: ``strict`` and ``revise_keys``.

        Returns:
            The checkpoint without its weights.

        Raises:
            ValueError: If it was saved in shards by another number of processes.
        """
        self._in_shards = osp.isdir(filename)
        if not self._in_shards:
            return super(_FSDPStrategy, self).load_checkpoint(filename, callback=callback, **kwargs)
        file = file_of_rank(filename, self.rank, self.world_size)

        def checked(checkpoint: dict) -> None:
            check_world(filename, checkpoint, self.world_size)
            if callback is not None:
                callback(checkpoint)

        return super(_FSDPStrategy, self).load_checkpoint(file, callback=checked, **kwargs)

    def resume(
        self, filename: str, *, resume_optimizer: bool = True, callback: Callable | None = None, **kwargs: Any
    ) -> dict:
        """Resume from a checkpoint. See :meth:`mmengine._strategy.SingleDeviceStrategy.resume`.

        Raises:
            ValueError: If it has no optimizer state to resume; nothing has been loaded then.
        """

        def checked(checkpoint: dict) -> None:
            if resume_optimizer and 'optimizer' not in checkpoint:
                theta_0 = ', so it has no theta_0' if hasattr(self._built, 'rollback_session') else ''
                raise ValueError(
                    f'{filename} has no optimizer state (best ones and those with save_optimizer=False have none)'
                    f'{theta_0}: resume from an epoch_*.pth or iter_*.pth that has one, or give it as load_from'
                )
            if callback is not None:
                callback(checkpoint)

        return super().resume(filename, resume_optimizer=resume_optimizer, callback=checked, **kwargs)

    def load_model_state_dict(self, state_dict: dict, *, strict: bool = False, revise_keys: list | None = None) -> None:
        """Put weights into the shards.

        Args:
            state_dict: All of them, or what :meth:`model_state_dict` returned for shards.
            strict: Whether missing, further and misshapen ones are an error. Shards must fit in any case. Defaults to
                False.
            revise_keys: Pairs of pattern and replacement for names. Defaults to taking 'module.' off their front.

        Raises:
            ValueError: If shards do not fit.
        """
        if self._in_shards:
            load_shards(self.model, state_dict)
            return
        for pattern, replacement in [(r'^module\.', '')] if revise_keys is None else revise_keys:
            state_dict = {re.sub(pattern, replacement, key): value for key, value in state_dict.items()}
        try:
            with self._taking_full_weights():
                self.model.load_state_dict(state_dict, strict=strict)
        except RuntimeError as error:
            # torch has loaded everything else by then.
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            if strict or not lines or not all(line.startswith('size mismatch for ') for line in lines):
                raise
            self.logger.warning(
                '\n'.join(['These tensors of the checkpoint have another shape and are left out:', *lines])
            )

    def _taking_full_weights(self) -> AbstractContextManager:
        if self._is_full_state_dict():
            return nullcontext()
        # In its other modes FSDP takes nothing but what it calls flat parameters.
        kind = StateDictType.FULL_STATE_DICT
        manager: AbstractContextManager = FullyShardedDataParallel.state_dict_type(self.model, kind)
        return manager

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state as :meth:`optim_state_dict` returned it, or that of an unsharded optimizer."""
        if not self._in_shards:
            params = [p for group in self.optim_wrapper.optimizer.param_groups for p in group['params']]
            check_count(state_dict, len(params))
            states = {i: self._cut(params[i], state) for i, state in state_dict['state'].items() if params[i].numel()}
            state_dict = {**state_dict, 'state': states}
        self.optim_wrapper.load_state_dict(state_dict)

    def _cut(self, param: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        return {k: self._shards.cut(param, v) if self._shards.is_whole(param, v) else v for k, v in state.items()}
