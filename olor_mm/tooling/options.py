"""The command lines of tools/train.py and tools/test.py: what each option is called and how it is read."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any, NoReturn

from mmengine.config import DictAction

from .errors import EXIT_INPUT_ERROR, TURN, speaks

__all__ = ['calibrate_parser', 'incremental_parser', 'merge_parser', 'test_parser', 'train_parser']


class _Parser(argparse.ArgumentParser):
    """A usage error of all ranks of a machine is said by the first; the others leave it the time to do so."""

    def error(self, message: str) -> NoReturn:
        if not speaks():
            time.sleep(TURN)
            self.exit(EXIT_INPUT_ERROR)
        super().error(message)


class _CfgOptions(DictAction):
    """``key=value`` pairs, where a pair without ``=`` is a usage error and a path keeps its spaces.

    MMEngine's action raises at the one and drops the other.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for pair in values:
            if not pair.partition('=')[0] or '=' not in pair:
                parser.error(f'--cfg-options takes key=value pairs, but got {pair!r}')
        for pair in values:
            try:
                super().__call__(parser, namespace, [pair], option_string)
            except (AssertionError, RecursionError):
                # Brackets that do not match, or a comma between the brackets of a call.
                parser.error(
                    f'--cfg-options cannot read {pair!r}: lists are key="[a,b]" or key=a,b, of numbers and words; what '
                    'stands in a dict is set by itself, as optim_wrapper.clip_grad.max_norm=1'
                )
        options = getattr(namespace, self.dest)
        for key, _, value in (pair.partition('=') for pair in values):
            if ' ' in value.strip() and not set(value) & set(',()[]'):
                options[key] = value.strip().strip('\'"')


def train_parser() -> argparse.ArgumentParser:
    """The parser of tools/train.py."""
    parser = _Parser(
        prog='train.py',
        description='Train a model of mmdet, mmseg or mmpretrain, with OLOR or without.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default: work_dirs/<name of the config>')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value (or with "auto"): from the latest one in the work dir, '
        'and from the beginning if there is none',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (needs an accelerator)')
    parser.add_argument('--no-validate', action='store_true', help='do not validate during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from auto_scale_lr.base_batch_size to the actual batch size',
    )
    parser.add_argument('--pretrained', metavar='FILE', help="checkpoint that replaces the backbone's pre-trained one")
    _add_common(parser)
    parser.add_argument('--no-persistent-workers', action='store_true', help='start new data workers every epoch')
    return parser


def merge_parser() -> argparse.ArgumentParser:
    """The parser of tools/merge_lora.py."""
    parser = _Parser(
        prog='merge_lora.py',
        description='Merge what LoRA has trained into the weights: a checkpoint of the model without LoRA.',
    )
    parser.add_argument('config', help='config file of the training')
    parser.add_argument('checkpoint', help='checkpoint of the training')
    parser.add_argument('out', help='file to write')
    _add_cfg_options(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The parser of tools/test.py."""
    parser = _Parser(
        prog='test.py', description='Test a model of mmdet, mmseg or mmpretrain from its config and a checkpoint.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder for the metrics; default: work_dirs/<name of the config>')
    parser.add_argument('--out', metavar='FILE', help='file for the predictions (.pkl), or the metrics')
    parser.add_argument(
        '--out-item', choices=['pred', 'metrics'], default='pred', help='what --out receives; default: pred'
    )
    parser.add_argument('--amp', action='store_true', help='test in mixed precision (needs an accelerator)')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='folder for images with the predictions drawn')
    parser.add_argument('--wait-time', type=float, default=2, help='how long --show shows an image, s; default: 2')
    parser.add_argument('--interval', type=int, default=1, help='draw every n-th image; default: 1')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    _add_common(parser)
    return parser


def incremental_parser() -> argparse.ArgumentParser:
    """The parser of tools/slca.py."""
    parser = _Parser(prog='slca.py', description='Learn the classes of a data set task after task, by SLCA or SLCA++.')
    parser.add_argument('config', help='config file with an incremental=dict(...), such as those in configs/slca')
    parser.add_argument('--work-dir', help='folder for all tasks; default: work_dirs/<name of the config>')
    parser.add_argument(
        '--resume', action='store_true', help='go on: finished tasks stay, an interrupted one goes on where it was'
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (needs an accelerator)')
    parser.add_argument('--pretrained', metavar='FILE', help="checkpoint that replaces the backbone's pre-trained one")
    _add_common(parser)
    return parser


def calibrate_parser() -> argparse.ArgumentParser:
    """The parser of tools/calibrate.py."""
    parser = _Parser(
        prog='calibrate.py',
        description='Find gamma, which is added to the logits of classes that were absent from fine-tuning, from the '
        'training images alone, and save it into the checkpoint.',
    )
    parser.add_argument('config', help='config file of the fine-tuning')
    parser.add_argument('checkpoint', help='checkpoint of the fine-tuning')
    parser.add_argument('--work-dir', help='folder for what is found; default: work_dirs/<name of the config>')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=['alg', 'pcv'],
        default=['alg', 'pcv'],
        help='alg: average logit gap, in one pass; pcv: pseudo cross-validation, which fine-tunes anew; default: both',
    )
    parser.add_argument('--gamma', type=_number, metavar='G', help='take this gamma instead')
    parser.add_argument('--folds', type=_count, default=3, metavar='N', help='folds of pcv; default: 3')
    parser.add_argument(
        '--hold-out',
        type=_share,
        default=0.2,
        metavar='SHARE',
        help='how much of the training images of each class the folds of pcv are not trained on; default: 0.2',
    )
    parser.add_argument('--seed', type=_seed, default=0, help='of the folds and of what is held out; default: 0')
    parser.add_argument('--resume', action='store_true', help='go on: finished folds stay')
    parser.add_argument(
        '--no-test',
        action='store_true',
        help='no table: the images of the test are not looked at, even when all is done',
    )
    parser.add_argument(
        '--remove', metavar='FILE', help='take gamma out of a calibrated checkpoint, write that file, and end'
    )
    parser.add_argument('--amp', action='store_true', help='train the folds in mixed precision (needs an accelerator)')
    parser.add_argument('--pretrained', metavar='FILE', help="checkpoint that replaces the backbone's pre-trained one")
    _add_common(parser)
    return parser


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f'{text!r} is no finite number')
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number of 1 or more')
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number from 0 to {2**32 - 1}')
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not in (0, 1)')
    return value


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--data-root',
        metavar='DIR',
        help="folder that takes the place of the config's data root in every data set and evaluator",
    )
    parser.add_argument('--no-pin-memory', action='store_true', help='do not pin the memory of batches')
    _add_cfg_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher; default: none'
    )
    # Both spellings: torch changed the one that its launcher passes with version 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def _add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_CfgOptions,
        metavar='KEY=VALUE',
        help='settings that override the config, such as optim_wrapper.rollback.max_level=0.01; '
        'lists as key="[a,b]" or key=a,b, without spaces',
    )
