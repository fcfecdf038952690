"""docs/calibrate.md: its commands are ones that the tools take, with configs and checkpoints that there are."""

import shlex
from pathlib import Path

from mmengine.config import Config

from olor_mm.tooling.options import calibrate_parser, test_parser, train_parser

from ._pages import DOCS, blocks, text_of

REPO = DOCS.parent
PARSERS = {'train.py': train_parser, 'test.py': test_parser, 'calibrate.py': calibrate_parser}


def _commands():
    for block in blocks('calibrate'):
        if block.language == 'bash':
            for line in block.text.replace('\\\n', ' ').splitlines():
                words = [word for word in shlex.split(line) if not word.startswith('OMP_')]
                yield Path(words[1]).name, PARSERS[Path(words[1]).name]().parse_args(words[2:])


def test_commands():
    trained, found = {}, []
    for tool, args in _commands():
        cfg = Config.fromfile(REPO / args.config)
        if tool == 'train.py':
            trained[f'{args.work_dir}/epoch_{cfg.train_cfg.max_epochs}.pth'] = args.config
        elif tool == 'calibrate.py':
            assert trained[args.checkpoint] == args.config
            trained[f'{args.work_dir}/calibrated_pcv.pth'] = args.config
        else:
            assert trained[args.checkpoint] == args.config
        found.append(tool)
    assert found == ['train.py', 'calibrate.py', 'test.py', 'train.py', 'calibrate.py']


def test_options():
    told = text_of('calibrate')
    for action in calibrate_parser()._actions:
        for option in action.option_strings:
            if option.startswith('--') and option not in ('--help', '--local_rank', '--local-rank'):
                assert f'`{option}' in told, option
