"""What DTL saves: python benchmarks/dtl_memory.py [--device cuda] [--out DIR].

First, what a training step of each method keeps: the activations that autograd saves between the forward and the
backward pass (unique storages, those of parameters left out), and the most that a whole step of AdamW holds beyond the
weights and the optimizer's state, by torch's allocator. DTL is measured for every M: that its memory falls as M grows
is what it is for.

Second, the inference of 1 to 8 tasks on one backbone by ``olor_mm.models.DTLGroup``, against one model after the other,
in seconds and in bytes of weights.

Weights and images are random: they do not matter here.
"""

import argparse
import copy
import gc
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import described, interleaved, machine, spread, table, write
from _step.counting import peak
from _train.judging import interval
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from olor_mm.models import DTLGroup

MIB = 2**20
TASKS = (1, 2, 4, 8)
OTHERS: dict[str, Any] = {
    'Full': 'Full',
    'LoRA, r = 8': {'type': 'LoRA', 'rank': 8},
    'VPT-Deep, 10 tokens': {'type': 'VPT', 'tokens': 10, 'deep': True},
    'BitFit': 'BitFit',
    'Linear': 'Linear',
}
#: Models, their number of blocks, DTL's rank, the values of M that are measured, and the paper's.
NETWORKS: dict[str, dict[str, Any]] = {
    'ViT-B/16': {
        'backbone': {'type': 'VisionTransformer', 'arch': 'base', 'out_type': 'avg_featmap', 'final_norm': False},
        'channels': 768,
        'rank': 2,
        'starts': tuple(range(1, 13)),
        'paper': 7,
    },
    'Swin-B': {
        'backbone': {'type': 'SwinTransformer', 'arch': 'base'},
        'channels': 1024,
        'rank': 4,
        'starts': (1, 3, 5, 10, 15, 20, 22, 24),
        'paper': 15,
    },
}
SMALL: dict[str, Any] = {
    'ViT-B/16': {
        'backbone': {'arch': {'embed_dims': 32, 'num_layers': 12, 'num_heads': 2, 'feedforward_channels': 64}},
        'channels': 32,
        'starts': (1, 7, 12),
    },
    'Swin-B': {
        'backbone': {'arch': {'embed_dims': 8, 'depths': [2, 2, 18, 2], 'num_heads': [1, 1, 2, 2]}},
        'channels': 64,
        'starts': (1, 15, 24),
    },
}


def network(name: str, small: bool) -> dict[str, Any]:
    """One of NETWORKS, or what stands for it in a small run."""
    found = copy.deepcopy(NETWORKS[name])
    if small:
        found['backbone'].update(SMALL[name]['backbone'])
        found.update({key: value for key, value in SMALL[name].items() if key != 'backbone'})
    return found


def build(name: str, method: Any, small: bool, device: str) -> nn.Module:
    """A classifier of 100 classes, the same for all methods but for what they add."""
    importlib.import_module('mmpretrain.models')
    setting = network(name, small)
    torch.manual_seed(0)
    backbone = {**setting['backbone'], 'type': f'mmpretrain.{setting["backbone"]["type"]}'}
    neck = {'type': 'mmpretrain.GlobalAveragePooling'} if 'Swin' in backbone['type'] else None
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 100, 'in_channels': setting['channels']}
    config = {'type': 'olor_mm.Tuned', 'of': 'mmpretrain.ImageClassifier', 'method': method}
    # The parts of a classifier that its config does not name are looked for in its own toolbox.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({**config, 'backbone': backbone, 'neck': neck, 'head': head})
    return model.to(device).train()


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """What autograd keeps of a forward pass for the backward pass, parameters, buffers and images left out."""
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), images]}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(images, mode='tensor')
    assert out.requires_grad
    return sum(size for place, size in kept.items() if place not in known)


def training(name: str, method: Any, small: bool, device: str, batch: int, steps: bool = True) -> dict[str, Any]:
    """Bytes of one method; without ``steps`` those that a forward pass saves alone."""
    model = build(name, method, small, device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params)

    def step() -> None:
        model(images, mode='tensor').square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, Any] = {'trained': sum(p.numel() for p in params), 'saved': saved_bytes(model, images)}
    if not steps:
        return {**found, 'peak': None}
    # The optimizer's state comes with its first step.
    step()
    found['peak'] = peak(step, device)
    return found


def methods(name: str, small: bool) -> dict[str, tuple[Any, int | None]]:
    """Label to method and M."""
    setting = network(name, small)
    found: dict[str, tuple[Any, int | None]] = {label: (method, None) for label, method in OTHERS.items()}
    if 'Swin' in name:
        # VPT is for plain ViTs.
        found = {label: given for label, given in found.items() if not label.startswith('VPT')}
    linear = found.pop('Linear')
    for plus in (False, True):
        for start in setting['starts'] if not plus else [setting['paper']]:
            method = {'type': 'DTL', 'rank': setting['rank'], 'start_block': start, 'plus': plus}
            found[f'DTL{"+" * plus}, M = {start}'] = method, start
    return {**found, 'Linear': linear}


