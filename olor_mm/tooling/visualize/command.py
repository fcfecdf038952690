"""The command line of tools/visualize.py."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence

import torch

from ..figures import check_drawing
from ..options import _add_cfg_options, _Parser
from ..signals import terminable
from .curves import curves
from .distances import discrepancy
from .features import tsne
from .levels import levels
from .seen_unseen import ausuc

__all__ = ['visualize']

_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    'tsne': tsne,
    'discrepancy': discrepancy,
    'levels': levels,
    'curves': curves,
    'ausuc': ausuc,
}
_NAMED = 'NAME=PATH gives it a name of its own in the pictures'


def visualize(argv: Sequence[str]) -> None:
    """Draw what a command asks for, as ``tools/visualize.py`` does.

    Args:
        argv: The arguments after the tool's name.

    Raises:
        InputError: If something in what was given is the user's to mend.
    """
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [option for action in _SUBPARSERS[args.command]._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split('=')[0], options, n=1)
        hint = f'; did you mean {near[0]}?' if near else ''
        _SUBPARSERS[args.command].error(f'unknown argument {unknown[0]}{hint}')
    # What tools/train.py sets besides.
    args.launcher, args.local_rank, args.work_dir, args.no_pin_memory = 'none', 0, None, True
    check_drawing(args.out)
    with terminable(last_words=lambda: None):
        _RUN[args.command](args)


_SUBPARSERS: dict[str, argparse.ArgumentParser] = {}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='visualize.py',
        description='Pictures of features, weights, levels and runs: each command writes a PNG, an interactive page '
        'that is opened without a network, and the numbers as JSON.',
        epilog='visualize.py COMMAND --help explains a command, with examples.',
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND', parser_class=_Parser)
    for name, what, examples, fill in (
        ('tsne', 'features of images in the plane, by class or by domain', _TSNE, _fill_tsne),
        ('discrepancy', 'how far weights are from the pre-trained ones, by layer', _DISCREPANCY, _fill_discrepancy),
        ('levels', 'how strongly each layer is pulled back, and when', _LEVELS, _fill_levels),
        ('curves', 'training curves of several runs', _CURVES, _fill_curves),
        ('ausuc', 'accuracy on seen against unseen classes', _AUSUC, _fill_ausuc),
    ):
        command = commands.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + '.',
            epilog=f'examples:\n{examples}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fill(command)
        group = command.add_argument_group('pictures')
        group.add_argument('--out', metavar='DIR', default='work_dirs/figures', help='folder; default: %(default)s')
        group.add_argument('--name', help='of the files, without an ending; default: that of the command')
        group.add_argument('--title', help='of the page')
        _SUBPARSERS[name] = command
    return parser


_TSNE = """\
  visualize.py tsne CONFIG before=deit_tiny.pth after=work_dirs/olor/epoch_30.pth
  visualize.py tsne CONFIG work_dirs/olor/epoch_30.pth --by domain --max-samples 2000
  visualize.py tsne CONFIG work_dirs/olor/epoch_30.pth --split train --classes dog horse"""


def _fill_tsne(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help="config file of a classifier; its test's transforms are used")
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT', help=f'one or several; {_NAMED}')
    parser.add_argument('--by', choices=['class', 'domain'], default='class', help='what colours mean; default: class')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='test', help='images; default: test')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='classes (or domains) to show; default: up to 20')
    parser.add_argument('--max-samples', type=int, default=1000, metavar='N', help='images at most; default: 1000')
    parser.add_argument(
        '--perplexity', type=float, default=30.0, help='of t-SNE, about how many neighbours; default: 30'
    )
    parser.add_argument(
        '--metric',
        choices=['euclidean', 'cosine'],
        default='euclidean',
        help='distance of features; default: euclidean',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the images drawn and of t-SNE; default: 0')
    parser.add_argument(
        '--stage', choices=['neck', 'pre_logits'], default='neck', help='what the head, or its last layer, is given'
    )
    _add_model_options(parser)


_DISCREPANCY = """\
  visualize.py discrepancy Full=work_dirs/full OLOR=work_dirs/olor
  visualize.py discrepancy work_dirs/olor/epoch_30.pth --theta-0 deit_tiny.pth
