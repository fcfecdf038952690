"""What the tools do for segmentors and our data sets: translated checkpoints, batch norms, the layout expected."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import olor_mm
from olor_mm.tooling import InputError
from olor_mm.tooling.data_checks import check_data
from olor_mm.tooling.data_root import move_data_root
from olor_mm.tooling.distributed import _local_batch_norm
from olor_mm.tooling.settings import register_scope
from olor_mm.tooling.weights import check_weights
from tests._data import make_coco


@pytest.mark.parametrize('content', [None, b''], ids=['missing', 'empty'])
def test_a_translated_checkpoint_that_is_not_there(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / 'gone.pth'
    if content is not None:
        file.write_bytes(content)
    cfg = Config.fromfile(olor_mm.cfg('olor_upernet_vit.py'))
    cfg.model.backbone.init_cfg.checkpoint = f'vit2mmseg:{file}'
    with pytest.raises(InputError, match=r'model\.backbone\.init_cfg\.checkpoint is (missing|incomplete)') as error:
        check_weights(cfg)
    assert f': {file}' in str(error.value)
    assert '--pretrained FILE' in str(error.value)


def test_a_download_that_was_made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped address needs no network once the file lies in torch's cache."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    cfg = Config.fromfile(olor_mm.cfg('olor_upernet_vit.py'))
    name = cfg.model.backbone.init_cfg.checkpoint.rpartition('/')[2]
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / name).write_bytes(b'x')
    check_weights(cfg)


def test_batch_norms_of_each_process() -> None:
    cfg = Config.fromfile(olor_mm.cfg('olor_upernet_vit.py'))
    cfg.model.auxiliary_head.norm_cfg.type = 'SyncBN'
    cfg.model.auxiliary_head.loss_decode = [dict(type='CrossEntropyLoss'), dict(norm_cfg=dict(type='SyncBN'))]
    (note,) = _local_batch_norm(cfg)
    assert 'SyncBatchNorm does not run on CPUs' in note
    assert 'SyncBN' not in str(cfg.model)
    assert cfg.sync_bn is None
    assert _local_batch_norm(cfg) == []


@pytest.mark.parametrize(
    ('name', 'line'),
    [('full_vit-base-p16_8xb16_svhn', 'test_32x32.mat'), ('olor_vit-base-p16_8xb16_pacs', 'art_painting')],
)
def test_a_missing_set_of_ours_shows_its_layout(name: str, line: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(olor_mm.cfg(name))
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'gone')
    register_scope(cfg)
    with pytest.raises(
        InputError, match=r'(?s)data folder of train_dataloader\.dataset is missing.*expected layout'
    ) as error:
        check_data(cfg, 'train')
    assert line in str(error.value)


def test_a_text_for_a_list_of_classes(tmp_path: Path) -> None:
    make_coco(tmp_path)
    cfg = Config.fromfile(olor_mm.cfg('olor_maskrcnn_convnext.py'))
    move_data_root(cfg, str(tmp_path))
    cfg.train_dataloader.dataset.metainfo = dict(classes='disc')
    register_scope(cfg)
    with pytest.raises(InputError, match=r"metainfo\.classes='disc' is a text") as error:
        check_data(cfg, 'train')
    assert "classes=('disc',)" in str(error.value)


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize(
    ('key', 'value'), [('fold', 1), ('seed', 3), ('num_folds', 10), ('test_domains', ['sketch']), ('train_domains', ())]
)
def test_loaders_that_share_a_set_out_differently(split: str, key: str, value: object) -> None:
    cfg = Config.fromfile(olor_mm.cfg('olor_vit-base-p16_8xb16_pacs'))
    register_scope(cfg)
    cfg[f'{split}_dataloader'].dataset[key] = value
    with pytest.raises(InputError, match=rf'train_dataloader\.dataset\.{key}=.*would be both trained and tested on'):
        check_data(cfg, 'train', 'val')


def test_loaders_that_share_a_set_out_alike(shared_data: Path) -> None:
    cfg = Config.fromfile(olor_mm.cfg('olor_vit-base-p16_8xb16_pacs'))
    register_scope(cfg)
    move_data_root(cfg, str(shared_data / 'pacs'))
    for number, split in enumerate(('train', 'val', 'test')):
        cfg[f'{split}_dataloader'].dataset.update(fold=1, test_domains=['sketch', 'photo'][:: 1 - 2 * (number % 2)])
    check_data(cfg, 'train', 'val', 'test')


def test_a_translated_checkpoint_in_load_from(tmp_path: Path) -> None:
    cfg = Config.fromfile(olor_mm.cfg('olor_vit-base-p16_8xb16_pacs'))
    cfg.load_from = 'vit2mmpretrain:vit.pth'
    with pytest.raises(InputError, match=r'would load nothing: .*not of a model\n.*--pretrained vit\.pth'):
        check_weights(cfg)


def test_an_image_that_a_worker_cannot_read(tmp_path: Path, shared_data: Path) -> None:
    """torch raises the worker's error anew, with its whole traceback as the text."""
    from mmengine.dataset import pseudo_collate
    from torch.utils.data import DataLoader

    from olor_mm.datasets import PACS
    from olor_mm.tooling.errors import explain

    for domain in ('art_painting', 'cartoon', 'photo', 'sketch'):
        for folder in sorted((shared_data / 'pacs' / domain).iterdir()):
            (tmp_path / domain / folder.name).mkdir(parents=True)
            for number in range(5):
                (tmp_path / domain / folder.name / f'{number}.jpg').write_bytes(b'')
    dataset = PACS(str(tmp_path), pipeline=[dict(type='LoadImageFromFile')])
    with pytest.raises(ValueError, match='Traceback') as error:
        next(iter(DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)))
    text = str(explain(error.value))
    assert 'Traceback' not in text
    assert str(tmp_path) in text
    assert len(text.splitlines()) <= 3


@pytest.mark.parametrize(
    ('option', 'hint'), [('train_domain', 'did you mean train_domains?'), ('zzz', 'the options are')]
)
def test_a_misspelt_option_of_a_data_set(option: str, hint: str, shared_data: Path) -> None:
    from olor_mm.datasets import PACS

    with pytest.raises(ValueError, match=rf"{option}='photo' is not an option of PACS: {re.escape(hint)}"):
        PACS(str(shared_data / 'pacs'), **{option: 'photo'})


@pytest.mark.parametrize(
    ('name', 'file'),
    [('full_vit-base-p16_8xb16_cub', 'images.txt'), ('full_convnext-base_8xb16_stanford-cars', 'cars_')],
)
def test_a_set_of_mmpretrain_in_another_layout(name: str, file: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(olor_mm.cfg(name))
    register_scope(cfg)
    move_data_root(cfg, str(tmp_path))
    with pytest.raises(InputError, match=r'(?s)is not in the data_root of train_dataloader\.dataset.*layout') as error:
        check_data(cfg, 'train')
    assert file in str(error.value)
    assert '--data-root DIR' in str(error.value)
