"""What each way to keep and to save theta_0 costs: python benchmarks/anchor_memory.py [--device cuda] [--out DIR].

The parameters are those of a ViT-B classifier with the levels of its config; the pre-trained file holds float32 numbers
that are all numbers of float16, as those of a published half precision checkpoint are. Each way is measured by itself
in this one process: how long it takes until theta_0 is there and what memory that took, as the kernel and the GPU's
allocator say; how large the optimizer's state dict is when it is saved; and, in turn with the plain form, how long a
step takes. On a GPU a step includes a backward pass that computes next to nothing, so there is nothing to hide the
copies from pinned memory behind: its ratio is the worst case.
"""

import argparse
import ctypes
import gc
import io
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import described, interleaved, machine, ratio, spread, table, timed, write
from _step.sets import ParameterSet, load
from torch import Tensor

from olor_mm.rollback import Keep, Rollback

MODEL = 'ViT-B classifier'
#: What stands in the table; None is a run without rollback.
WAYS: dict[str, dict[str, str] | None] = {
    'no rollback': None,
    'plain': {},
    "anchor_dtype='lossless'": {'dtype': 'lossless'},
    "anchor_memory='pinned'": {'memory': 'pinned'},
    "anchor_memory='pinned', lossless": {'memory': 'pinned', 'dtype': 'lossless'},
    "anchor_memory='mapped'": {'memory': 'mapped'},
    "anchor_memory='mapped', lossless": {'memory': 'mapped', 'dtype': 'lossless'},
    "anchor_saved='reference'": {'saved': 'reference'},
}
MIB = 2**20
_MMAP_THRESHOLD = -3
NOT_MEASURED = 'not measured'


class Counting(io.RawIOBase):
    """A file that keeps nothing but its size."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        number = memoryview(data).nbytes
        self.size += number
        return number


def release_at_once() -> None:
    """Let freed tensors be given back to the system: glibc keeps those of less than 32 MiB for later ones."""
    try:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    except (AttributeError, OSError):
        print('the figures of the host may be too low: this is no glibc')


def used(device: str) -> dict[str, int | None]:
    """Bytes of this process: its own, those of files that are mapped, and those of the GPU; None where nobody says."""
    found: dict[str, int | None] = dict.fromkeys(('own', 'file', 'device'))
    gc.collect()
    rollup = Path('/proc/self/smaps_rollup')
    if rollup.is_file():
        told = {line.split(':')[0]: line.split()[1] for line in rollup.read_text().splitlines()[1:]}
        own, total = (int(told[key]) * 1024 for key in ('Anonymous', 'Rss'))
        found.update(own=own, file=total - own)
    if device == 'cuda':
        torch.cuda.synchronize()
        found['device'] = torch.cuda.memory_allocated()
    return found


def build(params: ParameterSet, way: dict[str, str] | None, file: Path, folder: Path) -> tuple[Any, Rollback | None]:
    """A fresh optimizer of the parameters, and its rollback."""
    optimizer = torch.optim.AdamW(params.params, lr=1e-4, weight_decay=0.05)
    if way is None:
        return optimizer, None
    options = {**way, 'folder': str(folder)} if way.get('memory') == 'mapped' else way
    rollback = Rollback(optimizer, params.levels, names=names_of(params), keep=Keep(**options))
    if rollback.keeper is not None:
        rollback.keeper.origins.files.append(str(file))
    return optimizer, rollback


def names_of(params: ParameterSet) -> dict[Tensor, str]:
    return {p: f'backbone.{i}.weight' for i, p in enumerate(params.params)}


def stepper(params: ParameterSet, optimizer: torch.optim.Optimizer, device: str) -> Callable[[], None]:
    """A step; on a GPU with a backward pass, for theta_0 is brought there during that."""

    def run() -> None:
        if device == 'cuda':
            optimizer.zero_grad(set_to_none=False)
            sum((p * 1e-3).sum() for p in params.params).backward()  # type: ignore[union-attr]
        optimizer.step()

    return run


def saved(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of its state dict in a file."""
    target = Counting()
    torch.save(optimizer.state_dict(), target)  # type: ignore[arg-type]
    return target.size


