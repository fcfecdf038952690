"""theta_0 on its way from pinned host memory to the device, while the backward pass is still at work.

The copy of a parameter's theta_0 begins when its gradient is there. By then the activations of its layer and of all
deeper ones are freed, so their memory is what the copy takes.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ['Copies', 'CudaCopies', 'Prefetch', 'pinned']


class Copies(Protocol):
    """How a tensor gets from the host to a device, aside from what is computed there."""

    def begin(self, source: Tensor, device: torch.device) -> Tensor:
        """A copy on its way to ``device``; not to be read before :meth:`finish`."""

    def finish(self, copies: Iterable[Tensor]) -> None:
        """From here on what is computed may read them, and free them."""


class CudaCopies:
    """Copies on a stream of their own for each GPU; the host waits for none."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._begun_on: dict[int, torch.cuda.Stream] = {}

    def begin(self, source: Tensor, device: torch.device) -> Tensor:
        """As :class:`Copies` says."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side, here = self._streams[device], torch.cuda.current_stream(device)
        # From the memory of the stream that computes: what the activations leave free is there. What was queued on it
        # so far may still use that memory.
        copy = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device=device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            copy.copy_(source, non_blocking=True)
        # Also where nobody waits for it, as when all of this is thrown away between a backward pass and its step.
        copy.record_stream(side)
        self._begun_on[id(copy)] = here
        return copy

    def finish(self, copies: Iterable[Tensor]) -> None:
        """As :class:`Copies` says."""
        copies = list(copies)
        for device in {copy.device for copy in copies}:
            # Also where a copy is not read: its memory may be given away only when it is complete.
            torch.cuda.current_stream(device).wait_stream(self._streams[device])
        for copy in copies:
            here = torch.cuda.current_stream(copy.device)
            begun_on = self._begun_on.pop(id(copy), here)
            if begun_on != here:
                copy.record_stream(here)
                begun_on.wait_stream(self._streams[copy.device])


class Prefetch:
    """Begins copies as gradients come, and hands them out at the step.

    Args:
        anchor: Gives theta_0 of a parameter as it is kept, if it is.
        copies: How to copy. Defaults to :class:`CudaCopies`.
    """

    def __init__(self, anchor: Callable[[Tensor], Tensor | None], copies: Copies | None = None) -> None:
        self._anchor = anchor
        self._copies = CudaCopies() if copies is None else copies
        self._handles: dict[Tensor, Any] = {}
        self._begun: dict[Tensor, Tensor] = {}
        self._finished: set[Tensor] = set()
        #: Whether copies are begun; not in a backward pass that no step follows.
        self.active = True

    @property
    def num_bytes(self) -> int:
        """What the copies take at the moment."""
        return sum(copy.numel() * copy.element_size() for copy in self._begun.values())

    def watch(self, params: Iterable[Tensor]) -> None:
        """See when these get their gradients; those that get none are left alone until they can."""
        for param in params:
            if param.requires_grad and param.is_leaf and param not in self._handles:
                self._handles[param] = param.register_post_accumulate_grad_hook(_make_hook(weakref.ref(self)))

    def begin(self, param: Tensor) -> None:
        """A gradient is there."""
        anchor = self._anchor(param)
        if self.active and param not in self._begun and anchor is not None:
            self._begun[param] = self._copies.begin(anchor, param.device)

    def arrived(self, param: Tensor) -> Tensor | None:
        """theta_0 on the parameter's device, in the dtype that it is kept in, if its copy was begun."""
        copy = self._begun.get(param)
        if copy is not None and param not in self._finished:
            # All at once: one wait for each device.
            self._copies.finish([other for p, other in self._begun.items() if p not in self._finished])
            self._finished = set(self._begun)
        return copy

    def drop(self) -> None:
        """Free the copies: the step is over, or theta_0 is another one."""
        self._copies.finish([copy for param, copy in self._begun.items() if param not in self._finished])
        self._begun.clear()
        self._finished.clear()

    def close(self) -> None:
        """Watch no more."""
        self.drop()
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def _make_hook(prefetch: 'weakref.ref[Prefetch]') -> Callable[[Tensor], None]:
    # A weak reference: the model may live longer than its optimizer, and must not keep theta_0.
    def hook(param: Tensor) -> None:
        alive = prefetch()
        if alive is not None:
            alive.begin(param)

    return hook


def pinned(value: Tensor) -> Tensor:
    """A copy in pinned host memory, of the same memory layout where that is dense."""
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, pin_memory=True)
    return copy.copy_(value)
