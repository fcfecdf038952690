"""What one call does, by count: operators, kernels, bytes, memory that it takes for a while."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that write their first argument, or their result, without reading it, and those that touch nothing.
_WRITE_ONLY = {'copy_', '_foreach_copy_', 'zero_', 'fill_', '_foreach_zero_', 'zeros_like', 'ones_like', 'full_like'}
_NOTHING = {'empty', 'empty_like', 'new_empty', 'empty_strided', 'new_empty_strided'}


class Dispatched(TorchDispatchMode):
    """Counts the operators that torch dispatches, and the bytes that they read and write.

    A tensor that an operator reads counts once, one that it makes or changes in place once more. Views count as
    operators, but move nothing; so does an expanded number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        self.bytes += _moved(func, args, kwargs or {}, out)
        return out


def _moved(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    name = func.overloadpacket.__name__
    results = [result.alias_info for result in func._schema.returns]
    if name in _NOTHING or any(alias is not None and not alias.is_write for alias in results):
        return 0
    total = 0
    for position, declared in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(declared.name)
        size = sum(_size(tensor) for tensor in _tensors(value))
        total += 0 if name in _WRITE_ONLY and position == 0 else size
        # torch declares gradients as written, for the sake of a loss scale, which is not used here.
        if declared.alias_info is not None and declared.alias_info.is_write and declared.name != 'grads':
            total += size
    if not any(alias is not None for alias in results):
        total += sum(_size(tensor) for tensor in _tensors(out))
    return total


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _size(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def dispatched(run: Callable[[], Any]) -> tuple[int, int]:
    """Operators that torch dispatches in a call, and the bytes that they move."""
    with Dispatched() as count:
        run()
    return count.operators, count.bytes


def _trace(run: Callable[[], Any], activity: ProfilerActivity, **options: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with profile(activities=[activity], **options) as profiler:
            run()
            if activity == ProfilerActivity.CUDA:
                torch.cuda.synchronize()
        file = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(file))
        return json.loads(file.read_text())['traceEvents']


def kernels(run: Callable[[], Any]) -> int:
    """Kernels that a call launches on a GPU, copies and fills left out."""
    return sum(event.get('cat') == 'kernel' for event in _trace(run, ProfilerActivity.CUDA))


def launches(run: Callable[[], Any], device: str) -> int:
    """Kernels on a GPU; on the CPU the operators that torch dispatches, each of which may loop over many tensors."""
    return kernels(run) if device == 'cuda' else dispatched(run)[0]


def peak(run: Callable[[], Any], device: str) -> int:
    """Bytes that a call holds at most beyond what was there before it, by torch's allocator."""
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    held = most = 0
    events = [e for e in _trace(run, ProfilerActivity.CPU, profile_memory=True) if e.get('name') == '[memory]']
    for event in sorted(events, key=lambda e: e['ts']):
        held += event['args']['Bytes']
        most = max(most, held)
    return most
