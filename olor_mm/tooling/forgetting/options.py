"""The command line of tools/forgetting.py."""

from __future__ import annotations

import argparse

from ..options import _add_cfg_options, _add_common, _Parser
from .weights import BUFFERS

__all__ = ['COMMANDS', 'parser_of']

#: What the first argument may be in the place of a config.
COMMANDS = ('review', 'interpolate', 'pacs')


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command: 'table', or one of :data:`COMMANDS`."""
    return {'table': _table, 'review': _review, 'interpolate': _interpolate, 'pacs': _pacs}[command]()


def _table() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='forgetting.py',
        description='What fine-tuned models still know of the pre-training. Further commands, as the first argument: '
        'review, interpolate, pacs.',
    )
    parser.add_argument('config', help='config file of the fine-tuning')
    parser.add_argument('checkpoints', nargs='*', metavar='CHECKPOINT', help='checkpoints of its model; NAME=FILE too')
    parser.add_argument(
        '--row',
        nargs=3,
        action='append',
        default=[],
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a checkpoint of a run with another config, such as one with LoRA; say it once for each',
    )
    _add_upstream(parser)
    _add_shared(parser)
    return parser


def _review() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='forgetting.py review',
        description='Zero-shot reviewing: take a fine-tuned model back to the pre-trained weights step by step, '
        'without any training, and look at both accuracies on the way.',
    )
    parser.add_argument('config', help='config file of the fine-tuning')
    parser.add_argument('checkpoint', help='checkpoint of its model')
    parser.add_argument('--steps', type=int, default=50, help='how many; default: 50, as in the paper')
    parser.add_argument('--every', type=int, default=1, metavar='N', help='look after each n-th; default: 1')
    parser.add_argument(
        '--path',
        choices=['levels', 'straight'],
        default='levels',
        help='rollbacks with layer-wise levels (default), or equal steps that end at the pre-trained weights',
    )
    parser.add_argument('--max-level', type=float, default=0.01, help='iota_1 of the levels; default: 0.01')
    parser.add_argument('--min-level', type=float, default=0.0, help='iota_2; default: 0')
    parser.add_argument('--power', type=float, default=1.0, help='gamma; default: 1')
    parser.add_argument('--index', choices=['layer', 'tensor'], default='layer', help='what i counts; default: layer')
    _add_buffers(parser)
    _add_upstream(parser)
    _add_shared(parser)
    return parser


def _interpolate() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='forgetting.py interpolate',
        description='Weights between fine-tuned and pre-trained ones, (1 - alpha) theta_T + alpha theta_0 (WiSE-FT): '
        'the alpha that is best on the validation set is saved as a checkpoint.',
    )
    parser.add_argument('config', help='config file of the fine-tuning')
    parser.add_argument('checkpoint', help='checkpoint of its model')
    parser.add_argument('--alphas', type=float, nargs='+', metavar='ALPHA', help='which to try; 0 is among them anyway')
    parser.add_argument('--grid', type=int, default=11, help='or how many from 0 to 1; default: 11')
    parser.add_argument('--metric', help='of the validation, which decides; default: its first one')
    parser.add_argument('--lower', action='store_true', help='the lower it is, the better')
    parser.add_argument(
        '--val-share',
        type=float,
        metavar='SHARE',
        help='where validation and test read the same images: this share of them, drawn by --val-seed, chooses alpha, '
        'and the others are the test set',
    )
    parser.add_argument('--val-seed', type=int, default=0, help='another one draws other images; default: 0')
    parser.add_argument('--save', metavar='FILE', help='the checkpoint to write; default: best.pth in --out')
    _add_buffers(parser)
    _add_upstream(parser)
    _add_shared(parser)
    return parser


def _pacs() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='forgetting.py pacs',
        description="The paper's forgetting test: pre-train on fold 1 of PACS (cartoon, photo, sketch), fine-tune on "
        'fold 2 (art painting) by Full and by OLOR, watch both accuracies and the distance, then review Full.',
    )
    parser.add_argument('config', nargs='?', help='of full fine-tuning on PACS; default: full_vit-base-p16_8xb16_pacs')
    parser.add_argument('--data-root', metavar='DIR', help='the folder that holds the four domains; default: data/pacs')
    parser.add_argument('--pretrained', metavar='FILE', help='checkpoint of the backbone that fold 1 starts from')
    parser.add_argument('--out', metavar='DIR', default='work_dirs/forgetting_pacs', help='default: %(default)s')
    parser.add_argument('--pretrain-epochs', type=int, default=100, help='on fold 1; default: 100')
    parser.add_argument('--epochs', type=int, default=30, help='on fold 2; default: 30')
    parser.add_argument(
        '--images',
        type=int,
        metavar='N',
        help='for a quick look: train on at most so many, spread evenly, and test on half as many of each fold',
    )
    parser.add_argument('--max-level', type=float, default=0.01, help='iota_1 of OLOR; default: 0.01')
    parser.add_argument('--min-level', type=float, default=0.0, help='iota_2; default: 0')
    parser.add_argument('--power', type=float, default=1.0, help='gamma; default: 1')
    parser.add_argument('--seed', type=int, default=0, help='of the runs; default: 0')
    parser.add_argument('--steps', type=int, default=50, help='of the review; default: 50')
    parser.add_argument('--every', type=int, default=1, metavar='N', help='look after each n-th; default: 1')
    parser.add_argument('--path', choices=['straight', 'levels'], default='straight', help='of the review')
    parser.add_argument('--no-pin-memory', action='store_true', help='do not pin the memory of batches')
    _add_cfg_options(parser)
    return parser


def _add_buffers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--buffers',
        choices=BUFFERS,
        default='interpolate',
        help="batch norms' statistics: between those of the two models (default), kept as fine-tuned, or estimated "
        'from training images; counters stay',
    )
    parser.add_argument(
        '--estimate-batches', type=int, default=50, metavar='N', help='of --buffers estimate, at most; default: 50'
    )


def _add_upstream(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('upstream: images of the pre-training')
    group.add_argument(
        '--upstream',
        metavar='CONFIG_OR_FOLDER',
        help='DIR/train/<class> and DIR/val/<class>, DIR/<class>, or a config with train_dataloader, test_dataloader '
        'and, for what is no classifier, a model; without it, only what needs no such images',
    )
    group.add_argument('--upstream-data-root', metavar='DIR', help="takes the place of the upstream config's data root")
    group.add_argument('--upstream-images', type=int, metavar='N', help='at most so many for bank and queries each')
    group.add_argument('--upstream-seed', type=int, default=0, help='of what is drawn of them; default: 0')
    group.add_argument(
        '--measures',
        nargs='+',
        choices=['knn', 'head'],
        default=['knn', 'head'],
        help='what is measured; default: both',
    )
    group.add_argument('--knn-k', type=int, nargs='+', default=[20], metavar='K', help='neighbours; default: 20')
    group.add_argument('--head', metavar='FILE', help='with the original head; default: the pre-trained file')
    group.add_argument(
        '--class-map',
        metavar='FILE',
        help="which output of the original head each upstream class is: JSON, lines 'name 7', or names in the order of "
        'the outputs; default: by the names, WordNet numbers of ImageNet included',
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--pretrained', metavar='FILE', help="checkpoint that replaces the backbone's pre-trained one")
    parser.add_argument('--out', metavar='DIR', help='folder for results; default: work_dirs/<name of the config>_kept')
    parser.add_argument('--fresh', action='store_true', help='use no results that are in --out already')
    _add_common(parser)
