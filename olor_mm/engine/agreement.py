"""Do all ranks of a data-parallel run start alike? Asked once, with one collective of some bytes.

DistributedDataParallel makes the weights of all ranks equal when it wraps the model, and never looks again. What comes
later each process does by itself: it loads ``load_from``, the checkpoint to resume from and the file of theta_0, and it
reads its own config. A stale file on one machine would let its ranks train other weights, for ever and without a sign.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from olor_mm.layers import canonical_name
from olor_mm.rollback import INITIAL_LR_KEY, Rollback
from olor_mm.rollback.rounding import COUNT_KEY

__all__ = ['Agreement', 'RankDisagreementError', 'checksum']

#: What is compared for each parameter, and what to do where it differs.
_REMEDIES = {
    'parameters': 'build the same model on every rank',
    'weights': 'every process reads checkpoints by itself: see that load_from, or the checkpoint to resume from, is '
    'the same file on every machine (put it on a disk that all share, or copy it anew), and that no hook changes '
    'weights on one rank alone',
    'theta_0': 'see that the checkpoint to resume from, or the file of optim_wrapper.rollback.anchor, is the same on '
    'every machine',
    'levels': 'give every machine the same optim_wrapper.rollback',
    'optimizer settings': 'give every machine the same config of the optimizer and the schedule, and the same '
    "checkpoint to resume from; with form='single_pass', see in its log whether each can compile the kernels",
}
#: Of a parameter group; whatever else stands there may be a rank's own business.
_GROUP_KEYS = (
    *('lr', 'initial_lr', 'momentum', 'dampening', 'nesterov', 'betas', 'eps', 'weight_decay'),
    *(INITIAL_LR_KEY, COUNT_KEY),
)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
_CHUNK = 1 << 22  # elements; bounds the memory that a checksum takes

#: Name to what is compared, in the order of ``_REMEDIES``.
_Rows = dict[str, tuple[int, ...]]


class RankDisagreementError(RuntimeError):
    """The ranks of a data-parallel run do not start from the same weights, theta_0, levels or settings."""


class Agreement:
    """Compares the ranks of every DistributedDataParallel in a model, once.

    Sharded parameters are not compared, for every rank has another part of them; neither are those that
    DistributedDataParallel was told to ignore. A model without DistributedDataParallel is left alone: nobody says that
    its ranks ought to be equal, or that all of them get here.

    Args:
        model: The model as the optimizer wrapper got it, wrapped or with wrapped parts.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        #: Whether nothing is left to be done.
        self.done = False

    def follow(self, model: nn.Module) -> None:
        """Go on with the same model in another wrapper."""
        self._model = model

    def check(self, rollback: Rollback | None) -> None:
        """Compare the ranks at the first call; all of them have to make it. Nothing at any later call.

        Args:
            rollback: The rollback with its theta_0; None where there is none.

        Raises:
            RankDisagreementError: On every rank, if one differs.
        """
        if self.done:
            return
        self.done = True
        if rollback is None or not dist.is_available() or not dist.is_initialized():
            return
        for part in self._model.modules():
            # MMEngine's MMSeparateDistributedDataParallel is one by name alone, and holds some.
            group = getattr(part, 'process_group', None)
            if isinstance(part, DistributedDataParallel) and group is not None and dist.get_world_size(group) > 1:
                _compare(_rows(part, rollback), group, next(part.parameters()).device)


def _rows(part: DistributedDataParallel, rollback: Rollback) -> _Rows:
    ignored = part.parameters_to_ignore
    params = {
        canonical_name(name): p
        for name, p in part.module.named_parameters()
        if name not in ignored and not hasattr(p, 'device_mesh')
    }
    # Where the ranks share theta_0 out among them, there is nothing of it to compare.
    sums = _checksums(params.items())
    same: set[str] = set()
    kept = _checksums(_unlike(params, rollback, same)) | {name: sums[name] for name in same}
    groups = {p: _settings(rollback, group) for group in rollback.given_optimizer.param_groups for p in group['params']}
    return {
        name: (
            _digest(f'{tuple(p.shape)} {p.dtype}'.encode()),
            sums[name],
            kept.get(name, 0),
            *struct.unpack('=q', struct.pack('=d', rollback.given_levels.get(p, 0.0))),
            groups.get(p, 0),
        )
        for name, p in params.items()
    }


def _settings(rollback: Rollback, group: Mapping[str, object]) -> int:
    values = [(key, _plain(group[key])) for key in _GROUP_KEYS if key in group]
    # Where one machine cannot compile the single pass, its ranks would round otherwise than the others.
    return _digest(f'{type(rollback.optimizer).__name__} {values} {rollback.form_in_use}{rollback.told}'.encode())


