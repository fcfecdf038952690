"""docs/search.md: its commands, with a stand-in for the training, its config on the real images, and its options."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import ClassVar

import pytest
from mmengine.config import Config

from olor_mm.tooling.search import report, search
from olor_mm.tooling.search.best import final_config
from olor_mm.tooling.search.options import search_parser
from tests.test_tools import _search_stand_in
from tests.test_tools._search import CONFIG

from ._pages import blocks, text_of

PAGE = 'search'


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    _search_stand_in.use(monkeypatch, tmp_path)
    monkeypatch.setattr(report, 'save_charts', lambda charts, *arguments, **options: [])
    monkeypatch.chdir(tmp_path)
    Path('my_config.py').write_text(CONFIG)
    return tmp_path


def command(name: str) -> list[str]:
    (text,) = (block.text for block in blocks(PAGE) if (block.kind, block.name) == ('run', name))
    return shlex.split(text.replace('\\\n', ' '))


@pytest.mark.parametrize(('name', 'trials'), [('short', 10), ('optuna', 21)])
def test_commands(folder: Path, name: str, trials: int) -> None:
    if name == 'optuna':
        pytest.importorskip('optuna')
    python, tool, *argv = command(name)
    assert (python, tool) == ('python', 'tools/search.py')
    search(argv)
    (results,) = folder.glob('work_dirs/*/results.json')
    assert len(json.loads(results.read_text())['trials']) == trials
    assert (results.parent / 'my_config_best.py').is_file()
    for written in ('results.md', 'results.csv', 'search.json', 'runs'):
        assert (results.parent / written).exists()
        assert f'`{written}' in text_of(PAGE)


def test_the_example(folder: Path, shared_data: Path) -> None:
    pytest.importorskip('mmpretrain')
    (config,) = (block for block in blocks(PAGE) if block.kind == 'file')
    Path(config.name).write_text(config.text)
    Path('data').mkdir()
    Path('data/pacs').symlink_to(shared_data / 'pacs')
    Path('deit_tiny.pth').symlink_to(shared_data / 'weights' / 'deit_tiny_in1k_mmpretrain.pth')
    search(command('example')[2:])
    found = Path('work_dirs/pacs_search/results.md').read_text().splitlines()
    quoted = re.search(r'^\| max_level \| power \|.*$', text_of(PAGE), re.MULTILINE)
    assert quoted is not None
    assert found[0] == quoted[0]
    assert len([line for line in found if line.startswith('|')]) == 2 + 7
    _, tool, best = command('best')
    assert tool == 'tools/train.py'
    cfg = final_config([best])
    assert cfg.train_dataloader.dataset.data_root == f'{folder}/data/pacs'
    assert cfg.model.backbone.init_cfg.checkpoint == f'{folder}/deit_tiny.pth'
    # The page says that these are other images.
    train, val = (set(cfg[f'{split}_dataloader'].dataset.indices) for split in ('train', 'val'))
    assert (len(train), len(val), train & val) == (320, 320, set())
    assert cfg.train_dataloader.dataset.split == cfg.val_dataloader.dataset.split == 'train'
    assert cfg.test_dataloader.dataset.split == 'test'


def test_the_config_of_the_result() -> None:
    """The figures are of the command that is shown."""
    result = json.loads(Path(__file__).parents[2].joinpath('benchmarks/results/search_deit-tiny.json').read_text())
    args = search_parser().parse_args(command('example')[2:])
    assert (result['config'], result['seeds']) == (args.config, args.seeds)
    tried = {(trial['max_level'], trial['power']) for trial in result['trials'] if trial['max_level']}
    assert tried == {(level, power) for level in args.levels for power in args.powers}
    assert Path(result['best_config']).parent == Path(args.work_dir)


def test_options() -> None:
    known = {option for action in search_parser()._actions for option in action.option_strings} - {'-h', '--help'}
    told = set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text_of(PAGE)))
    assert told == known


def test_hold_out() -> None:
    pytest.importorskip('mmpretrain')
    from mmengine.registry import DATASETS, DefaultScope

    (text,) = set(re.findall(r"`dataset=(dict\(type='olor_mm\.HoldOut', .*?\))`", text_of(PAGE), re.DOTALL))
    inner = "dict(type='FakeSet', labels=[0, 0, 0, 1, 1, 1])"
    cfg = Config.fromstring(f'dataset = {text.replace("dict(...)", inner)}', '.py').dataset

    class FakeSet:
        metainfo: ClassVar = dict(classes=('a', 'b'))
        lazy_init = False

        def __init__(self, labels: list[int]) -> None:
            self.labels = labels

        def full_init(self) -> None:
            pass

        def __len__(self) -> int:
            return len(self.labels)

        def get_data_info(self, index: int) -> dict[str, int]:
            return dict(gt_label=self.labels[index], sample_idx=index)

        def __getitem__(self, index: int) -> dict[str, int]:
            return self.get_data_info(index)

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        DATASETS.register_module(module=FakeSet, force=True)
        train, val = DATASETS.build(cfg), DATASETS.build({**cfg, 'held_out': True})
    assert len(train) + len(val) == 6
    assert {train[i]['sample_idx'] for i in range(len(train))}.isdisjoint(val[i]['sample_idx'] for i in range(len(val)))
