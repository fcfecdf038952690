"""What a GPU holds besides activations: python benchmarks/memory.py [--out DIR].

Weights, gradients, optimizer state and theta_0 of the two main configs, as counted in the tensors that exist after one
step on the CPU, beside what the sizes of the dtypes say. The copies for several processes follow from them: with
DistributedDataParallel every GPU holds all of it, and its buckets, which are the gradients once more unless
``gradient_as_bucket_view=True``; with full sharding over N GPUs each holds 1/N.
"""

import argparse
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import machine, save
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from olor_mm.rollback import ANCHOR_KEY

REPO = Path(__file__).resolve().parents[1]
CONFIGS = {'Mask R-CNN, ConvNeXt-B': 'olor_maskrcnn_convnext.py', 'UperNet, ViT-B/16': 'olor_upernet_vit.py'}
#: Copies of the weights that an optimizer keeps.
STATES = {'SGD': 1, 'Adam': 2, 'AdamW': 2}
GIB = 2**30


@dataclass
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: The parameters.
        gradients: Theirs.
        state: What the base optimizer keeps.
        theta_0: What the rollback keeps.
        buckets: What DistributedDataParallel reduces the gradients in.
    """

    weights: int
    gradients: int
    state: int
    theta_0: int
    buckets: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state + self.theta_0 + self.buckets

    def replicated(self) -> 'Memory':
        """With DistributedDataParallel, on however many GPUs."""
        return Memory(self.weights, self.gradients, self.state, self.theta_0, buckets=self.gradients)

    def sharded(self, ranks: int) -> 'Memory':
        """With full sharding, without what is gathered for the layer at work."""
        parts = (self.weights, self.gradients, self.state, self.theta_0)
        return Memory(*(-(-part // ranks) for part in parts))


def computed(trained: int, frozen: int, rolled: int, optimizer: str, dtype: torch.dtype) -> Memory:
    """What it has to be.

    Args:
        trained: Number of parameters with a gradient.
        frozen: Number of those without.
        rolled: Number of those with a level above 0.
        optimizer: 'SGD' (with momentum), 'Adam' or 'AdamW'.
        dtype: That of the weights: float32 with AMP too, which casts copies and drops them.
    """
    size = dtype.itemsize
    return Memory((trained + frozen) * size, trained * size, STATES[optimizer] * trained * size, rolled * size)


def measured(model: nn.Module, wrapper: OptimWrapper) -> Memory:
    """What the tensors take after a step of the wrapper, counts of steps left out."""
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 1e-3)
    wrapper.step()
    state = wrapper.optimizer.state.values()
    return Memory(
        weights=_bytes(model.parameters()),
        gradients=_bytes(p.grad for p in model.parameters() if p.grad is not None),
        state=_bytes(v for s in state for k, v in s.items() if torch.is_tensor(v) and v.dim() and k != ANCHOR_KEY),
        theta_0=_bytes(s[ANCHOR_KEY] for s in state if ANCHOR_KEY in s),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def build(name: str, small: bool, dtype: torch.dtype) -> tuple[nn.Module, OptimWrapper, str]:
    """A config's model and its wrapper, and the name of the optimizer."""
    if small:
        model: nn.Module = nn.Module()
        model.backbone = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)])
        model.head = nn.Linear(32, 8)
        kind = 'SGD' if name.startswith('Mask') else 'Adam'
        optimizer = {'type': kind, 'lr': 0.1, **({'momentum': 0.9} if kind == 'SGD' else {})}
        settings = {'max_level': 0.1, 'power': 2}
        wrapper = {'constructor': 'olor_mm.OLOROptimWrapperConstructor', 'optimizer': optimizer, 'rollback': settings}
    else:
        config = Config.fromfile(REPO / 'configs' / CONFIGS[name])
        scope = config.default_scope
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(config.model)
        wrapper = config.optim_wrapper
    return (model.to(dtype), *_wrap(model.to(dtype), wrapper))


def _wrap(model: nn.Module, config: dict) -> tuple[OptimWrapper, str]:
    return build_optim_wrapper(model, config), config['optimizer']['type']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--ranks', type=int, default=8, help='GPUs to shard over')
    parser.add_argument('--small', action='store_true', help='tiny models: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    result: dict = {'machine': machine('cpu'), 'ranks': args.ranks, 'runs': []}
    rows = []
    for name in CONFIGS:
        for dtype in (torch.float32, torch.bfloat16):
            model, wrapper, optimizer = build(name, args.small, dtype)
            found = measured(model, wrapper)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            frozen = sum(p.numel() for p in model.parameters()) - trained
            rolled = sum(p.numel() for p in wrapper.rollback_session.rollback.levels)
            expected = computed(trained, frozen, rolled, optimizer, dtype)
            kind = str(dtype).removeprefix('torch.')
            run = {'model': name, 'optimizer': optimizer, 'dtype': kind, 'trained': trained, 'rolled back': rolled}
            result['runs'].append({**run, 'measured': vars(found), 'computed': vars(expected)})
            ddp, sharded = found.replicated(), found.sharded(args.ranks)
            parts = (ddp.weights, ddp.gradients, ddp.buckets, ddp.state, ddp.theta_0, ddp.total, sharded.total)
            rows.append([name, optimizer, kind, *(f'{part / GIB:.2f}' for part in parts)])
            del model, wrapper
    header = ['model', 'optimizer', 'weights in', 'weights', 'gradients', 'DDP buckets', 'optimizer state', 'theta_0']
    header += ['sum, DDP', f'sum, sharded over {args.ranks}']
    print(save(args.out, 'memory_cpu', result, rows, header))


if __name__ == '__main__':
    main()
