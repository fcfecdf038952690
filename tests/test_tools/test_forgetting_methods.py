"""tools/forgetting.py on checkpoints of methods that change the model, or leave weights out."""

import copy
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from olor_mm.engine.trained_only import LEFT_OUT, _number, _print
from olor_mm.models import merge
from olor_mm.tooling import InputError
from olor_mm.tooling.forgetting import forgetting

pytest.importorskip('mmpretrain.models')

from tests.test_tools._forgetting import MAP, write_images

VIT = dict(
    type='VisionTransformer', img_size=16, patch_size=8,
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
)  # fmt: skip
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['olor_mm'], allow_failed_imports=False)
model = dict(
    type={type!r}, {method}data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3, to_rgb=False),
    backbone=dict({vit}, init_cfg=dict(type='Pretrained', checkpoint={pretrained!r}, prefix='backbone.')),
    head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=16), dict(type='PackInputs')]
test_dataloader = dict(
    batch_size=6, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root={data!r}, data_prefix='test', pipeline=pipeline),
)
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""
METHODS = {
    'LoRA': "dict(type='LoRA', rank=2, alpha=4)",
    'VPT': "dict(type='VPT', tokens=3, deep=True)",
    'BlockExpansion': "dict(type='BlockExpansion', blocks=1)",
    'BitFit': "dict(type='BitFit')",
    'DTL': "dict(type='DTL', rank=2, start_block=1)",
}


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: ''))
    monkeypatch.setattr('olor_mm.tooling.forgetting.tables.save_charts', lambda charts, out, name, title: None)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('methods')
    for part, count in (('train', 5), ('val', 4)):
        write_images(folder / 'up' / part, MAP, count, seed=count)
    write_images(folder / 'down' / 'test', ('one', 'two', 'six'), 4, seed=8)
    (folder / 'map.txt').write_text('\n'.join(f'{name} {number}' for name, number in MAP.items()))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = dict(type='VisionTransformerClsHead', num_classes=6, in_channels=16)
        model = MODELS.build(dict(type='ImageClassifier', backbone=VIT, head=head))
    _shake(model, lambda name: True)
    torch.save({'state_dict': model.state_dict()}, folder / 'pretrained.pth')
    return folder


def _shake(model, which, scale=0.1):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if which(name):
                p.add_(scale * torch.randn_like(p))


def _config(world, method):
    vit = ', '.join(f'{key}={value!r}' for key, value in VIT.items())
    if method == 'DTL':
        vit += ", out_type='avg_featmap', final_norm=False"
    text = CONFIG.format(
        type='olor_mm.Tuned' if method else 'ImageClassifier',
        method=f"of='ImageClassifier', method={METHODS[method]}, " if method else '',
        vit=vit, pretrained=str(world / 'pretrained.pth'), data=str(world / 'down'),
    )  # fmt: skip
    (world / f'{method or "plain"}.py').write_text(text)
    return world / f'{method or "plain"}.py'


def _trained(world, method, seed=1):
    """A model that was tuned from the pre-trained weights, and what is saved of it."""
    config = _config(world, method)
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(Config.fromfile(config).model))
    model.init_weights()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    _shake(model, lambda name: name in trained)
    return config, model.eval()


def _saved(world, model, name, left_out=False):
    state = dict(model.state_dict())
    if left_out:
        trained = {key for key, p in model.named_parameters() if p.requires_grad}
        left = [key for key in state if key not in trained]
        rows = torch.tensor([[_number(key), *_print(state[key])] for key in left], dtype=torch.float64)
        state = {**{key: value for key, value in state.items() if key in trained}, LEFT_OUT: rows}
    torch.save({'meta': {'epoch': 1}, 'state_dict': state}, world / f'{name}.pth')
    return world / f'{name}.pth'


def _images(folder):
    import cv2

    x, y = [], []
    for label, part in enumerate(sorted(folder.iterdir())):
        for file in sorted(part.iterdir()):
            x.append((cv2.resize(cv2.imread(str(file)), (16, 16)).astype(np.float32) - 100) / 50)
            y.append(label)
    return torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2), torch.tensor(y)


@torch.no_grad()
def _expected(world, model):
    x, labels = _images(world / 'down' / 'test')
    downstream = 100 * float((model(x, mode='tensor').argmax(1) == labels).double().mean())
    x, labels = _images(world / 'up' / 'val')
    head = torch.load(world / 'pretrained.pth')['state_dict']
    scores = model.extract_feat(x)[-1] @ head['head.layers.head.weight'].T + head['head.layers.head.bias']
    outputs = torch.tensor([MAP[name] for name in sorted(MAP)])
    right = scores.argmax(1) == outputs[labels], scores[:, outputs].argmax(1) == labels
    return downstream, {
        f'{name}/top1': 100 * float(each.double().mean()) for name, each in zip(('all', 'upstream'), right, strict=True)
    }