A work dir stands for all of its epoch_*.pth, or iter_*.pth: the distance over training."""


def _fill_discrepancy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT_OR_WORK_DIR', help=f'one or several; {_NAMED}')
    parser.add_argument('--config', help='config file of the training; default: the one beside the checkpoint')
    parser.add_argument(
        '--theta-0',
        metavar='FILE',
        help='the pre-trained weights; default: what the checkpoint itself holds, else what its config names',
    )
    parser.add_argument(
        '--roots', nargs='+', metavar='PATH', help="parts of the model; default: the config's, or backbone"
    )
    parser.add_argument('--index', choices=['layer', 'tensor'], default='layer', help='what i counts; default: layer')
    parser.add_argument('--log', action='store_true', help='logarithmic distances')
    parser.add_argument('--data-root', help=argparse.SUPPRESS)
    _add_cfg_options(parser)


_LEVELS = """\
  visualize.py levels --set 1e-2 0 2 --set 1e-1 0 4 --layers 12
  visualize.py levels configs/classification/olor_vit-base-p16_8xb16_pacs.py --epoch-length 63
  visualize.py levels CONFIG --cfg-options optim_wrapper.rollback.level_schedule=cosine"""


def _fill_levels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', nargs='?', help='config file with OLOR: the layers are those of its model')
    parser.add_argument(
        '--set',
        nargs=3,
        type=float,
        action='append',
        default=[],
        metavar=('MAX', 'MIN', 'POWER'),
        help='max_level, min_level and power of a curve; say it once for each',
    )
    parser.add_argument('--layers', type=int, metavar='N', help='n, the deepest layer, without a config; default: 12')
    parser.add_argument(
        '--epoch-length', type=int, metavar='N', help='iterations of an epoch; default: from the data of the config'
    )
    parser.add_argument('--log', action='store_true', help='logarithmic levels')
    parser.add_argument('--data-root', metavar='DIR', help="folder that takes the place of the config's data root")
    _add_cfg_options(parser)


_CURVES = """\
  visualize.py curves work_dirs/full work_dirs/olor
  visualize.py curves Full=work_dirs/full OLOR=work_dirs/olor --metric 'loss*' 'accuracy/*' --smooth 0.6
  visualize.py curves work_dirs/olor --list"""


def _fill_curves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help=f'of a run; {_NAMED}')
    parser.add_argument(
        '--metric',
        nargs='+',
        metavar='PATTERN',
        help="names of metrics, with * and ?; default: losses and validation's",
    )
    parser.add_argument('--list', action='store_true', help='print the names of all metrics, and draw nothing')
    parser.add_argument('--smooth', type=float, default=0.0, metavar='SHARE', help='moving average; default: 0, off')
    parser.add_argument('--log', action='store_true', help='logarithmic values')


_AUSUC = """\
  visualize.py ausuc CONFIG Full=full.pth OLOR=olor.pth --seen 0-49
  visualize.py ausuc --logits before=before.pth after=after.npz --seen 0-49 60"""


def _fill_ausuc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', nargs='?', help='config file of a classifier over all classes')
    parser.add_argument('checkpoints', nargs='*', metavar='CHECKPOINT', help=f'one or several; {_NAMED}')
    parser.add_argument('--logits', nargs='+', metavar='FILE', help='files of logits and labels, without a config')
    parser.add_argument(
        '--seen', nargs='+', metavar='LABELS', help='labels trained on, as 0-49 60; default: those of ClassSubset'
    )
    parser.add_argument('--save-logits', action='store_true', help='keep the logits in --out, for --logits')
    _add_model_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data-root', metavar='DIR', help="folder that takes the place of the config's data root")
    parser.add_argument('--batch-size', type=int, default=64, metavar='N', help='images at a time; default: 64')
    parser.add_argument(
        '--num-workers', type=int, default=2, metavar='N', help='processes that read images; default: 2'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help="'cpu', 'cuda', ...")
    _add_cfg_options(parser)
