"""What a rollback adds to a training iteration of Mask R-CNN: python benchmarks/train.py [--device cuda] [--out DIR].

The model of configs/olor_maskrcnn_convnext.py and that of its baseline, each with its own optimizer wrapper, train on
the same random images in turn, in one process. Beside the ratio of whole iterations, which is as noisy as the machine,
stands the time spent in the rollback itself.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import interleaved, machine, ratio, save, spread, timed
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import olor_mm


def config_of(name: str, small: bool) -> Config:
    cfg = Config.fromfile(olor_mm.cfg(name))
    cfg.model.backbone.init_cfg = None
    if small:
        cfg.model.backbone.arch = 'atto'
        cfg.model.neck.in_channels = [40, 80, 160, 320]
    return cfg


def images(size: tuple[int, int], batch: int, device: str) -> dict[str, Any]:
    """Random images with ten random boxes and masks each."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        corner = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.6, size[0] * 0.6])
        extent = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.3, size[0] * 0.3]) + 16
        boxes = torch.cat([corner, corner + extent], 1)
        masks = torch.zeros(10, *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo={'img_shape': size, 'ori_shape': size, 'batch_input_shape': size})
        instances = InstanceData(
            bboxes=boxes.to(device), labels=torch.randint(80, (10,), generator=generator).to(device)
        )
        instances.masks = BitmapMasks(masks.numpy(), *size)
        sample.gt_instances = instances
        samples.append(sample)
    pictures = [torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(batch)]
    return {'inputs': pictures, 'data_samples': samples}


def build(cfg: Config, device: str) -> tuple[Callable[[dict[str, Any]], Any], Any]:
    from mmengine.optim import build_optim_wrapper

    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrapper.initialize_count_status(model, 0, 10**6)
    return lambda data: model.train_step(data, wrapper), wrapper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1216), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--small', action='store_true', help='ConvNeXt atto: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    init_default_scope('mmdet')
    __import__('mmdet.utils', fromlist=['x']).register_all_modules(init_default_scope=False)
    data = images(tuple(args.size), args.batch, args.device)
    about = machine(args.device)
    plain, _ = build(config_of('baseline_maskrcnn_convnext.py', args.small), args.device)
    olor, wrapper = build(config_of('olor_maskrcnn_convnext.py', args.small), args.device)
    times = interleaved({'plain': lambda: plain(data), 'OLOR': lambda: olor(data)}, args.device, args.rounds, 1)
    rollback = wrapper.rollback_session.rollback
    for p in rollback.levels:
        # zero_grad() took the gradients away; without one a parameter is left alone. Their values do not matter.
        p.grad = rollback.anchor(p)
    alone = [timed(rollback._after_step, args.device) for _ in range(args.rounds)]
    base = statistics.median(times['plain'])
    rows = [
        ['plain', f'{base:.3f}', f'{spread(times["plain"]):.0%}', '1'],
        [
            'OLOR',
            f'{statistics.median(times["OLOR"]):.3f}',
            f'{spread(times["OLOR"]):.0%}',
            f'{ratio(times["OLOR"], times["plain"]):.3f}',
        ],
        [
            'the rollback alone',
            f'{statistics.median(alone):.4f}',
            f'{spread(alone):.0%}',
            f'{statistics.median(alone) / base:.4f}',
        ],
    ]
    count = sum(p.numel() for p in rollback.levels)
    about['job'] = f'{args.batch} image(s) of {args.size[0]}x{args.size[1]}, {count:,} parameters pulled back'
    result = {'machine': about, 'seconds': {**times, 'rollback': alone}}
    header = ['iteration', 's, median', 'spread', 'ratio to plain']
    print(save(args.out, f'train_{args.device}', result, rows, header))


if __name__ == '__main__':
    main()
