"""What a rollback adds to a step of the optimizer: python benchmarks/step.py [--device cuda] [--out DIR].

The trained parameters of three models, with the levels that the shipped configs give them; torch's Adam, AdamW and SGD
in each of their forms, alone and with our rollback, and what else keeps two copies of the weights. All variants of an
optimizer are timed in one process, in turn, beside a copy and an addition of as many numbers. Writes step_cpu.json (or
step_cuda.json), the same as Markdown, and a picture; `python benchmarks/pages.py` puts them into the pages.
"""

import argparse
import gc
import resource
import time
from pathlib import Path
from typing import Any

import torch
from _common import machine, write
from _step import measuring, sets, tables, variants


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, saved after every optimizer."""
    start = time.perf_counter()
    result: dict[str, Any] = {'machine': machine(args.device), 'device': args.device, 'rounds': args.rounds, 'sets': {}}
    # First: it takes little, and a mistake in it shows at once.
    result['launches by tensors'] = measuring.launches_by_tensors(args.device)
    for name in args.sets or sets.CONFIGS:
        data = sets.load(name, args.small, args.device)
        part: dict[str, Any] = {'about': data.about(), 'optimizers': {}}
        result['sets'][name] = part
        for kind in variants.OPTIMIZERS:
            part['optimizers'][kind] = measuring.measure(data, kind, args.device, args.rounds)
            print(f'{name}, {kind}: {time.perf_counter() - start:.0f} s', flush=True)
            save(result, args, time.perf_counter() - start)
        del data
        gc.collect()
    return result


def save(result: dict[str, Any], args: argparse.Namespace, seconds: float) -> None:
    """Write what there is by now: a run that is ended early keeps what it has measured."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result['machine']['job'] = f'{args.rounds} rounds in {seconds:.0f} s, {peak / 1e9:.1f} GB resident at most'
    result.update({'targets': measuring.targets(result, args.device), 'peak resident bytes': peak})
    write(args.out, f'step_{args.device}', result, tables.page(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--sets', nargs='+', choices=list(sets.CONFIGS), help='the models; all of them by default')
    parser.add_argument('--small', action='store_true', help='tiny models: shows that the benchmark works')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'))
    args = parser.parse_args()
    tables.draw(measure(args), args.out / f'step_{args.device}.png')
    print((args.out / f'step_{args.device}.md').read_text())
    print(f'In {args.out}: step_{args.device}.json, .md and .png')


if __name__ == '__main__':
    main()
