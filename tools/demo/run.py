"""The demo: what fine-tuning forgets, and what OLOR does about it, on two CPU cores in about ten minutes.

``python tools/demo/run.py`` draws a small two-domain data set, trains a small Mask R-CNN on domain A, fine-tunes it on
domain B without and with OLOR, tests all three models on both domains, and prints and draws what came out, whatever it
is. Stages that are done are reused; after Ctrl-C the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec('olor_mm') is None:
    # A checkout that was not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if _missing := [name for name in ('cv2', 'matplotlib', 'mmcv', 'mmdet', 'mmpretrain') if not find_spec(name)]:
    sys.exit(f'error: the demo needs {", ".join(_missing)}, not found by {sys.executable}; `make demo` sets them up')

import report
import results
import shapes
from process import ToolError, run_tool
from stages import Stage, digest

import olor_mm

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parent
TITLES = {'pretrain': 'pre-training on A', 'plain': 'plain fine-tuning on B', 'olor': 'fine-tuning on B with OLOR'}
BASE_CONFIGS = (
    HERE / 'config.py',
    *sorted((TOOLS.parent / 'configs').glob('_base_/**/*.py')),
    TOOLS.parent / 'configs' / 'baseline_maskrcnn_convnext.py',
)


@dataclass
class Plan:
    """How much is done.

    Args:
        sizes: Number of images by domain and split.
        pretrain: Config options of the pre-training.
        finetune: Config options of both fine-tunings.
    """

    sizes: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            'A': {'train': 600, 'val': 50, 'test': 100},
            'B': {'train': 150, 'val': 50, 'test': 100},
        }
    )
    pretrain: list[str] = field(default_factory=list)
    finetune: list[str] = field(default_factory=list)


def quick_plan() -> Plan:
    """Everything once, too short to learn anything: for the tests."""

    def schedule(iterations: int, interval: int) -> list[str]:
        return [
            f'train_cfg.max_iters={iterations}',
            f'train_cfg.val_interval={interval}',
            'param_scheduler.0.end=4',
            'param_scheduler.1.begin=4',
            f'param_scheduler.1.end={iterations}',
            f'default_hooks.checkpoint.interval={interval}',
            'default_hooks.logger.interval=2',
        ]

    sizes = {domain: {'train': 16, 'val': 8, 'test': 8} for domain in shapes.DOMAINS}
    return Plan(sizes, [*schedule(12, 12), 'train_dataloader.batch_size=4'], schedule(8, 4))


class Demo:
    """The stages in their order.

    Args:
        args: The command line's options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out = Path(args.out)
        self.plan = quick_plan() if args.quick else Plan()
        self.data = self.out / 'data'

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet and returns the results."""
        pretrained = self._train('pretrain', 'config.py', self.plan.pretrain, self._draw_data())
        olor = [
            'optim_wrapper.constructor=olor_mm.OLOROptimWrapperConstructor',
            f'optim_wrapper.rollback.max_level={self.args.max_level}',
            f'optim_wrapper.rollback.power={self.args.power}',
            # All of the detector comes from domain A, so all of it has a theta_0.
            'optim_wrapper.rollback.roots=backbone,neck,rpn_head,roi_head',
        ]
        stages = {'pretrained': pretrained}
        stages['plain'] = self._train('plain', 'finetune.py', self.plan.finetune, pretrained)
        stages['olor'] = self._train('olor', 'finetune.py', [*self.plan.finetune, *olor], pretrained)
        rows = {name: self._test(stage) for name, stage in stages.items()}
        return self._collect(stages, rows)

    def _draw_data(self) -> Stage:
        stage = Stage(self.data, code=digest(HERE / 'shapes.py'), sizes=self.plan.sizes, seed=self.args.seed)
        if not self._reused(stage, 'data'):
            stage.begin()
            shapes.write_dataset(self.data, self.plan.sizes, seed=self.args.seed)
            stage.finish()
        return stage

    def _train(self, name: str, config: str, options: list[str], after: Stage) -> Stage:
        options = [f'randomness.seed={self.args.seed}', *options]
        made_by = dict(configs=digest(HERE / config, *BASE_CONFIGS), version=olor_mm.__version__, options=options)
        stage = Stage(self.out / name, after=after.fingerprint, **made_by)
        if self._reused(stage, TITLES[name]):
            return stage
        stage.begin()
        if name != 'pretrain':
            options.append(f'load_from={self._checkpoint("pretrain")}')
        arguments = [str(TOOLS / 'train.py'), str(HERE / config), '--data-root', str(self.data)]
        arguments += ['--work-dir', str(stage.folder), '--resume', '--cfg-options', *options]
        run_tool(arguments, stage.folder / 'output.txt')
        stage.finish()
        return stage

    def _test(self, trained: Stage) -> dict[str, float]:
        name = trained.folder.name
        stage = Stage(trained.folder / 'test', after=trained.fingerprint)
        if not self._reused(stage, f'test of {name}'):
            stage.begin()
            file = stage.folder / 'metrics.json'
            arguments = [str(TOOLS / 'test.py'), str(HERE / 'config.py'), str(self._checkpoint(name))]
            arguments += ['--data-root', str(self.data), '--work-dir', str(stage.folder)]
            arguments += ['--out', str(file), '--out-item', 'metrics']
            run_tool(arguments, stage.folder / 'output.txt')
            stage.finish(results.table_of(results.read_json(file)))
        return stage.result

    def _collect(self, stages: dict[str, Stage], rows: dict[str, dict[str, float]]) -> dict[str, Any]:
        reference = self._checkpoint('pretrain')
        curves = {}
        before = {**results.curve(stages['pretrained'].folder)[-1], 'iteration': 0}
        for name, stage in stages.items():
            rows[name]['seconds'] = results.seconds_per_iteration(stage.folder)
            if name == 'pretrained':
                continue
            distances = results.discrepancy(self._checkpoint(name), reference)
            rows[name].update(distance=distances['detector'], distance_backbone=distances['backbone'])
            curves[name] = [before, *results.curve(stage.folder)]
        settings = {
            'OLOR': f'max_level={self.args.max_level:g} per step at the peak learning rate, min_level=0, '
            f'power={self.args.power:g}, roots=(backbone, neck, rpn_head, roi_head)',
            'images': ', '.join(f'{d}/{s} {n}' for d, splits in self.plan.sizes.items() for s, n in splits.items()),
            'seed': self.args.seed,
            **results.machine(),
        }
        return dict(settings=settings, rows=rows, curves=curves)

    def _checkpoint(self, name: str) -> Path:
        folder = self.out / name
        return folder / Path((folder / 'last_checkpoint').read_text().strip()).name

    @staticmethod
    def _reused(stage: Stage, title: str) -> bool:
        print(f'== {title}{": done before, reused" if stage.done else ""}', flush=True)
        return stage.done


def main() -> int:
    """Command line; returns the exit status: 0, 1 if a tool failed, 130 after Ctrl-C."""
    args = _parse()
    # As an exception, a termination ends the training below, too, instead of leaving it behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out, start = Path(args.out), time.monotonic()
    if args.fresh:
        for name in ('data', 'pretrain', 'plain', 'olor'):
            shutil.rmtree(out / name, ignore_errors=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = Demo(args).run()
    except KeyboardInterrupt:
        print('\ninterrupted: the same command goes on from the last checkpoint', file=sys.stderr)
        return 130
    except (ToolError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    examples = {domain: sorted((out / 'data' / domain / 'val').glob('*.png'))[:5] for domain in shapes.DOMAINS}
    files = report.write(out, found, examples)
    print(f'\n{report.markdown_table(found["rows"])}\n\n{report.verdict(found["rows"])}')
    print('\nOne seed of one small task: what it shows is how to use OLOR, not how good it is.' + _too_short(args))
    print(f'{time.monotonic() - start:.0f} s. Written: {", ".join(map(str, files))}')
    return 0


def _too_short(args: argparse.Namespace) -> str:
    return ' --quick trains too little to learn anything.' if args.quick else ''


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n\n')[0])
    parser.add_argument('--out', default='work_dirs/demo', help='folder for everything; default: %(default)s')
    parser.add_argument('--quick', action='store_true', help='all stages in about a minute, learning nothing')
    parser.add_argument('--seed', type=int, default=0, help='of the data and of the training; default: %(default)s')
    parser.add_argument('--fresh', action='store_true', help='forget what earlier runs did')
    parser.add_argument('--max-level', type=float, default=0.01, help="OLOR's iota_1, per step; default: %(default)s")
    parser.add_argument('--power', type=float, default=1.0, help="OLOR's gamma; default: %(default)s")
    return parser.parse_args()


if __name__ == '__main__':
    sys.exit(main())