def _plain(value: object) -> object:
    """Tensors as numbers: what is printed of them names the rank's own device."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value


def _unlike(params: Mapping[str, Tensor], rollback: Rollback, same: set[str]) -> Iterator[tuple[str, Tensor]]:
    """theta_0 where it differs from the weights; at the start it is they, and comparing is several times faster.

    Args:
        params: Name to parameter.
        rollback: What has theta_0.
        same: Gets the names where it does not.
    """
    for name, param in params.items():
        # One by one: kept elsewhere, or in another dtype, it is a copy that is handed out.
        anchor = None if rollback.reduce else rollback.anchor(param)
        if anchor is not None and _same_bits(anchor, param):
            same.add(name)
        elif anchor is not None:
            yield name, anchor


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one layout are equal to the last bit, 0 and -0 told apart."""
    if one.dtype != other.dtype or one.stride() != other.stride() or not one.is_contiguous():
        return False
    bits = _INTEGERS[one.element_size()]
    return torch.equal(one.detach().view(-1).view(bits), other.detach().view(-1).view(bits))


def _checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Name to checksum, with one wait for each device."""
    sums = {name: checksum(tensor) for name, tensor in tensors}
    found: dict[str, int] = {}
    for device in {value.device for value in sums.values()}:
        here = [name for name, value in sums.items() if value.device == device]
        found.update(zip(here, torch.stack([sums[name] for name in here]).tolist(), strict=True))
    return found


@torch.no_grad()
def checksum(tensor: Tensor) -> Tensor:
    """A sum over the bit patterns of a tensor's elements, each mixed with its position.

    Exact integers: neither the order of summation nor NaN matters. A change of one element always changes it, two
    changes fail to with a chance of 2**-64; so do elements in another order.

    Args:
        tensor: Any dense tensor, of any dtype; its memory layout does not matter.

    Returns:
        An int64 tensor without dimensions, on the same device.
    """
    flat = tensor.detach().reshape(-1)
    size = flat.element_size()
    # As many elements as 64 bits hold take no longer than one; the rest of the last 64 bits goes by itself.
    whole = flat.numel() * size // 8 * 8 // size if size < 8 else 0
    if flat.storage_offset() * size % 8:
        flat = flat.clone()
    total = _mixed_sum(flat[whole:].view(_INTEGERS[size]), whole)
    return total + _mixed_sum(flat[:whole].view(torch.int64), 0) if whole else total


def _mixed_sum(bits: Tensor, first: int) -> Tensor:
    """Of integers, each mixed with its position, which is counted from ``first``."""
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64, copy=True)
        # splitmix64: each step maps the 64 bits one to one.
        at = first + start + 1
        part += torch.arange(at, at + part.numel(), device=part.device) * -0x61C8864680B583EB
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
            part ^= (part >> shift) & ((1 << (64 - shift)) - 1)
            part *= factor
        part ^= (part >> 31) & ((1 << 33) - 1)
        total += part.sum()
    return total


def _digest(text: bytes) -> int:
    """A signed integer of 64 bits."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], 'little', signed=True)


def _compare(rows: _Rows, group: 'dist.ProcessGroup', device: torch.device) -> None:
    columns = [repr(list(rows)), *zip(*rows.values(), strict=True)]
    mine = torch.tensor([_digest(repr(column).encode()) for column in columns])
    # The greatest value and the smallest one in one collective; ~x turns the order round.
    both = torch.cat([mine, ~mine]).to('cpu' if dist.get_backend(group) in ('gloo', 'mpi') else device)
    dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    greatest, smallest = both.cpu().chunk(2)
    if torch.equal(greatest, ~smallest):
        return
    # Every rank has come to the same result, so every rank comes here.
    gathered: list[_Rows] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(gathered, rows, group=group)
    raise RankDisagreementError(_explain(gathered, dist.get_process_group_ranks(group)))


def _explain(gathered: Sequence[_Rows], ranks: Sequence[int]) -> str:
    """What differs, between whom, and what to do."""
    names = list(dict.fromkeys(name for rows in gathered for name in rows))
    found, remedies = [], []
    weights: list[str] = []
    for column, (kind, remedy) in enumerate(_REMEDIES.items()):
        values = {name: [rows[name][column] if name in rows else None for rows in gathered] for name in names}
        differing = [name for name in names if len(set(values[name])) > 1]
        if kind != 'parameters':
            differing = [name for name in differing if None not in values[name]]
        weights = differing if kind == 'weights' else weights
        # In a fresh run theta_0 is the weights: to name it too would tell the same twice.
        if differing and (kind != 'theta_0' or differing != weights):
            sides = _sides([tuple(values[name][i] for name in differing) for i in range(len(ranks))], ranks)
            more = ', ...' if len(differing) > 3 else ''
            of = f'of {len(differing)} of {len(names)} parameters ({", ".join(differing[:3])}{more})'
            found.append(f'the {kind} {of} differ between {sides}')
            remedies.append(remedy)
    return f'the ranks do not train alike: {"; ".join(found)}. What to do: {"; ".join(remedies)}'


def _sides(values: Sequence[object], ranks: Sequence[int]) -> str:
    """Ranks with equal values together: 'rank 0 and ranks 1-3'."""
    members: dict[object, list[int]] = {}
    for value, rank in zip(values, ranks, strict=True):
        members.setdefault(value, []).append(rank)
    texts = [f'rank{"s" if len(some) > 1 else ""} {_ranges(some)}' for some in members.values()]
    return ', '.join(texts[:4]) + ', ...' if len(texts) > 4 else ' and '.join(texts)


def _ranges(ranks: Iterable[int]) -> str:
    """'0-3, 8' for 0, 1, 2, 3, 8."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ', '.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)
