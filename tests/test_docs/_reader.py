"""Somebody who reads a page from top to bottom and does what it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import olor_mm
from olor_mm.engine.report import format_report
from olor_mm.layers import assign_layers
from olor_mm.rollback import layerwise_levels

from ._pages import Block, Mistake, blocks, is_in
from ._shell import Done, Rules, Shell, WarmPython
from ._small import LONGER, MISTAKES, RULES
from ._world import make_checkout, make_data, make_weights

__all__ = ['Reader', 'full_size_report']

_CONFIG = re.compile(r'configs/\S+/?olor_\S+\.py|configs/olor_\S+\.py')


class Reader:
    """A folder as a page's reader has it, and what its commands have said so far.

    Args:
        page: The page.
        root: An empty folder.
        python: What ``python`` is.
    """

    def __init__(self, page: str, root: Path, python: WarmPython) -> None:
        self.page, self.root, self.python = page, root, python
        self.cwd = make_checkout(root)
        make_data(page, self.cwd / 'data')
        make_weights(page, root / 'torch' / 'hub' / 'checkpoints', self.cwd)
        (root / 'home').mkdir()
        (root / 'home' / 'data').symlink_to(self.cwd / 'data')
        self.said: dict[str, Done] = {}
        self.main = _CONFIG.findall(' '.join(block.text for block in blocks(page) if block.kind == 'run'))[0]

    def shell(self, more: Rules = ()) -> Shell:
        """Where commands run.

        Args:
            more: Rules besides those of the page. Defaults to none.
        """
        env = {
            'HOME': str(self.root / 'home'),
            'TORCH_HOME': str(self.root / 'torch'),
            # What is not in the cache cannot be downloaded, here or in CI.
            'http_proxy': 'http://127.0.0.1:9',
            'https_proxy': 'http://127.0.0.1:9',
        }
        return Shell(self.python, self.cwd, [*RULES[self.page], *more], env)

    def read(self, block: Block) -> None:
        """Do what one block says, or see that what it quotes was said.

        Args:
            block: One of the page's.
        """
        if block.kind == 'file':
            (self.cwd / block.name).write_text(block.text)
        elif block.kind == 'run' and block.name.endswith(' (until Ctrl-C)'):
            name = block.name.partition(' (')[0]
            self.said[name] = self._interrupted(block.text)
            assert self.said[name].code == 130, self.said[name].text[-3000:]
        elif block.kind == 'run':
            self.said[block.name] = done = self.shell()(block.text)
            assert done.code == 0, f'{block.text}\n{done.text[-3000:]}'
        elif block.kind == 'output':
            said = self.said[block.name].text
            assert is_in(block.text, said), f'{block.text}\nis not what was said:\n{said[-6000:]}'
        else:
            assert block.kind == 'report', f'{block} says neither what it is nor why it is not run'
            assert is_in(block.text, full_size_report(block.name), exact=True)

    def err(self, mistake: Mistake) -> Done:
        """Make a mistake of the page's table: options that the first cell gives, or what :data:`MISTAKES` says of it.

        Args:
            mistake: The row.
        """
        train = f'python tools/train.py {self.main} --work-dir work_dirs/mistake'
        if mistake.is_option:
            return self.shell()(f'{train} {mistake.done.strip("`")}')
        command, extra = MISTAKES[mistake.done]
        checkpoint = '"$(cat work_dirs/mistake/last_checkpoint)"'
        baseline = re.sub(r'olor_(?!\S*/)', 'full_' if '/classification/' in self.main else 'baseline_', self.main)
        return self.shell([('', extra)] if extra else [])(
            command.format(train=train, main=self.main, baseline=baseline, checkpoint=checkpoint)
        )

    def _interrupted(self, command: str) -> Done:
        marker = self.cwd / 'work_dirs' / Path(self.main).stem / 'last_checkpoint'
        marker.unlink(missing_ok=True)
        done = self.shell([('', LONGER[self.page])])(command, interrupt_at=marker)
        # What made it short is no part of the command that a user would give again.
        return Done(done.code, re.sub(r' --cfg-options .*(?= --resume$)', '', done.text, flags=re.MULTILINE))


def full_size_report(config: str) -> str:
    """What the log says of the layers of a config as it stands.

    Args:
        config: Its name.
    """
    cfg = Config.fromfile(olor_mm.cfg(config))
    package = importlib.import_module(f'{cfg.default_scope}.utils')
    package.register_all_modules(init_default_scope=False)
    model = nn.Module()
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model.backbone = registry.build({**cfg.model.backbone, 'init_cfg': None})
    layers = assign_layers(model, roots=('backbone',))
    rollback = {key: cfg.optim_wrapper.rollback[key] for key in ('max_level', 'min_level', 'power')}
    levels = layerwise_levels(model.named_parameters(), layers.index, layers.num_layers, **rollback)
    names = {name: parameter for name, parameter in model.named_parameters() if name in layers.index}
    return format_report(layers, names, levels, [])