def sharing(tasks: int, start: int, small: bool, device: str, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of the inference of several tasks, one model after the other and in a group."""
    method = {'type': 'DTL', 'start_block': start}
    first = build('ViT-B/16', method, small, device).eval()
    models = [first, *(copy.deepcopy(first) for _ in range(tasks - 1))]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for side in model.backbone.dtl.sides.values():
            nn.init.normal_(side.up, std=0.02)
    group = DTLGroup({f'task {i}': copy.deepcopy(model) for i, model in enumerate(models)})
    images = torch.randn(batch, 3, 224, 224, device=device)

    @torch.no_grad()
    def separate() -> list[Any]:
        return [model(images, mode='tensor') for model in models]

    together: Callable[[], Any] = lambda: [*group(images).values()]  # noqa: E731
    for one, other in zip(separate(), together(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    seconds = interleaved({'separate': separate, 'group': together}, device, rounds, warm_up=1, shuffle=True)
    ratios = [a / b for a, b in zip(seconds['separate'], seconds['group'], strict=True)]
    return {
        'tasks': tasks,
        'M': start,
        'seconds': seconds,
        'speed-up': interval(ratios),
        # Block for block, with nothing for the side networks.
        'blocks': tasks * 12 / (start + tasks * (12 - start)),
        'weights': {
            'separate': sum(p.numel() * p.element_size() for model in models for p in model.parameters()),
            'group': sum(p.numel() * p.element_size() for p in group.parameters()),
        },
    }


def page(result: Mapping[str, Any]) -> str:
    """Both tables, and the machine."""
    parts = []
    batch = result['batch']
    for name, found in result['training'].items():
        header = [name, 'trained']
        header += ['saved activations, MiB an image', 'of Full']
        if found['Full']['peak'] is not None:
            header += ['peak of a step of AdamW, MiB', 'of Full']
        rows = [[label, f'{one["trained"]:,}', *_shares(one, found['Full'], batch)] for label, one in found.items()]
        parts.append(table(rows, header))
    rows = []
    for one in result['sharing']:
        low, middle, high = one['speed-up']
        weights = one['weights']
        seconds = [sorted(values)[len(values) // 2] for values in one['seconds'].values()]
        rows.append([
            one['tasks'], one['M'], *(f'{value:.3f}' for value in seconds),
            f'{middle:.2f} ({low:.2f} to {high:.2f})', f'{one["blocks"]:.2f}',
            *(f'{weights[key] / MIB:.0f}' for key in ('separate', 'group')),
        ])  # fmt: skip
    header = ['tasks', 'M', 'one after the other, s', 'DTLGroup, s', 'speed-up', 'by blocks']
    if rows:
        parts.append(table(rows, [*header, 'weights apart, MiB', 'in the group, MiB']))
    noise = max((spread(values) for one in result['sharing'] for values in one['seconds'].values()), default=0.0)
    text = f'Training of {batch} image{"s" * (batch > 1)} of 224x224 a step in float32. '
    if rows:
        text += (
            f'Inference of {result["inference batch"]} images, ViT-B/16, medians of {result["rounds"]} rounds, whose '
        )
        text += f'quarters are up to {noise:.0%} apart. '
    return '\n\n'.join([*parts, text + described(result['machine'])]) + '\n'


def _shares(one: Mapping[str, int], full: Mapping[str, int], batch: int) -> list[str]:
    saved = [f'{one["saved"] / MIB / batch:.1f}', f'{one["saved"] / full["saved"]:.1%}']
    if one['peak'] is None:
        return saved
    return [*saved, f'{one["peak"] / MIB:.0f}', f'{one["peak"] / full["peak"]:.1%}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--batch', type=int, help='images a training step; default: 4, on a GPU 32')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=('training', 'sharing'),
        default=['training', 'sharing'],
        help='measure one part alone; the other is taken from the result that lies in --out',
    )
    parser.add_argument('--no-steps', action='store_true', help='count what forward passes save; no steps, no peaks')
    parser.add_argument('--small', action='store_true', help='tiny models: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    small, device = args.small, args.device
    batch = args.batch or (2 if small else 4 if device == 'cpu' else 32)
    seen = 2 if device == 'cpu' else 64
    result: dict[str, Any] = {'device': device, 'machine': machine(device), 'batch': batch, 'inference batch': seen}
    result.update({'rounds': args.rounds, 'training': {}, 'sharing': []})
    before = args.out / f'dtl_memory_{device}.json'
    if len(args.parts) < 2:
        kept = 'sharing' if 'training' in args.parts else 'training'
        old = json.loads(before.read_text())
        result.update({key: old[key] for key in (kept, *(('batch',) if kept == 'training' else ('rounds',)))})
    for name in NETWORKS if 'training' in args.parts else ():
        found = result['training'].setdefault(name, {})
        for label, (method, start) in methods(name, small).items():
            found[label] = {**training(name, method, small, device, batch, not args.no_steps), 'M': start}
            gc.collect()
            print(f'{name}, {label}: {found[label]["saved"] / MIB / batch:.1f} MiB', flush=True)
    write(args.out, f'dtl_memory_{device}', result, page(result))
    for start in () if 'sharing' not in args.parts else (7,) if small else (4, 7, 10):
        for tasks in (1, 3) if small else TASKS:
            result['sharing'].append(sharing(tasks, start, small, device, seen, args.rounds))
            write(args.out, f'dtl_memory_{device}', result, page(result))
            gc.collect()
            print(f'{tasks} tasks, M = {start}: {result["sharing"][-1]["speed-up"][1]:.2f}', flush=True)
    print(write(args.out, f'dtl_memory_{device}', result, page(result)))


if __name__ == '__main__':
    main()
