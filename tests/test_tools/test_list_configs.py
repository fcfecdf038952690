"""The list of configs: complete, true to configs, metafiles and paper, and the table in docs/configs.md up to date."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load

from olor_mm.tooling import InputError
from olor_mm.tooling.list_configs import ConfigEntry, list_configs, read_configs, select_configs, shipped_root
from tests.test_configs.paper_table import DATA, EXPERIMENTS, METHODS, OTHER_TASKS
from tests.test_tools._small import REPO, tool

HOW_TO_UPDATE = 'python tools/list_configs.py --markdown docs/configs.md'


@pytest.fixture(scope='module')
def entries() -> list[ConfigEntry]:
    return read_configs(REPO)


def _run(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    list_configs(options)
    return capsys.readouterr().out


def test_every_config_is_listed_once_under_its_own_name(entries: list[ConfigEntry]) -> None:
    shipped = {path.relative_to(REPO).as_posix() for path in (REPO / 'configs').rglob('*.py')}
    shipped = {name for name in shipped if '/_base_/' not in name}
    listed = Counter(entry.file for entry in entries)
    assert set(listed) == shipped, 'add the config to configs/metafile.yml or configs/classification/metafile.yml'
    assert set(listed.values()) == {1}
    assert all(entry.name == Path(entry.file).stem for entry in entries)


def test_classification_is_as_in_the_paper(entries: list[ConfigEntry]) -> None:
    theirs = [entry for entry in entries if entry.method.lower() in METHODS and entry.paper]
    found = {entry.name: entry for entry in theirs if entry.tasks == ('Image Classification',)}
    assert set(found) == set(EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        assert found[name].paper == {'Top 1 Accuracy': experiment.accuracy}, name
        assert found[name].levels == experiment.levels, name
        assert found[name].method.lower() == experiment.method, name
        assert found[name].dataset == DATA[experiment.data][0], name


def test_detection_and_segmentation_are_as_in_the_paper(entries: list[ConfigEntry]) -> None:
    found = {entry.name: (entry.levels, entry.paper) for entry in entries}
    assert {name: found[name] for name in OTHER_TASKS} == OTHER_TASKS


def test_metafiles_agree_with_their_configs() -> None:
    for file in load(REPO / 'model-index.yml')['Import']:
        for model in load(REPO / file)['Models']:
            cfg = Config.fromfile(REPO / model['Config'], import_custom_modules=False)
            metadata = {key: model['Metadata'].get(key) for key in ('Epochs', 'Iterations')}
            wanted = {'Epochs': cfg.train_cfg.get('max_epochs'), 'Iterations': cfg.train_cfg.get('max_iters')}
            assert metadata == wanted, model['Name']
            assert {result['Dataset'] for result in model['Results']} == {model['Metadata']['Training Data']}


def test_the_document_is_up_to_date(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    committed = (REPO / 'docs' / 'configs.md').read_text()
    copy = tmp_path / 'configs.md'
    copy.write_text(committed)
    assert not _run(capsys, '--markdown', str(copy))
    assert copy.read_text() == committed, f'to update it: {HOW_TO_UPDATE}'
    # Without a file, the same lines are printed.
    assert _run(capsys, '--markdown', '--dataset', 'ade20k').splitlines()[2:] == [
        line for line in committed.splitlines() if '| ADE20K |' in line
    ]
    links = [line.split('](')[1].split(')')[0] for line in committed.split('\n') if line.startswith('| [')]
    assert links
    assert all((REPO / 'docs' / link).is_file() for link in links)


@pytest.mark.parametrize('text', [None, 'no marks', 'only <!-- list_configs: begin --> one'])
def test_a_file_without_a_place_for_the_table_is_left_alone(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / 'page.md'
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match='no place for the table'):
        list_configs(['--method', 'olor', '--dataset', 'coco', '--markdown', str(file)])
    assert (file.read_text() if file.exists() else None) == text


@pytest.mark.parametrize(
    ('filters', 'fits'),
    [
        ({'task': 'classification'}, lambda entry: entry.tasks == ('Image Classification',)),
        ({'task': 'segmentation'}, lambda entry: entry.dataset in ('COCO 2017', 'ADE20K')),
        ({'task': 'Object Detection'}, lambda entry: entry.dataset == 'COCO 2017'),
        ({'dataset': 'cifar100'}, lambda entry: entry.dataset == 'CIFAR-100'),
        ({'dataset': 'Cars', 'method': 'LINEAR'}, lambda entry: 'linear' in entry.name and 'cars' in entry.name),
        ({'method': 'olor'}, lambda entry: entry.levels is not None),
    ],
)
def test_filters(entries: list[ConfigEntry], filters: dict, fits: Callable[[ConfigEntry], bool]) -> None:
    wanted = [entry for entry in entries if fits(entry)]
    assert wanted
    assert len(wanted) < len(entries)
    assert select_configs(entries, **filters) == wanted


@pytest.mark.parametrize(
    ('filters', 'message'),
    [
        (
            {'method': 'olro'},
            "--method 'olro' fits no config\n  did you mean OLOR\\?\n  known are: .*Full, .*Linear, .*OLOR",
        ),
        ({'dataset': 'cifar10O'}, 'did you mean CIFAR-100'),
        ({'task': 'xyz'}, "--task 'xyz' fits no config\n  known are: Class-Incremental Learning, Image"),
        ({'dataset': '-'}, 'known are: ADE20K, '),
        ({'task': 'detection', 'dataset': 'pacs'}, 'no config fits --task detection --dataset pacs together'),
    ],
)
def test_a_filter_that_fits_nothing_is_an_error(entries: list[ConfigEntry], filters: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_configs(entries, **filters)


def test_results_are_ours_where_the_metric_is_not_marked(tmp_path: Path) -> None:
    (tmp_path / 'one.py').write_text("optim_wrapper = dict(rollback=dict(max_level=0.5))\ncustom_imports = ['gone']\n")
    (tmp_path / 'more.yml').write_text(
        'Models:\n- Name: one\n  In Collection: OLOR\n  Config: one.py\n'
        '  Metadata: {Model: M, Pre-training Data: P, Training Data: D}\n'
        '  Results:\n  - {Task: T, Dataset: D, Metrics: {Top 1 (paper): 2, Top 1: 3.5}}\n'
    )
    (tmp_path / 'model-index.yml').write_text('Import: [more.yml]\n')
    (entry,) = read_configs(tmp_path)
    assert (entry.paper, entry.ours) == ({'Top 1': 2.0}, {'Top 1': 3.5})
    assert entry.levels == (0.5, 0.0, 1.0)


def test_the_tool_prints_a_table_and_json() -> None:
    table = tool('list_configs.py', '--dataset', 'ade20k')
    assert table.returncode == 0, table.stderr
    header, _, *rows = table.stdout.splitlines()
    assert header.split()[:2] == ['config', 'task']
    assert {'baseline_upernet_vit', 'olor_upernet_vit'} <= {row.split()[0] for row in rows}
    assert all('ADE20K' in row for row in rows)
    found = json.loads(tool('list_configs.py', '--json', '--dataset', 'ade20k', '--method', 'olor').stdout)
    assert [(entry['levels'], entry['paper']) for entry in found] == [([1e-4, 0, 1], {'mIoU': 44.62})]
    wrong = tool('list_configs.py', '--method', 'olro')
    assert (wrong.returncode, wrong.stdout) == (2, '')
    assert 'did you mean OLOR?' in wrong.stderr
    assert 'Traceback' not in wrong.stderr


def test_a_checkout_is_found_by_its_index() -> None:
    assert (shipped_root() / 'configs' / 'classification' / 'metafile.yml').is_file()
