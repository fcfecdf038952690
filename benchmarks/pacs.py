"""Full, Linear and OLOR on PACS with small networks: python benchmarks/pacs.py --data-root DIR --weights DIR.

Every run is configs/classification's own, made small by inheriting (DeiT-tiny or MobileNetV2 at 128 px, a part of the
images, a few epochs), and goes through tools/train.py. ``mixed`` shares all domains out by the first of five stratified
folds; a domain's name leaves that domain out of training and tests on it. A run that has ended is not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from _common import machine, save

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = ('art_painting', 'cartoon', 'photo', 'sketch')
METHODS = {'Full': ('full', '8xb16'), 'Linear': ('linear', '8xb64'), 'OLOR': ('olor', '8xb16')}
NETWORKS = {
    'deit-tiny': dict(
        config='vit-base-p16',
        file='deit_tiny_in1k_mmpretrain.pth',
        model="backbone=dict(arch='deit-tiny', img_size=128), head=dict(in_channels=192), "
        'data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])',
        frozen='',
    ),
    'mobilenetv2': dict(
        config='convnext-base',
        file='mobilenetv2_in1k_backbone_mmpretrain.pth',
        model="backbone=dict(_delete_=True, type='MobileNetV2'{frozen}), neck=dict(type='GlobalAveragePooling'), "
        'head=dict(in_channels=1280)',
        frozen=', frozen_stages=7, norm_eval=True',
    ),
}
CONFIG = """
_base_ = [__import__('olor_mm').cfg('classification/{base}')]

model = dict({model})
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.5, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=128), dict(type='PackInputs')]
parts = dict(train_domains={train_domains}, test_domains={test_domains})
train_dataloader = dict(
    batch_size=32, num_workers=1, dataset=dict(**parts, indices={train_indices}, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(**parts, indices={test_indices}, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin={warmup}, end={iters}),
]
default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', interval={epochs}), logger=dict(interval=10))
randomness = dict(seed={seed})
"""


def spaced(total: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly: the images are in order of domain and class."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]


def write_config(args: argparse.Namespace, network: str, setting: str, method: str, seed: int, file: Path) -> None:
    from olor_mm.datasets.pacs import PACS

    prefix, batch = METHODS[method]
    parts = dict(train_domains=DOMAINS, test_domains=DOMAINS)
    if setting != 'mixed':
        parts = dict(train_domains=tuple(d for d in DOMAINS if d != setting), test_domains=(setting,))
    sizes = {split: len(PACS(args.data_root, split=split, **parts)) for split in ('train', 'test')}
    train = spaced(sizes['train'], args.images)
    iters = args.epochs * -(-len(train) // 32)
    about = NETWORKS[network]
    text = CONFIG.format(
        base=f'{prefix}_{about["config"]}_{batch}_pacs.py',
        model=about['model'].format(frozen=about['frozen'] if method == 'Linear' else ''),
        **parts,
        train_indices=train,
        test_indices=spaced(sizes['test'], args.test_images),
        epochs=args.epochs,
        iters=iters,
        warmup=max(1, iters // 20),
        seed=seed,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def accuracy(run: Path) -> float | None:
    """Top-1 in percent at the end of a run; None if it has not ended."""
    for file in sorted(run.glob('*/vis_data/scalars.json'), reverse=True):
        for line in file.read_text().splitlines():
            value = json.loads(line).get('accuracy/top1')
            if value is not None:
                return float(value)
    return None


def train(args: argparse.Namespace, network: str, setting: str, method: str, seed: int) -> float:
    run = args.work_dir / f'{network}_{setting}_{method.lower()}_{seed}'
    done = accuracy(run)
    if done is not None:
        return done
    config = run / 'config.py'
    write_config(args, network, setting, method, seed, config)
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(run)]
    command += ['--data-root', str(args.data_root), '--pretrained', str(args.weights / NETWORKS[network]['file'])]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    with (run / 'log.txt').open('w') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env, check=False).returncode
    found = accuracy(run)
    if code or found is None:
        raise SystemExit(f'the run ended with status {code}; its log: {run / "log.txt"}')
    for checkpoint in run.glob('*.pth'):
        checkpoint.unlink()
    return found


def study(args: argparse.Namespace, network: str, about: dict[str, str]) -> str:
    """All runs of a network; writes pacs_<network>.json and .md and returns the table."""
    found: dict[str, dict[str, list[float]]] = {}
    for setting in args.settings:
        row = found.setdefault(setting, {})
        for method in args.methods:
            row[method] = [round(train(args, network, setting, method, seed), 2) for seed in args.seeds]
            print(f'{network}, {setting}, {method}: {row[method]}', flush=True)
    cells = {
        name: [' / '.join(f'{v:.1f}' for v in row[method]) for method in args.methods] for name, row in found.items()
    }
    told = dict(epochs=args.epochs, images=args.images, test_images=args.test_images, seeds=args.seeds)
    result = {'machine': about, **told, 'top1': found}
    header = [f'{network}, top-1 in percent', *args.methods]
    return save(args.out, f'pacs_{network}', result, [[name, *row] for name, row in cells.items()], header)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', type=Path, required=True, help='the folder that holds the four domains')
    parser.add_argument('--weights', type=Path, required=True, help='the folder of the pre-trained files')
    parser.add_argument('--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument('--settings', nargs='+', default=['mixed', *DOMAINS], choices=['mixed', *DOMAINS])
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--images', type=int, default=2000, help='to train on, of those that there are')
    parser.add_argument('--test-images', type=int, default=1000)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'pacs')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results')
    args = parser.parse_args()
    about = machine('cpu')
    for network in args.networks:
        print(study(args, network, about))


if __name__ == '__main__':
    main()
