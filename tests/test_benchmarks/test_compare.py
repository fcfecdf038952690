"""benchmarks/compare.py: it reads the page, and keeps no folder of the machine."""

import argparse
import json
from pathlib import Path

import pytest
from mmengine.config import Config


def test_config_and_command_are_the_page_s(part, tmp_path):
    pytest.importorskip('mmpretrain')
    compare = part('compare')
    text, arguments = compare.of_page(compare.PAGE.read_text())
    (tmp_path / 'small.py').write_text(text)
    cfg = Config.fromfile(str(tmp_path / 'small.py'))
    assert cfg.model.backbone.arch == 'deit-tiny'
    assert len(cfg.train_dataloader.dataset.indices) == 320
    # One schedule over all iterations.
    assert cfg.param_scheduler[0].end == cfg.train_cfg.max_epochs * 320 // cfg.train_dataloader.batch_size
    given = argparse.Namespace(data_root=Path('/a'), pretrained=Path('/b.pth'), upstream=Path('/c'))
    found = compare.given(arguments, given, tmp_path / 'small.py')
    assert found[0] == str(tmp_path / 'small.py')
    assert {option: found[found.index(option) + 1] for option in ('--data-root', '--pretrained', '--upstream')} == {
        '--data-root': '/a',
        '--pretrained': '/b.pth',
        '--upstream': '/c',
    }
    assert 'full' in found


def test_folders_are_left_out(part):
    node = {'config': '/x.py', 'methods': [{'runs': [{'work_dir': '/x', 'value': 1.0}]}]}
    assert json.dumps(part('compare').without_paths(node)) == '{"methods": [{"runs": [{"value": 1.0}]}]}'
