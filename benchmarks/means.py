"""By what means the step and the pull are best made one: python benchmarks/means.py [--device cuda] [--out DIR].

AdamW on one large tensor, no Python around it: torch's fused step alone, with the pull after it, both by turns on
blocks that fit into a cache, torch.compile of the two together, and the kernels of form='single_pass'. Beside them a
plain copy of as many bytes, the bound. The choice was made on these figures; docs/performance.md quotes them.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from _common import interleaved, machine, ratio, save, spread
from torch import Tensor

from olor_mm.rollback import kernels
from olor_mm.rollback.single_pass.cpu import BuildError

LR, BETA1, BETA2, EPS, DECAY, A = 1e-4, 0.9, 0.999, 1e-8, 0.01, 1e-3
BASE = 'the step alone'


def fused_step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor) -> None:
    torch._fused_adamw_(
        [p], [g], [m], [v], [], [step], lr=LR, beta1=BETA1, beta2=BETA2, weight_decay=DECAY, eps=EPS, amsgrad=False,
        maximize=False, grad_scale=None, found_inf=None
    )  # fmt: skip


def pull(p: Tensor, anchor: Tensor) -> None:
    if p.device.type == 'cpu':
        kernels.fused([p], [anchor], [A])
    else:
        kernels.foreach([p], [anchor], [A])


def functional(p: Tensor, g: Tensor, m: Tensor, v: Tensor, anchor: Tensor) -> None:
    """What torch.compile gets: the first step's bias correction, as constants, which is the best case for it."""
    m_t = m + (1 - BETA1) * (g - m)
    v_t = BETA2 * v + (1 - BETA2) * g * g
    root = (v_t / (1 - BETA2)).sqrt() + EPS
    updated = p * (1 - LR * DECAY) - LR / (1 - BETA1) * m_t / root
    p.copy_(updated + A * (anchor - updated))
    m.copy_(m_t)
    v.copy_(v_t)


def single_pass(device: str) -> Callable[..., None]:
    """The kernel of this device.

    Raises:
        BuildError: If it cannot be compiled.
    """
    if device == 'cpu':
        from olor_mm.rollback.single_pass import cpu as module
    else:
        from olor_mm.rollback.single_pass import cuda as module
    module.load()
    row = [1.0, 0.0, 1 - LR * DECAY, 1 - BETA1, BETA2, 1 - BETA2, EPS, LR / (1 - BETA1), (1 - BETA2) ** 0.5, A]
    scalars = torch.tensor([row], device=device)
    return lambda *tensors: module.adam(*([tensor] for tensor in tensors), scalars)


def variants(size: int, block: int, device: str, compiling: bool) -> dict[str, Callable[[], object]]:
    p, g, anchor, m, v = (torch.randn(size, device=device) for _ in range(5))
    v.abs_()
    # Every call is a first step: bias correction is the same for all.
    step = torch.ones((), device=device)
    tensors = (p, g, m, v, anchor)

    def after() -> None:
        fused_step(p, g, m, v, step)
        pull(p, anchor)

    def by_blocks() -> None:
        for parts in zip(*(tensor.split(block) for tensor in tensors), strict=True):
            fused_step(*parts[:4], step)
            pull(parts[0], parts[4])

    kernel = single_pass(device)
    source, target = (torch.zeros(4 * size, device=device) for _ in range(2))
    found = {
        BASE: lambda: fused_step(p, g, m, v, step),
        'the step, then the pull': after,
        f'by turns, on blocks of {block:,}': by_blocks,
        "the kernel of form='single_pass'": lambda: kernel(*tensors),
        'a copy of 32 bytes a parameter': lambda: target.copy_(source),
    }
    if compiling:
        compiled = torch.compile(functional, fullgraph=True)
        found['torch.compile of both'] = lambda: compiled(*tensors)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=31)
    parser.add_argument(
        '--small',
        action='store_true',
        help='a small tensor, and not torch.compile, which takes minutes: shows that the benchmark works',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    size, block = (1 << 16, 1 << 14) if args.small else (1 << 25, 1 << 16)
    about = machine(args.device)
    about['job'] = f'AdamW on one tensor of {size:,} numbers, {args.rounds} rounds'
    times = interleaved(variants(size, block, args.device, compiling=not args.small), args.device, args.rounds)
    rows = [
        [name, f'{statistics.median(values) * 1e3:.2f}', f'{spread(values):.0%}', f'{ratio(values, times[BASE]):.2f}']
        for name, values in times.items()
    ]
    header = ['means', 'ms, median', 'spread', 'ratio to the step alone']
    print(save(args.out, f'means_{args.device}', {'machine': about, 'seconds': times}, rows, header))


if __name__ == '__main__':
    try:
        main()
    except BuildError as error:
        raise SystemExit(f'the kernels of the single pass cannot be had here: {error}') from error
