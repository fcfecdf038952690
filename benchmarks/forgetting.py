"""What is kept of ImageNet when DeiT-tiny learns PACS: python benchmarks/forgetting.py --data-root DIR --weights DIR.

Full, OLOR and LoRA are trained by tools/train.py on configs/classification's own, made small by inheriting (DeiT-tiny
at 128 px, a part of the images, a few epochs). Then tools/forgetting.py measures: the table, the review of Full, its
mixtures, upstream being the Tiny-ImageNet sample; and the paper's test on PACS. What is there is not repeated.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from _common import machine, write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
METHODS = {
    'full': 'full_vit-base-p16_8xb16_pacs.py',
    'olor': 'olor_vit-base-p16_8xb16_pacs.py',
    'lora': 'lora-r8_vit-base-p16_8xb32_pacs.py',
}
CONFIG = """_base_ = [__import__('olor_mm').cfg('classification/{base}')]

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(arch='deit-tiny', img_size=128),
    head=dict(in_channels=192),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=128, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.5, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32, num_workers=1, dataset=dict(indices=list(range(0, {train}, {train_every})), pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=1, dataset=dict(indices=list(range(0, {test}, {test_every})), pipeline=test_pipeline)
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, T_max={epochs}, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', interval={epochs}), logger=dict(interval=10))
"""

PACS = """_base_ = [__import__('olor_mm').cfg('classification/full_vit-base-p16_8xb16_pacs.py')]

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(arch='deit-tiny', img_size=96),
    head=dict(in_channels=192),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.5, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=96, backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=32, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
"""


def run(command: list[str], log: Path) -> None:
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    with log.open('w') as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=env, check=False).returncode
    if code:
        raise SystemExit(f'{" ".join(command)} ended with status {code}; its log: {log}')


def tool(args: argparse.Namespace, name: str, *options: object) -> list[str]:
    told = [str(option) for option in options]
    return [sys.executable, str(ROOT / 'tools' / name), *told, '--data-root', str(args.data_root / 'pacs')]


def train(args: argparse.Namespace, method: str) -> Path:
    """The checkpoint of a method."""
    folder = args.work_dir / method
    checkpoint = folder / f'epoch_{args.epochs}.pth'
    if not checkpoint.is_file():
        from olor_mm.datasets.pacs import PACS

        sizes = {split: len(PACS(str(args.data_root / 'pacs'), split=split)) for split in ('train', 'test')}
        every = {f'{split}_every': max(1, sizes[split] // wanted) for split, wanted in
                 (('train', args.images), ('test', args.test_images))}  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / f'{method}.py'
        config.write_text(CONFIG.format(base=METHODS[method], epochs=args.epochs, **sizes, **every))
        weights = args.weights / 'deit_tiny_in1k_mmpretrain.pth'
        run(tool(args, 'train.py', config, '--work-dir', folder, '--pretrained', weights), folder / 'log.txt')
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', type=Path, required=True, help='the folder that holds pacs and tiny_imagenet')
    parser.add_argument('--weights', type=Path, required=True, help='the folder of the pre-trained file')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--images', type=int, default=1000, help='of PACS to train on')
    parser.add_argument('--test-images', type=int, default=400)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'forgetting')
    parser.add_argument('--out', type=Path, default=RESULTS)
    args = parser.parse_args()
    about = machine('cpu')
    checkpoints = {method: train(args, method) for method in METHODS}
    configs = {method: args.work_dir / method / f'{method}.py' for method in METHODS}
    weights = args.weights / 'deit_tiny_in1k_mmpretrain.pth'
    upstream = ['--upstream', args.data_root / 'tiny_imagenet', '--pretrained', weights]
    few = ['--upstream-images', 500, '--measures', 'head']
    table = [configs['full'], f'Full={checkpoints["full"]}', f'OLOR={checkpoints["olor"]}']
    table += ['--upstream-images', 2000, '--row', 'LoRA', configs['lora'], checkpoints['lora']]
    commands = {
        'table': [*table, *upstream],
        'review': ['review', configs['full'], checkpoints['full'], '--path', 'straight', '--every', 5, *upstream, *few],
        'interpolation': ['interpolate', configs['full'], checkpoints['full'], '--val-share', 0.5, *upstream, *few],
    }
    small = args.work_dir / 'deit_tiny_pacs.py'
    small.write_text(PACS)
    commands['pacs'] = ['pacs', small, '--pretrained', weights, '--images', 400, '--pretrain-epochs', 3, '--epochs', 3]
    commands['pacs'] += ['--every', 5]
    for name, options in commands.items():
        out = args.work_dir / name
        out.mkdir(parents=True, exist_ok=True)
        run(tool(args, 'forgetting.py', *options, '--out', out), out / 'log.txt')
        told, text = (told_here(args, (out / f'{name}.{kind}').read_text()) for kind in ('json', 'md'))
        if args.out == RESULTS:
            shutil.copy(out / f'{name}.png', ROOT / 'docs' / 'images' / f'forgetting_{name}.png')
        print(write(args.out, f'forgetting_{name}', {'machine': about, 'device': 'cpu', **json.loads(told)}, text))


def told_here(args: argparse.Namespace, text: str) -> str:
    """A result without the folders of this machine."""
    for folder, name in ((args.work_dir, 'work_dirs/forgetting'), (args.weights, 'weights'), (args.data_root, 'data')):
        text = text.replace(str(folder), name)
    return text


if __name__ == '__main__':
    main()
