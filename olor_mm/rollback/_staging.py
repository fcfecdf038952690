"""theta_0 that lies elsewhere than its parameter, or in another dtype, brought to it for the time of a pull.

It goes through one buffer for each device and dtype, a bucket at a time, so that the kernels see what they see
otherwise, and no step takes more memory than the one before.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ._lossless import is_dense

__all__ = ['Stage', 'fits', 'like']

#: Bytes of a bucket. On a CPU one that its cache holds; on a device few kernels.
_BUCKET, _BUCKET_ON_DEVICE = 4 << 20, 64 << 20
_ALIGNED = 64  # bytes


def fits(anchor: Tensor, param: Tensor) -> bool:
    """Whether a kernel can read this theta_0 as it is."""
    return anchor.device == param.device and anchor.dtype == param.dtype and anchor.stride() == param.stride()


def strides_of(param: Tensor) -> tuple[int, ...]:
    """Those of a copy of the parameter."""
    return param.stride() if is_dense(param) else torch.empty(param.shape, device='meta').stride()


def like(anchor: Tensor, param: Tensor) -> Tensor:
    """theta_0 as the parameter lies; itself where it does already."""
    if fits(anchor, param):
        return anchor
    copy = torch.empty_strided(param.shape, strides_of(param), dtype=param.dtype, device=param.device)
    _copy(copy, anchor)
    return copy


def _copy(target: Tensor, source: Tensor) -> None:
    if source.device != target.device and source.dtype != target.dtype:
        # As it is over the bus, which is the narrow way: torch would widen it first.
        source = source.to(target.device, non_blocking=True)
    target.copy_(source, non_blocking=True)


class Stage:
    """The buffers of one rollback.

    Args:
        arrived: Gives the copy of a parameter's theta_0 that is on its device already, in any dtype, if there is one.
    """

    def __init__(self, arrived: Callable[[Tensor], Tensor | None] | None = None) -> None:
        self._arrived = arrived
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """What the buffers take."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def clear(self) -> None:
        """Free the buffers."""
        self._buffers.clear()

    def buckets(self, params: Sequence[Tensor], anchors: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """What the kernels read, in the order of the parameters.

        Args:
            params: Parameters of one device and dtype.
            anchors: theta_0 of each, as it is kept.

        Yields:
            Which of the parameters, and theta_0 of each, valid until the next is asked for.
        """
        found = [self._at_hand(param, anchor) for param, anchor in zip(params, anchors, strict=True)]
        sizes = [0 if fits(anchor, param) else _size(param) for param, anchor in zip(params, found, strict=True)]
        if not any(sizes):
            yield slice(0, len(params)), found
            return
        most = _BUCKET if params[0].device.type == 'cpu' else _BUCKET_ON_DEVICE
        most //= params[0].element_size()
        buffer = self._buffer(params[0], min(max(most, *sizes), sum(sizes)))
        start = 0
        while start < len(params):
            stop, used, parts = start, 0, []
            while stop < len(params) and (stop == start or used + sizes[stop] <= buffer.numel()):
                parts.append(self._place(buffer, used, params[stop], found[stop]) if sizes[stop] else found[stop])
                used += sizes[stop]
                stop += 1
            yield slice(start, stop), parts
            start = stop

    def _at_hand(self, param: Tensor, anchor: Tensor) -> Tensor:
        here = None if self._arrived is None else self._arrived(param)
        return anchor if here is None else here

    def _buffer(self, param: Tensor, size: int) -> Tensor:
        key = param.device, param.dtype
        if key not in self._buffers or self._buffers[key].numel() < size:
            # The old one first: both at a time would be more than is needed.
            self._buffers.pop(key, None)
            self._buffers[key] = torch.empty(size, dtype=param.dtype, device=param.device)
        return self._buffers[key]

    @staticmethod
    def _place(buffer: Tensor, offset: int, param: Tensor, anchor: Tensor) -> Tensor:
        view = buffer.as_strided(param.shape, strides_of(param), offset)
        _copy(view, anchor)
        return view


def _size(param: Tensor) -> int:
    """Elements that a copy takes in the buffer."""
    unit = max(_ALIGNED // param.element_size(), 1)
    return -(-max(param.numel(), 1) // unit) * unit
