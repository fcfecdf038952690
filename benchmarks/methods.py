"""What methods train and keep, side by side: python benchmarks/methods.py [--out DIR].

A classifier of 100 classes is built with each method, as a config builds it. Parameters are counted; so are the bytes
that autograd keeps of the forward pass of one image for the backward pass, in float32 on the CPU: unique storages,
those of parameters and of the image left out. Nothing is timed, so any machine will do. Weights and images are random:
they do not matter here.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
from _common import described, machine, table, write
from dtl_memory import MIB, saved_bytes
from mmengine.registry import MODELS, DefaultScope
from torch import nn

SIZE = 224
MODEL: dict[str, dict[str, Any]] = {
    'ViT-B/16': {'backbone': {'type': 'VisionTransformer', 'arch': 'base'}, 'channels': 768},
    'ConvNeXt-B': {'backbone': {'type': 'ConvNeXt', 'arch': 'base'}, 'channels': 1024},
}
SMALL: dict[str, dict[str, Any]] = {
    'ViT-B/16': {
        'backbone': {'arch': {'embed_dims': 32, 'num_layers': 12, 'num_heads': 2, 'feedforward_channels': 64}},
        'channels': 32,
    },
    'ConvNeXt-B': {
        'backbone': {'arch': {'depths': [2, 2, 6, 2], 'channels': [8, 16, 32, 64]}},
        'channels': 64,
    },
}
_BOTH: dict[str, dict[str, Any]] = {
    'Full': {},
    'Linear': {},
    'TopK': {'k': 3},
    'BitFit': {},
}
METHODS: dict[str, list[dict[str, Any]]] = {
    'ViT-B/16': [
        *({'type': name, **options} for name, options in _BOTH.items()),
        {'type': 'Subset', 'train': 'attn'},
        {'type': 'VPT', 'tokens': 10, 'deep': False},
        {'type': 'VPT', 'tokens': 10, 'deep': True},
        {'type': 'LoRA', 'rank': 8},
        *({'type': 'BlockExpansion', 'blocks': blocks} for blocks in (1, 2, 3, 4)),
        {'type': 'DTL'},
        {'type': 'DTL', 'plus': True},
    ],
    'ConvNeXt-B': [
        *({'type': name, **options} for name, options in _BOTH.items()),
        {'type': 'Subset', 'train': 'depthwise_conv'},
        {'type': 'PaddingPrompt', 'size': SIZE, 'width': 10},
        {'type': 'LoRA', 'rank': 8, 'targets': r'pointwise_conv'},
        {'type': 'BlockExpansion', 'blocks': 3},
    ],
}


def build(name: str, method: dict[str, Any], small: bool) -> nn.Module:
    """The classifier, tuned."""
    importlib.import_module('mmpretrain.models')
    setting = {**MODEL[name], **(SMALL[name] if small else {})}
    backbone = {**MODEL[name]['backbone'], **setting['backbone']}
    backbone['type'] = f'mmpretrain.{backbone["type"]}'
    head = {'type': 'mmpretrain.LinearClsHead', 'num_classes': 100, 'in_channels': setting['channels']}
    torch.manual_seed(0)
    config = {'type': 'olor_mm.Tuned', 'of': 'mmpretrain.ImageClassifier', 'method': method}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model: nn.Module = MODELS.build({**config, 'backbone': backbone, 'head': head})
    return model.train()


def measure(name: str, method: dict[str, Any], small: bool) -> dict[str, Any]:
    """Counts of one method."""
    model = build(name, method, small)
    params = [*model.parameters()]
    trained = [p for p in params if p.requires_grad]
    return {
        'method': method,
        'trained': sum(p.numel() for p in trained),
        'tensors': len(trained),
        'parameters': sum(p.numel() for p in params),
        'saved': saved_bytes(model, torch.randn(1, 3, SIZE, SIZE)),
    }


def line(method: dict[str, Any]) -> str:
    """A method as a config has it."""
    options = ', '.join(f'{key}={value!r}' for key, value in method.items())
    return f'`dict({options})`'


def rows(models: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Of the table: one of each method, beside full fine-tuning of the same model."""
    found = []
    for name, measured in models.items():
        full = next(each for each in measured if each['method']['type'] == 'Full')
        for each in measured:
            share = each['trained'] / full['parameters']
            found.append(
                [
                    name,
                    line(each['method']),
                    f'{each["trained"]:,}',
                    f'{share:.2%}',
                    f'{each["parameters"]:,}',
                    f'{each["saved"] / MIB:.1f}',
                    f'{each["saved"] / full["saved"]:.0%}',
                ]
            )
    return found


HEADER = ['model', 'method', 'parameters trained', 'of those of Full', 'in all', 'activations, MiB an image', 'of Full']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='tiny models: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    models = {name: [measure(name, method, args.small) for method in given] for name, given in METHODS.items()}
    about = machine('cpu')
    text = f'{table(rows(models), HEADER)}\n\n{described(about)}\n'
    print(write(args.out, 'methods_cpu', {'machine': about, 'models': models}, text))


if __name__ == '__main__':
    main()