def measured(params: ParameterSet, way: dict[str, str] | None, device: str, rounds: int, folder: Path) -> dict:
    """All figures of one way."""
    file = folder / 'pretrained.pth'
    # What was written for another way is not to be found.
    with tempfile.TemporaryDirectory(dir=folder) as written:
        restore(params, file)
        optimizer, rollback = build(params, way, file, Path(written))
        before = used(device)
        seconds = 0.0 if rollback is None else timed(rollback.capture, device)
        for p in () if rollback is None else params.levels:
            # What is mapped is in memory only once it was read.
            rollback.anchor(p)
        after = used(device)
        step = stepper(params, optimizer, device)
        step()
        memory = {key: None if size is None else after[key] - size for key, size in before.items()}
        found: dict[str, Any] = {'memory': memory, 'start-up': seconds}
        found['first state dict'] = timed(optimizer.state_dict, device)
        found['checkpoint'] = saved(optimizer)
        other, plain = build(params, {}, file, Path(written))
        times = interleaved({'plain': stepper(params, other, device), 'this': step}, device, rounds, shuffle=True)
        found.update(seconds=times, ratio=ratio(times['this'], times['plain']), spread=spread(times['this']))
        for one in (rollback, plain):
            if one is not None:
                one.detach()
    return found


@torch.no_grad()
def restore(params: ParameterSet, file: Path) -> None:
    """Undo the steps of the way before."""
    content = torch.load(file, weights_only=True, mmap=True)
    for p, name in names_of(params).items():
        p.copy_(content[name])


def prepared(small: bool, device: str, folder: Path) -> ParameterSet:
    """The parameters, with the values of a half precision file, which is written too."""
    params = load(MODEL, small, device)
    with torch.no_grad():
        for p in params.params:
            p.copy_(p.half())
    params.anchors.clear()
    torch.save({name: p.detach().cpu() for p, name in names_of(params).items()}, folder / 'pretrained.pth')
    return params


def page(result: Mapping[str, Any]) -> str:
    """The table, and the machine."""
    header = ['theta_0', 'on the GPU, MiB', 'host, this process alone, MiB', 'host, of a mapped file, MiB']
    header += ["optimizer's part of a checkpoint, MiB", 'start-up, s', 'first state dict, s', 'step, plain = 1']
    rows = [_row(name, found, result['device']) for name, found in result['ways'].items()]
    noise = max(found['spread'] for found in result['ways'].values())
    about = result['about']
    text = f'{about["model"]}, {about["parameters"]:,} parameters, {about["pulled"]:,} of them pulled; medians of '
    text += f'{result["rounds"]} rounds, whose quarters are up to {noise:.0%} apart. '
    return f'{table(rows, header)}\n\n{text}{described(result["machine"])}\n'


def _row(name: str, found: Mapping[str, Any], device: str) -> list[str]:
    if device == 'cpu' and 'pinned' in name:
        return [name, *[NOT_MEASURED] * 7]
    sizes = [found['memory'][key] for key in ('device', 'own', 'file')]
    cells = [*map(_mib, sizes), _mib(found['checkpoint']), f'{found["start-up"]:.2f}']
    return [name, *cells, f'{found["first state dict"]:.2f}', f'{found["ratio"]:.2f}']


def _mib(number: float | None) -> str:
    return NOT_MEASURED if number is None else f'{max(number, 0) / MIB:.1f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--small', action='store_true', help='a tiny model: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    parser.add_argument('--folder', type=Path, help="where the file of about 350 MB is written; default: the system's")
    args = parser.parse_args()
    release_at_once()
    result: dict[str, Any] = {'device': args.device, 'machine': machine(args.device), 'rounds': args.rounds, 'ways': {}}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        params = prepared(args.small, args.device, Path(folder))
        result['about'] = {'model': MODEL, **params.about()}
        for name, way in WAYS.items():
            result['ways'][name] = measured(params, way, args.device, args.rounds, Path(folder))
    print(write(args.out, f'anchor_memory_{args.device}', result, page(result)))


if __name__ == '__main__':
    main()