def _head(row):
    return {key: value for key, value in row['upstream']['head'].items() if 'top1' in key}


def _call(world, out, *argv):
    upstream = ('--upstream', world / 'up', '--class-map', world / 'map.txt', '--knn-k', '3')
    forgetting([str(each) for each in [*argv, '--out', out, *upstream]])
    return json.loads((out / 'table.json').read_text())


@pytest.mark.parametrize(
    ('method', 'left_out'),
    [('LoRA', False), ('LoRA', True), ('VPT', True), ('BlockExpansion', False), ('BitFit', True)],
)
def test_a_tuned_model_is_a_row(world, tmp_path, method, left_out):
    config, model = _trained(world, method)
    downstream, upstream = _expected(world, model)
    found = _call(world, tmp_path, config, _saved(world, model, method, left_out))
    (first, row) = found['rows']
    assert row['downstream']['accuracy/top1'] == pytest.approx(downstream)
    assert _head(row) == pytest.approx(upstream)
    before = _expected(world, _plain(world))[1]
    assert _head(first) == pytest.approx(before)
    given = row['discrepancy']
    if method in ('LoRA', 'BitFit'):
        merged = copy.deepcopy(model)
        if method == 'LoRA':
            merge(merged)
        theta, theta_0 = merged.state_dict(), torch.load(world / 'pretrained.pth')['state_dict']
        names = [name for name, _ in _plain(world).named_parameters() if name.startswith('backbone.')]
        offset, length = (
            torch.cat([value.double().flatten() for value in values]).norm()
            for values in ([theta[n] - theta_0[n] for n in names], [theta_0[n] for n in names])
        )
        assert given['overall'] == pytest.approx(float(offset / length), rel=1e-5)
        assert given['overall'] > 0
    else:
        # What was pre-trained is as it was. A new block begins as a copy, which it is compared with.
        assert sum(value > 0 for value in given['layers'].values()) == (method == 'BlockExpansion')
    assert given['added'] == (0 if method in ('BitFit', 'BlockExpansion') else _count(model))


def _plain(world):
    model = MODELS.build(copy.deepcopy(Config.fromfile(_config(world, None)).model))
    model.init_weights()
    return model.eval()


def _count(model):
    return sum(p.numel() for name, p in model.named_parameters() if name in model.tuning.added)


def test_rows_of_several_configs(world, tmp_path):
    """Each with its own model; the pre-trained one is said once."""
    plain, model = _trained(world, None)
    lora, other = _trained(world, 'LoRA')
    rows = ['--row', 'lora', lora, _saved(world, other, 'lora', left_out=True)]
    found = _call(world, tmp_path, plain, f'full={_saved(world, model, "full")}', *rows)
    assert [row['name'] for row in found['rows']] == ['pre-trained', 'full', 'lora']
    for row, each in zip(found['rows'][1:], (model, other), strict=True):
        assert _head(row) == pytest.approx(_expected(world, each)[1])


def test_a_head_behind_another_backbone_is_left_out(world, tmp_path):
    """DTL takes the last norm out of the backbone, and gives other features: the original head cannot read them."""
    config, model = _trained(world, 'DTL')
    found = _call_without_map(world, tmp_path, config, _saved(world, model, 'DTL'))
    assert found['rows'][1]['upstream'].keys() == {'knn'}
    assert any('the backbone leaves out 2 tensors' in note for note in found['notes'])


def _call_without_map(world, out, *argv):
    forgetting([str(each) for each in [*argv, '--out', out, '--upstream', world / 'up', '--knn-k', '3']])
    return json.loads((out / 'table.json').read_text())


@pytest.mark.parametrize('command', ['review', 'interpolate'])
@pytest.mark.parametrize('method', ['LoRA', 'VPT'])
def test_there_is_no_way_back_from_what_was_added(world, tmp_path, command, method):
    config, model = _trained(world, method)
    file = _saved(world, model, method)
    argv = [command, str(config), str(file), '--out', str(tmp_path)]
    with pytest.raises(InputError, match=r'(?s)parameters that its method put there.*tools/merge_lora\.py'):
        forgetting([*argv, *(['--val-share', '0.5'] if command == 'interpolate' else [])])


def test_other_pre_trained_weights_are_refused(world, tmp_path):
    config, model = _trained(world, 'LoRA')
    file = _saved(world, model, 'LoRA', left_out=True)
    torch.manual_seed(5)
    other = _plain(world)
    _shake(other, lambda name: True)
    torch.save({'state_dict': other.state_dict()}, tmp_path / 'other.pth')
    with pytest.raises(InputError, match='holds only what was trained'):
        forgetting([str(each) for each in (config, file, '--out', tmp_path, '--pretrained', tmp_path / 'other.pth')])
