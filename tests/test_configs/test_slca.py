"""The class-incremental configs: rates, what is trained, schedule and alignment are those of SLCA and SLCA++."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

import olor_mm
from olor_mm.models.incremental import Alignment, TaskSplit
from olor_mm.tooling.incremental.plan import IncrementalSettings, check_config, statistics_loader, task_config
from olor_mm.tooling.settings import register_scope

CONFIGS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / 'configs' / 'slca').glob('*.py'))


@pytest.fixture(autouse=True)
def _scope():
    register_scope(Config(dict(default_scope='mmpretrain')))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def load(name, task):
    cfg = Config.fromfile(olor_mm.cfg(f'slca/{name}.py'))
    settings = IncrementalSettings.from_cfg(cfg.incremental)
    check_config(cfg, settings)
    return task_config(cfg, settings, task, Path('work')), settings


def build(cfg):
    from mmpretrain.registry import MODELS

    cfg.model.backbone.init_cfg = None
    # Names and rates are all that matters.
    with torch.device('meta'):
        return MODELS.build(copy.deepcopy(cfg.model))


def rate(name, plus, task):
    """The learning rate that the paper gives a parameter; None where it is not trained."""
    if name.startswith('head.heads.'):
        return 0.01 if name.startswith(f'head.heads.{task}.') else None
    if not plus:
        return 0.01 * 0.01
    if '.lora.' in name:
        return 0.01 * (0.1 if task else 0.5)
    return 0.01 * 0.1 if re.search(r'\.ln\d|head\.norm|bias|cls_token', name) else None


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('task', [0, 2])
def test_rates(name, task):
    cfg, _ = load(name, task)
    model, plus = build(cfg), 'plus-plus' in name
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {id(p): group['lr'] for group in groups for p in group['params']}
    for parameter, p in model.named_parameters():
        wanted = rate(parameter, plus, task)
        assert p.requires_grad == (wanted is not None), parameter
        assert found.get(id(p)) == pytest.approx(wanted), parameter
    assert {(group['momentum'], group['weight_decay']) for group in groups} == {(0.9, 5e-4)}
    adapted = {parameter for parameter, _ in model.named_parameters() if parameter.endswith('.lora.a')}
    assert len(adapted) == (36 if plus else 0)
    assert isinstance(model.head.norm, nn.LayerNorm)
    assert not hasattr(model.backbone, 'ln1')
    assert [len(linear.weight) for linear in model.head.heads] == [10] * (task + 1)


@pytest.mark.parametrize('name', CONFIGS)
def test_settings(name):
    cfg, settings = load(name, 1)
    plus, cifar = 'plus-plus' in name, 'cifar' in name
    assert settings.split == TaskSplit.make(100 if cifar else 50, 10 if cifar else 5, seed=1993)
    assert settings.options == Alignment(scaling='sample' if plus else 'mean')
    assert cfg.model.head.get('feature_scale', 0) == (0.02 if plus else 0)
    assert cfg.load_from == 'work/task_0/task.pth'
    assert cfg.train_dataloader.dataset.classes == list(settings.split.tasks[1])
    assert cfg.test_dataloader.dataset.classes == list(settings.split.seen(1))
    assert cfg.get('val_dataloader') is None
    if cifar:
        assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (128, 20)
    # The statistics: training images of this task, transforms of the test, in order.
    loader = statistics_loader(cfg)
    inner, test = loader.dataset.dataset, cfg.test_dataloader.dataset.dataset
    assert (inner.get('split', 'train'), inner.get('data_prefix', 'train')) == ('train', 'train')
    assert inner.pipeline == test.pipeline != cfg.train_dataloader.dataset.dataset.pipeline
    assert loader.dataset.classes == list(settings.split.tasks[1])
    assert loader.dataset.test_mode
    assert (loader.sampler.shuffle, loader.sampler.round_up) == (False, False)


@pytest.mark.parametrize('name', CONFIGS)
def test_schedule(name):
    cfg, _ = load(name, 0)
    epochs = cfg.train_cfg.max_epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    schedulers = [PARAM_SCHEDULERS.build(each, default_args=dict(optimizer=optimizer)) for each in cfg.param_scheduler]
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    last = 18 if epochs == 20 else 4
    wanted = [0.01 if epoch < last else 0.001 for epoch in range(epochs)]
    if 'plus-plus' in name:
        wanted = [1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    assert rates == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize('name', ['slca', 'slca-plus-plus'])
def test_the_document_counts_right(name):
    cfg, _ = load(f'{name}_vit-base-p16_10x10_cifar100', 0)
    count = sum(p.numel() for p in build(cfg).parameters() if p.requires_grad)
    text = (Path(__file__).resolve().parents[2] / 'docs' / 'methods.md').read_text()
    assert f'<!-- {name} -->{count:,}<!-- -->' in text
