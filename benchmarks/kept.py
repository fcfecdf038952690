"""What a pre-trained DeiT-tiny knows of Tiny-ImageNet: python benchmarks/kept.py --data DIR --weights FILE

The config is the one that docs/forgetting.md shows. DIR has the folders train and val, each with a folder for a class;
FILE is the ImageNet-1K DeiT-tiny in mmpretrain's names, with its head.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from _common import machine, save

from olor_mm.tooling import test

REPO = Path(__file__).resolve().parents[1]
_CONFIG = re.compile(r'<!-- file: kept\.py -->\n```python\n(.*?)```', re.DOTALL)
_TOLD = {'accuracy': 'the head', 'knn': 'kNN', 'ncm': 'nearest class mean'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='Tiny-ImageNet in folders by class')
    parser.add_argument('--weights', required=True, help='DeiT-tiny with its head')
    parser.add_argument('--out', type=Path, default=REPO / 'benchmarks' / 'results', help='folder of the results')
    args = parser.parse_args()
    config = _CONFIG.search((REPO / 'docs' / 'forgetting.md').read_text())
    if config is None:
        raise ValueError('docs/forgetting.md has no block "file: kept.py"')
    where, start = machine('cpu'), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        file, found = Path(folder, 'kept.py'), Path(folder, 'kept.json')
        file.write_text(config[1])
        options = ['--data-root', args.data, '--work-dir', folder, '--out', str(found), '--out-item', 'metrics']
        test([str(file), args.weights, *options, '--cfg-options', 'test_dataloader.num_workers=0'])
        metrics = json.loads(found.read_text())
    seconds = time.process_time() - start
    rows = []
    for name, value in metrics.items():
        kind, top, *rest = name.split('/')
        if top == 'top1':
            top5 = metrics.get('/'.join([kind, 'top5', *rest]))
            told = ', '.join([_TOLD[kind], *(each.replace('=', ' = ') for each in rest)])
            rows.append([told, f'{value:.2f}', '' if top5 is None else f'{top5:.2f}'])
    result = dict(machine=where, processor_seconds=round(seconds), metrics=metrics)
    print(save(args.out, 'kept_deit-tiny', result, rows, ['', 'top-1, %', 'top-5, %']))


if __name__ == '__main__':
    main()
