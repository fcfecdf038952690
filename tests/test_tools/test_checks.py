"""What the tools do for segmentors and our data sets: translated checkpoints, batch norms, the layout expected."""

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
