"""What a rollback has to know of a model that FullyShardedDataParallel (FSDP) has cut into shards.

Of most parameters a rank then holds a stretch of the flattened tensor, of some nothing at all. theta_0 is cut in the
same way, for it is a copy of what the rank holds, and the pull needs no other rank. What does need them is here: sizes
for the report, the discrepancy of the whole model, the norm of all gradients, and theta_0 from a file.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from olor_mm.layers import canonical_name
from olor_mm.rollback import Keep

__all__ = ['STRATEGY', 'Shards', 'refuse_keep', 'refuse_rule', 'refuse_sharded', 'without_wrappers']

#: What a config names.
STRATEGY = 'olor_mm.FSDPStrategy'


def without_wrappers(name: str) -> str:
    """Name of a parameter as FSDP's own state dicts have it."""
    return name.replace('_fsdp_wrapped_module.', '').replace('_checkpoint_wrapped_module.', '')


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model that was sharded before the optimizer wrapper was built.

    Raises:
        ValueError: If a part of it is FSDP's.
    """
    if any(isinstance(m, FullyShardedDataParallel) for m in model.modules()):
        raise ValueError(
            'the model was wrapped in FullyShardedDataParallel before the optimizer wrapper with rollback was built: '
            f"use strategy=dict(type='{STRATEGY}', ...) with runner_type='FlexibleRunner' instead of FSDPStrategy, "
            'which cannot resume on newer torch, hides names from paramwise_cfg and drops the scale of '
            "mixed precision; or olor_mm.rollback.Rollback with torch's fully_shard in a loop of your own"
        )


def refuse_keep(keep: Keep) -> None:
    """Refuse ways to keep theta_0 that a sharded model cannot have.

    Raises:
        ValueError: If it is not kept as the parameters are.
    """
    if keep.told:
        raise ValueError(
            f'optim_wrapper.rollback: {keep.told} is not for sharded models, where each rank keeps its share of '
            'theta_0 alone: leave it away, or do not shard (DistributedDataParallel)'
        )


def refuse_rule(rule: str) -> None:
    """Refuse rules that look at whole tensors, of which a rank holds stretches.

    Raises:
        ValueError: If it is not OLOR's.
    """
    if rule != 'olor':
        raise ValueError(
            f'optim_wrapper.rollback.rule={rule!r} is not for models that FSDP has sharded, for it needs the norms of '
            "whole tensors: use rule='olor', do not shard (DistributedDataParallel), or use olor_mm.rollback.Rollback "
            "with torch's fully_shard in a loop of your own"
        )


class Shards:
    """The shards of one model.

    FSDP flattens tensors, lines them up and gives each rank a stretch of the line, in the order of ranks. So the shards
    of a parameter, in that order, are the flattened parameter.

    Args:
        model: The model before it is wrapped: its parameters have their full shapes.
        rebuild: Builds the same model again, bare and on the CPU, for ``theta_0`` from a file; None where that cannot
            be done.
    """

    def __init__(self, model: nn.Module, rebuild: Callable[[], nn.Module] | None = None) -> None:
        self._rebuild = rebuild
        self._params = dict(model.named_parameters())
        self._shapes: dict[Tensor, torch.Size] = {p: p.shape for p in self._params.values()}
        #: Parameter to the number of its elements on all ranks together.
        self.sizes: dict[Tensor, int] = {p: p.numel() for p in self._params.values()}
        self._held: dict[Tensor, list[int]] = {}
        self._model: Any = None
        self._group: Any = None

    def bind(self, wrapped: nn.Module) -> None:
        """Note the wrapped model. Every rank must call it.

        Raises:
            ValueError: If wrapping has replaced the parameters by others, or has cut them in a way not known here.
        """
        now = {without_wrappers(name): p for name, p in wrapped.named_parameters()}
        if now.keys() != self._params.keys() or any(now[name] is not p for name, p in self._params.items()):
            raise ValueError(
                f'{type(wrapped).__name__} has put other tensors in place of the parameters of the model, so their '
                'levels are lost: set strategy.model_wrapper.use_orig_params=True'
            )
        self._model = wrapped
        self._group = wrapped.process_group
        counts: list[list[int]] = [[] for _ in range(dist.get_world_size(self._group))]
        dist.all_gather_object(counts, [p.numel() for p in self.sizes], group=self._group)
        for p, held in zip(self.sizes, zip(*counts, strict=True), strict=True):
            self._held[p] = list(held)
            if sum(held) != self.sizes[p] and set(held) != {self.sizes[p]}:
                raise ValueError(
                    f'{type(wrapped).__name__} has cut a tensor of {self.sizes[p]} elements into {list(held)}, which '
                    'weight rollback does not know how to save: use MMFullyShardedDataParallel'
                )

    def _is_cut(self, param: Tensor) -> bool:
        """Whether ranks hold different parts of it; not where it was left out of FSDP, or with NO_SHARD."""
        return sum(self._held[param]) == self.sizes[param]

    @property
    def index(self) -> int:
        """Which of the shards this rank holds."""
        return dist.get_rank(self._group)

    @property
    def numbers(self) -> dict[Tensor, int]:
        """Parameter to the number of its shard here, from 1; 0 for what every rank has whole: all round it alike."""
        return {p: self.index + 1 if self._is_cut(p) else 0 for p in self.sizes}

    # ---------------------------------------------------------------- over all shards

    def once(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Those of ``params`` that this rank has to count: its shards, and on one rank alone what every rank has."""
        return [p for p in params if self._is_cut(p) or self.index == 0]

    def reduce(self, sums: Tensor) -> Tensor:
        """The sum over all shards. Every rank must call it."""
        sums = self._sendable(sums)
        dist.all_reduce(sums, group=self._group)
        return sums

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank. Every rank must call it."""
        return bool(self.reduce(torch.tensor([int(here)])).item())

    @torch.no_grad()
    def clip_grad_norm(
        self,
        params: Sequence[Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        **_: Any,
    ) -> Tensor:
        """As ``torch.nn.utils.clip_grad_norm_``, by the norm over all shards. Every rank must call it.

        FSDP has a method of its own for this, which knows float32 alone and never raises.
        """
        kind = float(norm_type)
        norms = [torch.linalg.vector_norm(p.grad, kind).double() for p in self.once(params) if p.grad is not None]
        here = torch.linalg.vector_norm(torch.stack(norms), kind) if norms else torch.zeros((), dtype=torch.float64)
        total = self._sendable(here if math.isinf(kind) else here**kind)
        dist.all_reduce(total, dist.ReduceOp.MAX if math.isinf(kind) else dist.ReduceOp.SUM, group=self._group)
        total = total if math.isinf(kind) else total ** (1 / kind)
        if error_if_nonfinite and not total.isfinite():
            raise RuntimeError(
                f'the norm of the gradients is {total.item()}, and clip_grad has error_if_nonfinite=True'
            )
        scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for p in params:
            if p.grad is not None:
                p.grad.mul_(scale.to(p.grad))
        return total

    def _sendable(self, tensor: Tensor) -> Tensor:
        """On a device that the process group takes tensors from."""
        return tensor.to('cpu' if dist.get_backend(self._group) == 'gloo' else self._model.compute_device)

    # ---------------------------------------------------------------- whole tensors and shards

    def cut(self, param: Tensor, whole: Tensor) -> Tensor:
        """This rank's shard of a tensor that has the parameter's full shape."""
        if not self._is_cut(param):
            return whole
        start = sum(self._held[param][: self.index])
        return whole.reshape(-1)[start : start + param.numel()].clone().reshape(param.shape)

    def is_whole(self, param: Tensor, value: Any) -> bool:
        """Whether ``value`` has the parameter's full shape."""
        return isinstance(value, Tensor) and value.dim() > 0 and value.shape == self._shapes[param]

    def gather_states(self, states: Mapping[Tensor, Mapping[str, Any]]) -> dict[Tensor, dict[str, Any]]:
        """An optimizer's states with whole tensors, on the first rank; nothing on the others. Every rank must call it.

        Args:
            states: Parameter to its state, as the optimizer of this rank has it.

        Returns:
            The same for the whole parameters, on the CPU.

        Raises:
            ValueError: If a state's tensor has neither the shape of the shard nor one element.
        """
        mine = [_describe(p, states.get(p, {})) for p in self.sizes]
        all_ranks: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(all_ranks, mine, group=self._group)
        found: dict[Tensor, dict[str, Any]] = {}
        for p, parts in zip(self.sizes, zip(*all_ranks, strict=True), strict=True):
            merged = {key: value for part in reversed(parts) for key, value in part.items()}
            for key, value in merged.items():
                if isinstance(value, torch.dtype):
                    value = self._gather(p, states.get(p, {}).get(key), value, [key in part for part in parts])
                if self.index == 0:
                    found.setdefault(p, {})[key] = value
        return found

    def _gather(self, param: Tensor, part: Tensor | None, dtype: torch.dtype, there: Sequence[bool]) -> Tensor | None:
        held = self._held[param]
        if any(n and not has for n, has in zip(held, there, strict=True)):
            raise RuntimeError('some shards of a parameter have been trained and others have not: nothing was saved')
        if not self._is_cut(param):
            return part.cpu() if part is not None else None
        padded = self._sendable(torch.zeros(max(held), dtype=dtype))
        if part is not None:
            padded[: part.numel()] = part.reshape(-1)
        parts = [torch.empty_like(padded) for _ in held] if self.index == 0 else None
        dist.gather(padded, parts, dst=dist.get_global_rank(self._group, 0), group=self._group)
        if parts is None:
            return None
        return torch.cat([part[:n].cpu() for part, n in zip(parts, held, strict=True)]).reshape(self._shapes[param])

    def anchors(
        self, read: Callable[[nn.Module, Mapping[str, Tensor]], dict[Tensor, Tensor]], wanted: Mapping[str, Tensor]
    ) -> dict[Tensor, Tensor]:
        """theta_0 read by the code that reads it for a bare model, cut into shards.

        Args:
            read: Takes a bare model and canonical name to parameter, returns parameter to theta_0.
            wanted: Canonical name to parameter (the sharded one).

        Returns:
            Parameter to the shard of its theta_0.

        Raises:
            ValueError: If the model cannot be built again.
        """
        if self._rebuild is None:
            raise ValueError(
                'optim_wrapper.rollback.anchor cannot be read for a sharded model that was not built from its config: '
                'give model=dict(...), or leave the option away and start from the pre-trained weights'
            )
        bare = self._rebuild()
        names = {canonical_name(name): p for name, p in bare.named_parameters()}
        found = read(bare, {name: names[name] for name in wanted})
        return {p: self.cut(p, found[names[name]]) for name, p in wanted.items()}


def _describe(param: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """Of each entry of a state the dtype, where it is cut as the parameter is, else the value itself."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            if value.shape != param.shape:
                raise ValueError(
                    f'the optimizer keeps {key!r} of shape {tuple(value.shape)} for a shard of {tuple(param.shape)}, '
                    "which cannot be made one of the whole parameter: use strategy.state_dict_cfg='local'"
                )
            found[key] = value.dtype
        else:
            found[key] = value.cpu() if isinstance(value, Tensor) else value
    return found
