"""Trains a config: ``python -m orchard.train CONFIG [--cfg-options KEY=VALUE ...]``."""

from argparse import ArgumentParser

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

if __name__ == '__main__':
    parser = ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    arguments = parser.parse_args()
    cfg = Config.fromfile(arguments.config)
    cfg.merge_from_dict(arguments.cfg_options)
    Runner.from_cfg(cfg).train()
