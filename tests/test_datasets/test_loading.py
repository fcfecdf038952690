"""The way into a training loop: registry, pipeline, data loader; and images that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

from olor_mm.datasets import PACS, OfficeHome, UnreadableImageError
from olor_mm.tooling.errors import explain

from ._make import jpeg, make_domains, make_svhn

READ = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]


@pytest.fixture(autouse=True)
def _scope() -> Any:
    """The scope that a run of mmpretrain sets, for the transforms of the pipeline."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def pacs_root(tmp_path: Path) -> Path:
    return make_domains(tmp_path / 'pacs', PACS, 2)


def loader_of(dataset: dict[str, Any], workers: int, batch: int = 8) -> Any:
    cfg = dict(
        batch_size=batch, num_workers=workers, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False)
    )
    return Runner.build_dataloader(dict(cfg, collate_fn=dict(type='default_collate')), seed=0)


def test_batches_of_images_from_files(pacs_root: Path) -> None:
    dataset = dict(type='olor_mm.PACS', data_root=str(pacs_root), num_folds=2, pipeline=READ)
    loader = loader_of(dataset, workers=2)
    batches = list(loader)
    labels = [int(sample.gt_label) for batch in batches for sample in batch['data_samples']]
    assert all(batch['inputs'].shape[1:] == (3, 32, 32) for batch in batches)
    assert labels == loader.dataset.get_gt_labels().tolist()
    # make_domains paints every class in a shade of its own.
    shades = torch.cat([batch['inputs'] for batch in batches]).float().mean((1, 2, 3))
    assert torch.allclose(shades, torch.tensor(labels, dtype=torch.float), atol=2)


def test_batches_of_images_from_an_array(tmp_path: Path) -> None:
    images, labels = make_svhn(tmp_path, dict(train=21))['train']
    dataset = dict(type='olor_mm.SVHN', data_root=str(tmp_path), pipeline=[dict(type='PackInputs')])
    batches = list(loader_of(dataset, workers=2))
    inputs = torch.cat([batch['inputs'] for batch in batches])
    # PackInputs puts channels first and leaves their order: RGB, as published.
    assert torch.equal(inputs, torch.from_numpy(images).permute(3, 2, 0, 1))
    found = [int(sample.gt_label) for batch in batches for sample in batch['data_samples']]
    assert found == [int(label) % 10 for label in labels.ravel()]


@pytest.mark.parametrize('content', [b'', b'<html>', jpeg()[:300]], ids=['empty', 'text', 'header'])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_an_image_that_cannot_be_read_is_named(pacs_root: Path, content: bytes, split: str) -> None:
    broken = pacs_root / 'photo/dog/pic_000.jpg'
    broken.write_bytes(content)
    dataset = PACS(str(pacs_root), split, train_domains='photo', test_domains='photo', num_folds=2, pipeline=READ)
    other = PACS(str(pacs_root), split, train_domains='photo', test_domains='photo', num_folds=2, fold=1, pipeline=READ)
    files = [[part.get_data_info(index)['img_path'] for index in range(len(part))] for part in (dataset, other)]
    part, index = (
        (dataset, files[0].index(str(broken))) if str(broken) in files[0] else (other, files[1].index(str(broken)))
    )
    with pytest.raises(
        UnreadableImageError, match=rf'the image {broken} \({len(content)} bytes\) cannot be decoded'
    ) as caught:
        part[index]
    # The tools say it without a traceback.
    assert str(broken) in str(explain(caught.value))


def test_an_image_that_is_gone_is_named(pacs_root: Path) -> None:
    dataset = PACS(str(pacs_root), num_folds=2, pipeline=READ)
    Path(dataset.get_data_info(3)['img_path']).unlink()
    with pytest.raises(UnreadableImageError, match=rf'the image {dataset.get_data_info(3)["img_path"]} does not exist'):
        dataset[3]


def test_a_broken_image_is_named_by_a_worker_too(pacs_root: Path) -> None:
    broken = pacs_root / 'art_painting/dog/pic_000.jpg'
    broken.write_bytes(b'')
    dataset = dict(type='olor_mm.PACS', data_root=str(pacs_root), train_domains='art_painting', test_domains='photo')
    # After any error in a worker torch waits five seconds for it, when the loader is collected: maybe in a later test.
    with pytest.raises(UnreadableImageError, match=str(broken)):
        list(loader_of(dict(dataset, pipeline=READ), workers=1, batch=16))


def test_other_mistakes_of_a_pipeline_stay_what_they_are(pacs_root: Path) -> None:
    dataset = PACS(
        str(pacs_root), num_folds=2, pipeline=[dict(type='PackInputs', meta_keys=()), lambda data: data['no']]
    )
    with pytest.raises(KeyError, match='no'):
        dataset[0]


def test_verify_finds_every_broken_image(pacs_root: Path) -> None:
    cfg = dict(data_root=str(pacs_root), train_domains='photo', test_domains='sketch', verify=True)
    assert len(PACS(**cfg)) == 2 * PACS.NUM_CLASSES
    broken = [pacs_root / f'photo/{name}/pic_001.jpg' for name in ('dog', 'house')]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UnreadableImageError) as caught:
        PACS(**cfg)
    named = [line for line in str(caught.value).splitlines() if line.startswith('the image')]
    assert [str(file) in line for file, line in zip(broken, named, strict=True)] == [True, True]


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_found_from_every_scope(pacs_root: Path, scope: str) -> None:
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(dict(type='olor_mm.PACS', data_root=str(pacs_root), num_folds=2))
    assert isinstance(dataset, PACS)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    dataset = OfficeHome(str(tmp_path / 'later'), lazy_init=True, num_folds=2)
    assert len(dataset.CLASSES) == OfficeHome.NUM_CLASSES
    make_domains(tmp_path / 'later', OfficeHome, 2)
    assert len(dataset) == OfficeHome.NUM_CLASSES * len(OfficeHome.DOMAINS)


def test_repr_says_where_and_what(pacs_root: Path) -> None:
    text = repr(PACS(str(pacs_root), 'test', test_domains='sketch', train_domains=('photo', 'cartoon')))
    for part in (str(pacs_root), 'test', 'train cartoon, photo', 'test sketch', 'Number of categories: \t7'):
        assert part in text


def test_importing_olor_mm_loads_no_data_set() -> None:
    code = "import sys, olor_mm; print({'torch', 'mmengine', 'mmpretrain', 'scipy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == 'set()'


def test_without_mmpretrain_the_remedy_is_named() -> None:
    code = (
        "import sys; sys.modules['mmpretrain'] = None\n"
        'try:\n    import olor_mm.datasets\nexcept ImportError as error:\n    print(error)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert 'install mmpretrain 1.2.0 and mmcv 2.1.0' in result.stdout
