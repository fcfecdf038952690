"""The command line of tools/compare.py."""

from __future__ import annotations

import argparse

from ..options import _Parser

__all__ = ['parser']

_EPILOG = """methods:
  NAME, NAME=VALUE or NAME=VALUE,OPTION=VALUE,...: full, linear, topk=3, bitfit, vpt=10,deep=False, lora=8,alpha=16,
  block-expansion=3, dtl, l2-sp=0.01, olor=0.01,power=2, spd=1, projection=1.0, and all that docs/methods.md has.
  VALUE is the first option of the method, of rules of the rollback the level.
  An OPTION with a dot is a setting of the config: lora=8,optim_wrapper.optimizer.lr=1e-3.
  One method of the model and one rule go together: lora=8,rollback=True+olor=0.01.
  One's own: NAME=FILE.py, another config; NAME='key=value key=value', settings of this one.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of tools/compare.py."""
    made = _Parser(
        prog='compare.py',
        description='Train one config under several methods and seeds, and compare what they learn, keep and cost.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument('config', help='config file of full fine-tuning')
    made.add_argument('--methods', nargs='+', required=True, metavar='METHOD', help='what to compare; see below')
    made.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N', help='of the runs; default: 0')
    made.add_argument('--work-dir', metavar='DIR', help='folder for all; default: work_dirs/<config>_compare')
    made.add_argument('--workers', type=int, metavar='N', help='runs side by side; default: one for each GPU, or 1')
    made.add_argument('--devices', nargs='+', metavar='GPU', help='GPUs to use, as 0 1; default: all that are visible')
    made.add_argument('--gpus-per-run', type=int, default=1, metavar='N', help='processes of a run; default: 1')
    made.add_argument('--metric', metavar='NAME', help='of the validation; default: its first one')
    made.add_argument(
        '--which',
        choices=['last', 'best'],
        default='last',
        help='which validation counts; the best one is chosen on the data that it is measured on. Default: last',
    )
    made.add_argument('--rule', choices=['greater', 'less'], help='which is better; default: by the name of the metric')
    made.add_argument('--against', metavar='METHOD', help='what others are tested against; default: full, or the first')
    made.add_argument(
        '--test',
        choices=['paired', 'welch', 'none'],
        default='paired',
        help='of significance: over seeds that both methods have (default), or over two samples',
    )
    _add_kept(made)
    made.add_argument('--report-only', action='store_true', help='run nothing, report on what there is')
    _add_runs(made)
    return made


def _add_kept(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group('what was kept of the pre-training, as of forgetting.py')
    group.add_argument(
        '--upstream',
        metavar='CONFIG_OR_FOLDER',
        help='images of the pre-training, for kNN and the original head; without it the distance from theta_0 alone',
    )
    group.add_argument('--upstream-data-root', metavar='DIR', help="takes the place of the upstream config's data root")
    group.add_argument('--upstream-images', type=int, metavar='N', help='at most so many for bank and queries each')
    group.add_argument('--knn-k', type=int, metavar='K', help='neighbours; default: 20')
    group.add_argument('--skip-kept', action='store_true', help='do not measure it')


def _add_runs(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group('options of all runs, as of train.py')
    for name in ('--data-root', '--pretrained'):
        group.add_argument(name, metavar='DIR' if name == '--data-root' else 'FILE')
    for name in ('--amp', '--auto-scale-lr', '--no-pin-memory', '--no-persistent-workers'):
        group.add_argument(name, action='store_true')
    group.add_argument('--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE')
