"""docs/forgetting.md, section Metrics: its configs and its commands run; its tables are the options."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from mmengine.config import Config

from olor_mm import evaluation, tooling
from tests.test_tools.test_metrics import CLASSIFIER

from ._pages import blocks, text_of

PAGE = 'forgetting'


def section() -> str:
    return text_of(PAGE).split('\n## Metrics\n')[1].split('\n## ')[0]


def fenced(language: str, having: str) -> str:
    return next(block.text for block in blocks(PAGE) if block.language == language and having in block.text)


def test_every_function_that_the_page_names_is_there() -> None:
    head = section().split('\n### ')[0]
    names = {name for cell in re.findall(r'`([\w. ]+)`', head) for name in [cell.rpartition('.')[2]]}
    assert {'knn_accuracy', 'ausuc_curve', 'UpstreamHook', 'KNNMetric', 'backward_transfer'} <= names
    assert not [name for name in names - {'evaluation'} if not hasattr(evaluation, name)]


@pytest.mark.parametrize(('heading', 'classes'), [
    ('In a config', ('KNNMetric', 'NCMMetric', 'SeenUnseenMetric')), ('During fine-tuning', ('UpstreamHook',)),
])  # fmt: skip
def test_tables_have_all_options_and_no_other(heading: str, classes: tuple[str, ...]) -> None:
    part = section().split(f'\n### {heading}\n')[1].split('\n### ')[0]
    told = {name for cell in re.findall(r'^\| (`.+?) \|', part, re.MULTILINE) for name in re.findall(r'`(\w+)`', cell)}
    own = {name for each in classes for name in inspect.signature(getattr(evaluation, each)).parameters}
    common = {'prefix', 'collect_device', 'collect_dir'} if 'options' in own else set()
    assert told == own - {'options', 'unknown'} | common


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small classifier's config and its checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small.py').write_text(CLASSIFIER + '\ncustom_hooks = []\n')
    assert tooling.run_command(tooling.train, ['small.py', '--work-dir', 'run']) == 0
    return tmp_path / 'run' / 'epoch_2.pth'


def measured(config: str, checkpoint: Path, *options: str) -> dict[str, float]:
    out = ['--out', 'found.json', '--out-item', 'metrics', '--work-dir', 'tested']
    assert tooling.run_command(tooling.test, [config, str(checkpoint), *out, *options]) == 0
    found: dict[str, float] = json.loads(Path('found.json').read_text())
    return found


def test_the_config_and_the_command(checkpoint: Path) -> None:
    Path('with.py').write_text("_base_ = ['small.py']\n" + fenced('python', 'NCMMetric'))
    found = measured('with.py', checkpoint)
    assert {'accuracy/top1', 'knn/top1/k=20', 'ncm/top1', 'ncm/U/Y', 'seen_unseen/AUSUC'} <= set(found)
    command = fenced('bash', '_delete_').replace('\\\n', ' ')
    python, tool, config, file, *options = shlex.split(command)
    assert (python, tool, config, file) == ('python', 'tools/test.py', 'CONFIG', 'CHECKPOINT')
    shorter = measured('small.py', checkpoint, *options)
    assert shorter['knn/top1/k=20'] == found['knn/top1/k=20']
    assert set(shorter) == {f'knn/top{top}/k={k}' for top in (1, 5) for k in (10, 20, 100, 200)}


def test_fine_tuning_with_upstream_figures(checkpoint: Path) -> None:
    text = fenced('python', 'UpstreamHook')
    given = Config.fromfile('small.py')
    for loader in ('dict(...)', 'dict(...)'):
        text = text.replace(loader, repr(given.test_dataloader.to_dict()), 1)
    Path('upstream.py').write_text("_base_ = ['small.py']\n" + text)
    options = ['--work-dir', 'upstream', '--cfg-options', f'load_from={checkpoint}']
    assert tooling.run_command(tooling.train, ['upstream.py', *options]) == 0
    scalars = next(Path('upstream').rglob('scalars.json')).read_text().splitlines()
    steps = [line['step'] for line in map(json.loads, scalars) if 'upstream/knn/top1/k=20' in line]
    assert steps == [0, 1, 2]
    assert list(Path('upstream').glob('best_upstream_head_top1_*.pth'))
    assert Path('upstream/upstream_head.pth').is_file()


def test_the_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    """On two images of each of three classes: what the page's command does, and not its figures."""
    pytest.importorskip('timm')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'kept.py').write_text(next(block.text for block in blocks(PAGE) if block.name == 'kept.py'))
    for split in ('train', 'val'):
        for folder in sorted((shared_data / 'tiny_imagenet' / split).iterdir())[:3]:
            (tmp_path / 'data/tiny_imagenet' / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:2]:
                (tmp_path / 'data/tiny_imagenet' / split / folder.name / image.name).symlink_to(image)
    (tmp_path / 'deit_tiny.pth').symlink_to(shared_data / 'weights/deit_tiny_in1k_mmpretrain.pth')
    _, _, *arguments = shlex.split(next(block.text for block in blocks(PAGE) if block.kind == 'run'))
    assert tooling.run_command(tooling.test, [*arguments, '--cfg-options', 'test_dataloader.num_workers=0']) == 0
    found = json.loads(Path('kept.json').read_text())
    results = Path(__file__).parents[2] / 'benchmarks' / 'results' / 'kept_deit-tiny.json'
    assert set(found) == set(json.loads(results.read_text())['metrics'])
    # One in 200 by chance.
    assert found['accuracy/top5'] >= 30


def test_the_page_has_the_table_of_the_results() -> None:
    results = Path(__file__).parents[2] / 'benchmarks' / 'results' / 'kept_deit-tiny.md'
    assert results.read_text().split('\n\n')[0] in section()
