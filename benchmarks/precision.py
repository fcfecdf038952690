"""What a pull leaves of the distance to theta_0, by dtype: python benchmarks/precision.py [--device cuda] [--out DIR].

No optimizer moves the weights, so exactly (1 - a)^n of the distance is left after n pulls. 'nearest' is torch's lerp in
the dtype of the weights, 'ours' what Rollback does there. A second figure is what a pull of ViT-B's parameters in
bfloat16 costs, beside the step of AdamW.
"""

import argparse
import statistics
from pathlib import Path

import torch
from _common import interleaved, machine, save
from step import levels_of, parameters

from olor_mm.rollback import Rollback

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
VARIANTS = {
    'float32': (torch.float32, 'nearest'),
    'bfloat16, nearest': (torch.bfloat16, 'nearest'),
    'bfloat16, ours': (torch.bfloat16, 'ours'),
    'float16, nearest': (torch.float16, 'nearest'),
    'float16, ours': (torch.float16, 'ours'),
}
SIZE = 20_000


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


def cost(device: str, rounds: int, small: bool) -> dict[str, list[float]]:
    """Seconds of a step of AdamW on ViT-B's parameters in bfloat16, with and without a pull."""
    runs = {}
    for name in ('AdamW, bfloat16', 'AdamW, bfloat16 + rollback'):
        torch.manual_seed(0)
        model = parameters(small).to(device=device, dtype=torch.bfloat16)
        for param in model.parameters():
            param.grad = torch.full_like(param, 1e-3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        if 'rollback' in name:
            Rollback(optimizer, levels_of(model))
        runs[name] = optimizer.step
    return interleaved(runs, device, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=9, help='timed steps of each variant')
    parser.add_argument('--small', action='store_true', help='a few small blocks, fewer pulls: does it run?')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results')
    args = parser.parse_args()

    result = {'machine': machine(args.device), 'left': {}, 'seconds': {}}
    rows = []
    for strength in STRENGTHS:
        pulls = min(round(1 / strength), 50 if args.small else 2000)
        found = {name: share_left(*variant, strength, pulls) for name, variant in VARIANTS.items()}
        result['left'][str(strength)] = {'pulls': pulls, 'exact': (1 - strength) ** pulls, **found}
        rows.append([f'{strength:g}', pulls, *(f'{v:.3f}' for v in ((1 - strength) ** pulls, *found.values()))])
    result['seconds'] = cost(args.device, args.rounds, args.small)
    text = save(args.out, f'precision_{args.device}', result, rows, ['a', 'pulls', 'exact', *VARIANTS])
    times = {name: statistics.median(values) for name, values in result['seconds'].items()}
    print(text, *(f'{name}: {1000 * seconds:.1f} ms' for name, seconds in times.items()), sep='\n')


if __name__ == '__main__':
    main()
