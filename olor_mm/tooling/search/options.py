"""The command line of tools/search.py."""

from __future__ import annotations

import argparse
from typing import Any

from ..options import _CfgOptions, _Parser
from .space import GRIDS

__all__ = ['passed_on', 'search_parser']


class _Kept(_CfgOptions):
    """Keeps the pairs as they were written too: that is how a run gets them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option_string)
        namespace.cfg_pairs = [*getattr(namespace, 'cfg_pairs', []), *values]


def search_parser() -> argparse.ArgumentParser:
    """The parser of tools/search.py."""
    parser = _Parser(
        prog='search.py',
        description='Choose max_level and power of OLOR for a task: each pair that is tried is an ordinary run of '
        'tools/train.py. Plain fine-tuning (level 0) is always among them.',
    )
    parser.add_argument('config', help='config file, with OLOR or without')
    parser.add_argument('--work-dir', metavar='DIR', help='folder of the search; default: work_dirs/<config>_search')
    where = parser.add_argument_group('where to look')
    where.add_argument(
        '--grid',
        choices=sorted(GRIDS),
        default='paper',
        help="the paper's grid of 9 levels and 3 powers, or a short one of 3 and 3; default: paper",
    )
    where.add_argument('--levels', nargs='+', type=float, metavar='L', help='other levels (max_level, iota_1)')
    where.add_argument('--powers', nargs='+', type=float, metavar='P', help='other powers (gamma)')
    where.add_argument('--min-level', type=float, default=0.0, metavar='L', help='iota_2; default: 0, as in the paper')
    how = parser.add_argument_group('how to look')
    how.add_argument(
        '--sampler',
        default='grid',
        metavar='NAME',
        help='grid: all points (default); or a sampler of Optuna, as tpe, random, gp or cmaes, which chooses levels '
        'between the smallest and the largest',
    )
    how.add_argument('--trials', type=int, default=20, metavar='N', help='with a sampler, how many points; default: 20')
    how.add_argument(
        '--on-grid', action='store_true', help='with a sampler, choose among the levels listed and no others'
    )
    how.add_argument(
        '--pruner',
        default='none',
        metavar='NAME',
        help='a pruner of Optuna, which stops poor trials after a validation, as median, hyperband or '
        'successivehalving; default: none',
    )
    for part in ('sampler', 'pruner'):
        how.add_argument(
            f'--{part}-options',
            nargs='+',
            action='extend',
            default=[],
            metavar='KEY=VALUE',
            help=f"arguments of Optuna's {part}",
        )
    how.add_argument('--sampler-seed', type=int, default=0, metavar='N', help='seed of the sampler; default: 0')
    how.add_argument('--storage', help="Optuna's storage: an address or a file; default: optuna.db in the work dir")
    how.add_argument('--study', metavar='NAME', help='name of the study in the storage; default: that of the work dir')
    judged = parser.add_argument_group('what to compare')
    judged.add_argument(
        '--metric', metavar='NAME', help="metric of the validation; default: the config's save_best, else the first one"
    )
    judged.add_argument('--mode', choices=['max', 'min'], help='whether more or less of it is better')
    judged.add_argument(
        '--which',
        choices=['last', 'best'],
        default='last',
        help='of each run the last validation, or the best; default: last',
    )
    judged.add_argument(
        '--seeds', nargs='+', type=int, metavar='N', help='seeds of each point; default: one, that of the config or 0'
    )
    machine = parser.add_argument_group('the machine')
    machine.add_argument(
        '--keep',
        choices=['best', 'all'],
        default='best',
        help='whose checkpoints are kept once a run has ended: those of the best point and of level 0, or all; '
        'default: best',
    )
    machine.add_argument('--workers', type=int, metavar='N', help='runs side by side; default: one for each GPU, or 1')
    machine.add_argument(
        '--devices',
        nargs='*',
        metavar='GPU',
        help='GPUs to share out, as in CUDA_VISIBLE_DEVICES; default: all',
    )
    machine.add_argument('--gpus-per-run', type=int, default=1, metavar='N', help='GPUs of each run; default: 1')
    runs = parser.add_argument_group('passed on to tools/train.py')
    runs.add_argument('--amp', action='store_true', help='train in mixed precision (needs an accelerator)')
    runs.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size')
    runs.add_argument('--pretrained', metavar='FILE', help="checkpoint that replaces the backbone's pre-trained one")
    runs.add_argument('--data-root', metavar='DIR', help="folder that takes the place of the config's data root")
    runs.add_argument('--no-pin-memory', action='store_true', help='do not pin the memory of batches')
    runs.add_argument('--no-persistent-workers', action='store_true', help='start new data workers every epoch')
    runs.add_argument(
        '--cfg-options', nargs='+', action=_Kept, metavar='KEY=VALUE', help='settings that override the config'
    )
    return parser


def passed_on(args: argparse.Namespace) -> list[str]:
    """The options that every run gets, but ``--cfg-options``."""
    said: list[str] = []
    for option in ('data_root', 'pretrained'):
        if getattr(args, option):
            said += [f'--{option.replace("_", "-")}', getattr(args, option)]
    for option in ('amp', 'auto_scale_lr', 'no_pin_memory', 'no_persistent_workers'):
        if getattr(args, option):
            said.append(f'--{option.replace("_", "-")}')
    return said
