"""tools/predict_tasks.py: what it says of images is what the tasks' models say one by one."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope

from olor_mm.tooling import InputError
from olor_mm.tooling.predict_tasks import predict_tasks
from tests.test_models._dtl import VIT, shake

pytest.importorskip('mmpretrain.models')

CONFIG = """
default_scope = 'mmpretrain'
model = dict(type='olor_mm.Tuned', of='ImageClassifier', method=dict(type='DTL', start_block=2), backbone={backbone!r},
             head=dict(type='LinearClsHead', num_classes={classes}, in_channels=16))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(24, 32), interpolation={how!r}), dict(type='PackInputs'),
]))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images').mkdir()
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / f'{i}.png'), image)
    return tmp_path


def task(folder, name, classes, how='bilinear', seed=0):
    """A task's options, and its model."""
    config = folder / f'{name}.py'
    config.write_text(CONFIG.format(backbone=VIT, classes=classes, how=how))
    torch.manual_seed(seed)
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = shake(MODELS.build(cfg.model), classes).eval()
    meta = {'dataset_meta': {'classes': tuple('abcdefg'[:classes])}} if classes > 2 else {}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / f'{name}.pth')
    return ['--task', name, str(config), str(folder / f'{name}.pth')], model, cfg


def test_it_predicts_what_the_models_predict(folder):
    tasks = [task(folder, 'two', 2), task(folder, 'five', 5)]
    out = folder / 'new' / 'found.json'
    options = [option for given, _, _ in tasks for option in given]
    predict_tasks([str(folder / 'images'), *options, '--out', str(out), '--batch-size', '2', '--device', 'cpu'])
    found = json.loads(out.read_text())
    files = sorted((folder / 'images').iterdir())
    assert list(found) == [str(file) for file in files]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(tasks[0][2].test_dataloader.dataset.pipeline)
    data = pseudo_collate([pipeline({'img_path': str(file)}) for file in files])
    for name, (_, model, _) in zip(('two', 'five'), tasks, strict=True):
        with torch.no_grad():
            scores = model.test_step(copy.deepcopy(data))
        for file, sample in zip(files, scores, strict=True):
            said = found[str(file)][name]
            assert said['label'] == int(sample.pred_score.argmax())
            assert said['score'] == pytest.approx(float(sample.pred_score.max()), rel=1e-5)
            assert said.get('class') == ('abcde'[said['label']] if name == 'five' else None)


def test_what_cannot_be_is_said(folder):
    images, first = str(folder / 'images'), task(folder, 'first', 2)[0]
    with pytest.raises(InputError, match='is no image and no folder with images'):
        predict_tasks([str(folder / 'nowhere'), *first])
    with pytest.raises(InputError, match='prepare test images in several ways'):
        predict_tasks([images, *first, *task(folder, 'other', 3, how='bicubic')[0]])
    with pytest.raises(InputError, match=r"--task strange: .* has another backbone than 'first'"):
        predict_tasks([images, *first, *task(folder, 'strange', 3, seed=1)[0]])
    with pytest.raises(InputError, match=r'first\.pth does not fit the model of .*more\.py'):
        predict_tasks([images, *task(folder, 'more', 3)[0][:3], str(folder / 'first.pth')])
    with pytest.raises(InputError, match='--batch-size 0 must be 1 at least'):
        predict_tasks([images, *first, '--batch-size', '0'])
