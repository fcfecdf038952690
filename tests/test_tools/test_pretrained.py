"""--pretrained puts a file in the place of the backbone's checkpoint, with the prefix that the file has."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

import olor_mm
from olor_mm.tooling import InputError
from olor_mm.tooling.pretrained import check_vit_names, replace_pretrained
from olor_mm.tooling.settings import register_scope


@pytest.fixture(scope='module')
def weights() -> dict[str, Tensor]:
    """Of an atto ConvNeXt as the main job builds it."""
    from mmpretrain.models import ConvNeXt

    torch.manual_seed(0)
    return ConvNeXt('atto', out_indices=[0, 1, 2, 3], gap_before_final_norm=False).state_dict()


def _cfg(**backbone: Any) -> Config:
    cfg = Config.fromfile(olor_mm.cfg('olor_maskrcnn_convnext.py'))
    cfg.merge_from_dict(dict(model=dict(backbone=dict(arch='atto', **backbone))))
    register_scope(cfg)
    return cfg


def _save(file: Path, weights: dict[str, Tensor], prefix: str, key: str | None) -> str:
    named = {prefix + name: value for name, value in weights.items()}
    torch.save({key: named} if key else named, file)
    return str(file)


@pytest.mark.parametrize('key', [None, 'state_dict'])
@pytest.mark.parametrize(
    ('given', 'expected'),
    [('backbone.', 'backbone.'), ('', None), ('module.backbone.', 'module.backbone.'), ('model.', 'model.')],
)
def test_finds_the_prefix(
    tmp_path: Path, weights: dict[str, Tensor], given: str, expected: str | None, key: str | None
) -> None:
    cfg = _cfg()
    file = _save(tmp_path / 'w.pth', weights, given, key)
    notes = replace_pretrained(cfg, file)
    prefix = {} if expected is None else dict(prefix=expected)
    assert cfg.model.backbone.init_cfg.to_dict() == dict(type='Pretrained', checkpoint=file, **prefix)
    assert f'{len(weights)} of {len(weights)} tensors' in notes[0]


@pytest.mark.parametrize('given', ['backbone.', '', 'model.'])
def test_mmengine_then_loads_it(tmp_path: Path, weights: dict[str, Tensor], given: str) -> None:
    from mmdet.registry import MODELS

    cfg = _cfg()
    replace_pretrained(cfg, _save(tmp_path / 'w.pth', weights, given, 'state_dict'))
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_keeps_a_prefix_that_fits(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    cfg = _cfg()
    cfg.model.backbone.init_cfg.prefix = 'teacher'
    both = {f'{prefix}.{name}': value for prefix in ('teacher', 'backbone') for name, value in weights.items()}
    replace_pretrained(cfg, _save(tmp_path / 'w.pth', both, '', None))
    assert cfg.model.backbone.init_cfg.prefix == 'teacher'


def test_other_initialisers_stay(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    cfg = _cfg()
    cfg.model.backbone.init_cfg = [dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint='old')]
    replace_pretrained(cfg, _save(tmp_path / 'w.pth', weights, '', None))
    assert [entry['type'] for entry in cfg.model.backbone.init_cfg] == ['Kaiming', 'Pretrained']


def test_drops_what_would_load_over_it(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    cfg = _cfg()
    cfg.model.pretrained = 'old'
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint='old')
    cfg.load_from = 'detector.pth'
    notes = replace_pretrained(cfg, _save(tmp_path / 'w.pth', weights, '', None))
    assert cfg.model.pretrained is None
    assert cfg.model.init_cfg is None
    assert any('detector.pth' in note for note in notes)


def test_reports_a_partial_match(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    some = {name: value for name, value in weights.items() if name.startswith('stages.')}
    notes = replace_pretrained(_cfg(), _save(tmp_path / 'w.pth', some, '', None))
    assert f'{len(some)} of {len(weights)} tensors' in notes[0]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'other.weight': torch.zeros(3)}, 'other.weight 3'),
        ({'model': {'x': torch.zeros(3)}}, 'no tensor'),
        ([1, 2], 'holds a list'),
        (b'not a checkpoint', 'cannot be read'),
        (None, 'is missing'),
    ],
)
def test_refuses_files(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / 'w.pth'
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(InputError, match=message):
        replace_pretrained(_cfg(), str(file))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(type='X'), 'no model.backbone'),
        (dict(type='X', a=dict(backbone=dict()), b=dict(backbone=dict())), 'model.a.backbone, model.b.backbone'),
    ],
)
def test_refuses_models(model: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace_pretrained(Config(dict(model=model)), 'x.pth')


def _vit(**backbone: Any) -> Config:
    cfg = Config.fromfile(olor_mm.cfg('olor_upernet_vit.py'))
    small = dict(img_size=(64, 64), embed_dims=24, num_layers=2, num_heads=3)
    cfg.merge_from_dict(dict(model=dict(backbone=backbone or small)))
    register_scope(cfg)
    return cfg


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.'])
@pytest.mark.parametrize('library', ['timm', 'mmpretrain', 'mmseg'])
def test_a_vit_of_any_library(tmp_path: Path, library: str, prefix: str) -> None:
    from mmpretrain.models import VisionTransformer as PretrainViT
    from mmseg.models.backbones import VisionTransformer as SegViT
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    arch = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96)
    state = {
        'timm': lambda: TimmViT(img_size=96, embed_dim=24, depth=2, num_heads=3),
        'mmpretrain': lambda: PretrainViT(arch=arch, img_size=96),
        'mmseg': lambda: SegViT(img_size=96, embed_dims=24, num_layers=2, num_heads=3, patch_bias=True),
    }[library]().state_dict()
    file = _save(tmp_path / 'w.pth', state, prefix, None)
    cfg = _vit()
    notes = replace_pretrained(cfg, file)
    # mmseg's own file, without a prefix, is loaded as it is.
    scheme = '' if library == 'mmseg' and not prefix else 'vit2mmseg:'
    assert cfg.model.backbone.init_cfg.to_dict() == dict(type='Pretrained', checkpoint=f'{scheme}{file}')
    # All but the position embeddings: 37 tokens in the file, 17 in the model, which resizes them.
    assert re.search(r'(\d+) of (\d+) tensors', notes[0]).groups() == ('27', '28')
    assert notes[1] == '--pretrained: pos_embed is (1, 37, 24) there, (1, 17, 24) in the model, which resizes it'


@pytest.mark.parametrize(('scheme', 'fine'), [('', False), ('vit2mmseg:', True)])
def test_a_vit_under_foreign_names_in_a_config(tmp_path: Path, scheme: str, fine: bool) -> None:
    """Full and Linear have no report on theta_0: without this they would train from random weights in silence."""
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    state = TimmViT(img_size=64, embed_dim=24, depth=2, num_heads=3).state_dict()
    cfg = _vit()
    file = _save(tmp_path / 'w.pth', state, '', None)
    cfg.model.backbone.init_cfg.checkpoint = scheme + file
    if fine:
        check_vit_names(cfg)
        return
    with pytest.raises(InputError, match=r'tensors of model\.backbone under its names') as error:
        check_vit_names(cfg)
    assert f'loads as: vit2mmseg:{file}' in str(error.value)
