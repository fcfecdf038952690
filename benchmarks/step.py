"""What a rollback adds to a step of the optimizer: python benchmarks/step.py [--device cuda] [--out DIR].

The parameters of ViT-B, levels of 14 layers, all variants in one process and in turn. The base optimizers are torch's;
'paper, per tensor' is Algorithm 2 written as a plain loop over tensors on top of torch's for-loop form.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from _common import interleaved, machine, ratio, save, spread
from torch import Tensor, nn

from olor_mm.layers import assign_layers
from olor_mm.rollback import Rollback, layerwise_levels


def parameters(small: bool) -> nn.Module:
    """ViT-B with random weights on the CPU (a few blocks of width 64 if ``small``)."""
    from mmpretrain.models import VisionTransformer

    width = {'embed_dims': 64, 'num_layers': 3, 'num_heads': 2, 'feedforward_channels': 256}
    model = nn.Module()
    model.backbone = VisionTransformer(arch=width if small else 'b', img_size=224, patch_size=16)
    return model


def levels_of(model: nn.Module) -> dict[Tensor, float]:
    table = assign_layers(model)
    return layerwise_levels(model.named_parameters(), table.index, table.num_layers, 1e-2, power=2)


def per_tensor_loop(optimizer: torch.optim.Optimizer, levels: dict[Tensor, float]) -> Callable[[], None]:
    """The paper's recursion with a buffer d for each tensor: about five small kernels a tensor after the base step."""
    d = {p: torch.zeros_like(p) for p in levels}

    @torch.no_grad()
    def step() -> None:
        before = {p: p.detach().clone() for p in levels}
        optimizer.step()
        for p, level in levels.items():
            update = before[p] - p
            p.copy_(before[p] - level * d[p] - (1 - level) * update)
            d[p] = (1 - level) * (d[p] - update)

    return step


def bare_pass(optimizer: torch.optim.Optimizer, levels: dict[Tensor, float]) -> Callable[[], None]:
    """The least that a separate pass can be: as many bytes as the rollback moves, and one addition."""
    params = [p for p, level in levels.items() if level > 0]
    others = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        torch._foreach_add_(params, others)

    return step


def build(name: str, small: bool, device: str) -> Callable[[], object]:
    """One variant: 'AdamW fused', 'AdamW fused + rollback', ..."""
    base, _, extra = name.partition(' + ')
    cls, form = base.split()
    torch.manual_seed(0)
    model = parameters(small).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    options = {'fused': True} if form == 'fused' else {'foreach': form == 'foreach'}
    kwargs = {'momentum': 0.9} if cls == 'SGD' else {}
    optimizer = getattr(torch.optim, cls)(model.parameters(), lr=1e-4, **options, **kwargs)
    if extra == 'paper, per tensor':
        return per_tensor_loop(optimizer, levels_of(model))
    if extra == 'bare add':
        return bare_pass(optimizer, levels_of(model))
    if extra:
        Rollback(optimizer, levels_of(model), form='single_tensor' if 'single' in extra else 'foreach')
    return optimizer.step


VARIANTS = {
    'AdamW fused': 'AdamW fused',
    'AdamW fused + rollback': 'AdamW fused',
    'AdamW fused + rollback, single tensor': 'AdamW fused',
    'AdamW fused + bare add': 'AdamW fused',
    'AdamW fused + paper, per tensor': 'AdamW fused',
    'AdamW foreach': 'AdamW fused',
    'AdamW loop': 'AdamW fused',
    'SGD fused': 'SGD fused',
    'SGD fused + rollback': 'SGD fused',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--small', action='store_true', help='a tiny model: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    result: dict[str, object] = {'machine': machine(args.device), 'parameters': 0, 'seconds': {}}
    runs = {name: build(name, args.small, args.device) for name in VARIANTS}
    times = interleaved(runs, args.device, args.rounds)
    count = sum(p.numel() for p in parameters(args.small).parameters())
    result.update(parameters=count, seconds=times)
    rows = [
        [
            name,
            f'{statistics.median(values) * 1e3:.1f}',
            f'{spread(values):.0%}',
            f'{ratio(values, times[VARIANTS[name]]):.2f}',
        ]
        for name, values in times.items()
    ]
    header = ['step', 'ms, median', 'spread', 'ratio to the fused base step']
    print(f'{count:,} parameters, {args.rounds} rounds')
    print(save(args.out, f'step_{args.device}', result, rows, header))
    if max(spread(times[name]) for name in ('AdamW fused', 'SGD fused')) > 0.15:
        print('The machine was too noisy: the base step itself spreads by more than 15%.')


if __name__ == '__main__':
    main()
