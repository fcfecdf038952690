"""The comparison of docs/compare.md: python benchmarks/compare.py --data-root DIR --pretrained FILE [--upstream DIR].

Config and command are those of the page; what they name is replaced by what is given. Runs that are finished in the
work dir are not repeated.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import described, machine, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'compare.md'
NAME = 'compare_deit-tiny'


def of_page(page: str) -> tuple[str, list[str]]:
    """The config of the page, and the arguments of the command below it."""
    small = page[page.index('`small.py`') :]
    config = re.search(r'```python\n(.*?)```', small, re.DOTALL)
    command = re.search(r'```bash\n(.*?)```', small, re.DOTALL)
    if config is None or command is None:
        raise SystemExit(f'{PAGE} has no small.py, or no command for it')
    return config[1], shlex.split(command[1].replace('\\\n', ' '))[2:]


def given(arguments: list[str], args: argparse.Namespace, config: Path) -> list[str]:
    """The arguments with the files of this machine."""
    files = {'small.py': config, 'data/pacs': args.data_root, 'deit_tiny.pth': args.pretrained}
    files['data/tiny_imagenet'] = args.upstream
    return [str(files.get(each, each)) for each in arguments]


def without_paths(node: Any) -> Any:
    """A record without the folders of this machine."""
    if isinstance(node, dict):
        return {key: without_paths(value) for key, value in node.items() if key not in ('work_dir', 'config')}
    return [without_paths(each) for each in node] if isinstance(node, list) else node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-root', type=Path, required=True, help='the folder that holds the four domains')
    parser.add_argument('--pretrained', type=Path, required=True, help="DeiT-tiny's weights")
    parser.add_argument('--upstream', type=Path, help='the folder of Tiny-ImageNet, with train and val')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'benchmarks' / 'compare')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results')
    parser.add_argument('--images', type=Path, default=ROOT / 'docs' / 'images')
    args = parser.parse_args()
    about = machine('cpu')
    text, arguments = of_page(PAGE.read_text())
    args.work_dir.mkdir(parents=True, exist_ok=True)
    config = args.work_dir / 'small.py'
    config.write_text(text)
    command = [sys.executable, str(ROOT / 'tools' / 'compare.py'), *given(arguments, args, config)]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    done = subprocess.run(
        [*command, '--work-dir', str(args.work_dir / 'runs')], env=env, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f'the comparison ended with status {done.returncode}')
    found = json.loads((args.work_dir / 'runs' / 'report.json').read_text())
    said = done.stdout.rstrip().rpartition('\n\n')[0]
    print(write(args.out, NAME, {'machine': about, **without_paths(found)}, f'{said}\n\n{described(about)}\n'))
    args.images.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.work_dir / 'runs' / 'report.png', args.images / f'{NAME}.png')


if __name__ == '__main__':
    main()
