"""Several tasks on one backbone: outputs of the separate models, blocks that run once, one backbone in memory."""

import copy
import gc
import weakref

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from olor_mm.models import DTLGroup
from tests.test_models._dtl import DENSE_SWIN, DENSE_VIT, SWIN, VIT, build, images, shake

pytest.importorskip('mmpretrain.models')

BACKBONES = {
    'ViT': (VIT, (32, 24), 3),
    'Swin': (SWIN, (32, 48), 4),
    # Its first output comes before the streams part.
    'mmseg ViT': ({**DENSE_VIT, 'output_cls_token': True}, (32, 24), 3),
    'mmdet Swin': ({'type': 'mmdet.SwinTransformer', **DENSE_SWIN}, (32, 48), 5),
}


class Sum(torch.nn.Module):
    """A head of all outputs."""

    def __init__(self, model, seed):
        super().__init__()
        self.backbone = model.backbone
        self.scale = seed

    def forward(self, inputs, data_samples=None, mode='tensor'):
        def total(out):
            return sum(map(total, out)) if isinstance(out, (list, tuple)) else (out * out.cos()).flatten(1).sum(1)

        return total(self.backbone(inputs)) * self.scale


def tasks(name, *methods):
    backbone, _, start_block = BACKBONES[name]
    pytest.importorskip(f'{backbone["type"].split(".")[0]}.models')
    models = {}
    for seed, method in enumerate(methods or [{}, {'plus': True}, {'rank': 1}], start=1):
        model = build(backbone, {'type': 'DTL', 'start_block': start_block, **method}, channels=16)
        models[f'task {seed}'] = Sum(shake(model, seed).eval(), seed)
    return models


@pytest.mark.parametrize('name', BACKBONES)
def test_outputs_are_those_of_the_separate_models(name):
    models, x = tasks(name), images(*BACKBONES[name][1])
    with torch.no_grad():
        expected = {key: model(x) for key, model in models.items()}
    found = DTLGroup(copy.deepcopy(models))(x)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)


def test_tasks_may_start_at_other_blocks():
    models, x = tasks('Swin', {'start_block': 6}, {'start_block': 3, 'plus': True}, {'start_block': 1}), images(32, 32)
    with torch.no_grad():
        expected = {key: model(x) for key, model in models.items()}
    found = DTLGroup(models)(x)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)


def test_what_is_in_front_runs_once_and_nothing_is_kept():
    models, x = tasks('ViT'), images(32, 24)
    group = DTLGroup(models).train()
    runs = []
    for block in group.trunk.layers:
        block.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    out = group(x)
    assert runs == [2, 2, 2, 6]
    group(images(48, 64, batch=1))
    assert runs[4:] == [1, 1, 1, 3]
    assert not any(value.requires_grad for value in out.values())
    assert not any(module.training for module in group.modules())
    assert not group._seen


def test_one_backbone_for_all():
    models = tasks('ViT')
    backbones = {key: weakref.ref(model.backbone) for key, model in models.items()}
    sides = sum(p.numel() for model in models.values() for p in model.backbone.dtl.parameters())
    group = DTLGroup()
    for key in [*models]:
        group.add(key, models.pop(key))
    gc.collect()
    assert [ref() is not None for ref in backbones.values()] == [True, False, False]
    assert sum(p.numel() for p in group.parameters()) == sum(p.numel() for p in group.trunk.parameters()) + sides


def test_other_images_for_one_task_are_computed_by_themselves():
    models, x = tasks('ViT'), images(32, 24)
    changed = models['task 2']
    changed.register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
    with torch.no_grad():
        expected = {key: model(x) for key, model in models.items()}
    found = DTLGroup(models)(x)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)


def test_classifiers_predict_for_the_same_samples():
    from mmpretrain.structures import DataSample

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        models = {}
        for seed, classes in enumerate((3, 5)):
            torch.manual_seed(0)
            head = {'type': 'LinearClsHead', 'num_classes': classes, 'in_channels': 16}
            config = {'type': 'olor_mm.Tuned', 'of': 'ImageClassifier', 'backbone': VIT, 'head': head}
            model = MODELS.build({**config, 'method': {'type': 'DTL', 'start_block': 2}}).eval()
            models[str(classes)] = shake(model, seed)
    data = {'inputs': [torch.randint(256, (3, 32, 24))] * 2, 'data_samples': [DataSample(), DataSample()]}
    with torch.no_grad():
        expected = {key: model.test_step(copy.deepcopy(data)) for key, model in models.items()}
    found = DTLGroup(models).test_step(data)
    for key, samples in expected.items():
        for sample, other in zip(samples, found[key], strict=True):
            assert sample.pred_score.shape == (int(key),)
            torch.testing.assert_close(other.pred_score, sample.pred_score)
    assert not hasattr(data['data_samples'][0], 'pred_score')


def test_what_does_not_fit_is_said():
    models = tasks('ViT')
    other = tasks('ViT', {})['task 1']
    with torch.no_grad():
        other.backbone.layers[1].ffn.layers[1].bias[0] += 1e-9
    group = DTLGroup(models)
    with pytest.raises(ValueError, match=r"task 'x' has another backbone .* 'layers\.1\.ffn\.layers\.1\.bias' differs"):
        group.add('x', other)
    with pytest.raises(ValueError, match="there is a task 'task 2' already"):
        group.add('task 2', other)
    with pytest.raises(ValueError, match='has no side network: tune its model with method=dict'):
        group.add('x', Sum(build(VIT, 'Linear'), 1))
    with pytest.raises(ValueError, match=r'out_type is cls_token, not avg_featmap'):
        group.add('x', Sum(build({**VIT, 'out_type': 'cls_token'}, {'type': 'DTL', 'start_block': 2}), 1))
    with pytest.raises(ValueError, match='there are no tasks'):
        DTLGroup()(images(32, 24))
