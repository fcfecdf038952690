"""What a pull leaves of the distance to theta_0, by dtype: python benchmarks/precision.py [--device cuda] [--out DIR].

No optimizer moves the weights, so exactly (1 - a)^n of the distance is left after n pulls. 'nearest' is torch's lerp in
the dtype of the weights, 'ours' what Rollback does there. A second table, precision_cost_cpu.md, is what a pull of
ViT-B's parameters in 16 bits costs beside the step of AdamW: ours, and the same rounding as a plain loop over tensors,
in parts that a cache holds, which draws a number for each element and chooses between its two neighbours.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import interleaved, machine, ratio, save, spread
from torch import Tensor, nn

from olor_mm.layers import assign_layers
from olor_mm.rollback import Rollback, layerwise_levels

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
VARIANTS = {
    'float32': (torch.float32, 'nearest'),
    'bfloat16, nearest': (torch.bfloat16, 'nearest'),
    'bfloat16, ours': (torch.bfloat16, 'ours'),
    'float16, nearest': (torch.float16, 'nearest'),
    'float16, ours': (torch.float16, 'ours'),
}
SIZE = 20_000
#: Elements that the plain loop takes at a time on a CPU.
PART = 2**18
TOLD = {
    'alone': 'fused AdamW alone',
    'rollback': 'with rollback',
    'tensor by tensor': 'with the same rounding, a plain loop over tensors',
}


def share_left(dtype: torch.dtype, how: str, strength: float, pulls: int) -> float:
    """The share of the distance, in the direction of the first, that is left after so many pulls."""
    generator = torch.Generator().manual_seed(0)
    theta_0 = (0.02 * torch.randn(SIZE, generator=generator)).to(dtype)
    # Fine-tuning has moved each weight by a twentieth of itself.
    theta = (theta_0 * (1 + 0.05 * torch.randn(SIZE, generator=generator))).to(dtype)
    first = theta.double() - theta_0.double()
    param = torch.nn.Parameter(theta)
    optimizer = torch.optim.SGD([param], lr=1.0)
    if how == 'ours':
        Rollback(optimizer, {param: strength}, anchor={param: theta_0})
    for _ in range(pulls):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        if how == 'nearest':
            param.data.lerp_(theta_0, strength)
    left = param.detach().double() - theta_0.double()
    return float((left * first).sum() / first.square().sum())


def vit(small: bool) -> nn.Module:
    """ViT-B with random weights on the CPU (a few blocks of width 64 if ``small``)."""
    from mmpretrain.models import VisionTransformer

    width = {'embed_dims': 64, 'num_layers': 3, 'num_heads': 2, 'feedforward_channels': 256}
    model = nn.Module()
    model.backbone = VisionTransformer(arch=width if small else 'b', img_size=224, patch_size=16)
    return model


def levels_of(model: nn.Module) -> dict[Tensor, float]:
    table = assign_layers(model)
    return layerwise_levels(model.named_parameters(), table.index, table.num_layers, 1e-2, power=2)


@torch.no_grad()
def plain(param: Tensor, anchor: Tensor, strength: float) -> None:
    """The rounding for one tensor as it is told: the nearer or the farther neighbour, by a random number."""
    exact, bits = torch.lerp(param.float(), anchor.float(), strength), torch.int16
    near = exact.to(param.dtype)
    rest = exact - near.float()
    # Sign and magnitude: away from zero is one more whatever the sign.
    outward = (rest > 0) == (near > 0)
    beside = torch.where(outward, near.view(bits) + 1, near.view(bits) - 1).view(param.dtype)
    share = rest / (beside.float() - near.float())
    param.copy_(torch.where(torch.rand_like(exact) < share, beside, near))


def step_of(dtype: torch.dtype, how: str, device: str, small: bool) -> tuple[Callable[[], Any], int]:
    """A step of AdamW on ViT-B's parameters with one kind of pull, and how many parameters it pulls."""
    torch.manual_seed(0)
    model = vit(small).to(device=device, dtype=dtype)
    levels = {p: level for p, level in levels_of(model).items() if level > 0}
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if how == 'rollback':
        Rollback(optimizer, levels)
    part_size = PART if device == 'cpu' else 2**24
    anchors = {p: p.detach().clone() for p in levels} if how == 'tensor by tensor' else {}

    def step() -> None:
        optimizer.step()
        for param, anchor in anchors.items():
            for part, target in zip(param.view(-1).split(part_size), anchor.view(-1).split(part_size), strict=True):
                plain(part, target, levels[param])

    return step, sum(p.numel() for p in levels)


def cost(device: str, rounds: int, small: bool) -> dict[str, Any]:
    """Seconds of a step by dtype and kind of pull, in turn in one process."""
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        runs: dict[str, Callable[[], Any]] = {}
        for how in ('alone', 'rollback', 'tensor by tensor'):
            runs[how], count = step_of(dtype, how, device, small)
        found[str(dtype).removeprefix('torch.')] = {'pulled': count, **interleaved(runs, device, rounds)}
    return found


def cost_rows(found: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for dtype, times in found.items():
        pulls = {how: [v - w for v, w in zip(times[how], times['alone'], strict=True)] for how in times if how in TOLD}
        for how, told in TOLD.items():
            values = times[how]
            cells = [
                f'{1e3 * statistics.median(values):.0f}',
                f'{spread(values):.0%}',
                f'{ratio(values, times["alone"]):.2f}',
            ]
            each = f'{1e9 * statistics.median(pulls[how]) / times["pulled"]:.2f}' if how != 'alone' else '-'
            rows.append([f'{dtype}: {told}', *cells, each])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=9, help='timed steps of each variant')
    parser.add_argument('--small', action='store_true', help='a few small blocks, fewer pulls: does it run?')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results')
    args = parser.parse_args()

    about = machine(args.device)
    result = {'machine': about, 'left': {}}
    rows = []
    for strength in STRENGTHS:
        pulls = min(round(1 / strength), 50 if args.small else 2000)
        found = {name: share_left(*variant, strength, pulls) for name, variant in VARIANTS.items()}
        result['left'][str(strength)] = {'pulls': pulls, 'exact': (1 - strength) ** pulls, **found}
        rows.append([f'{strength:g}', pulls, *(f'{v:.3f}' for v in ((1 - strength) ** pulls, *found.values()))])
    print(save(args.out, f'precision_{args.device}', result, rows, ['a', 'pulls', 'exact', *VARIANTS]))
    seconds = cost(args.device, args.rounds, args.small)
    result = {'machine': {**about, 'job': f'{args.rounds} rounds'}, 'seconds': seconds}
    header = ['step', 'ms, median', 'spread', 'ratio to AdamW alone', 'the pull, ns a parameter']
    print(save(args.out, f'precision_cost_{args.device}', result, cost_rows(seconds), header))


if __name__ == '__main__':
    main()
