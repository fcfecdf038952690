"""Every classification config against the paper's tables: what is built from it, not only what it says."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.fileio import load
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

import olor_mm
from olor_mm.tooling.settings import register_scope
from tests.test_configs.paper_table import (
    CONVNEXT,
    DATA,
    EXPERIMENTS,
    IMAGE_SIZE,
    METHODS,
    OTHER_TASKS,
    TABLE_6,
    TABLE_7,
    VIT,
    WARM_UP,
    WARM_UP_FROM,
    Experiment,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CLASSIFICATION = CONFIGS / 'classification'
GPUS = 8  # that the names of the configs count with
MAX_LINES = 12  # of a config: what it shares with others is in configs/_base_
CONSTRUCTOR = 'olor_mm.OLOROptimWrapperConstructor'

#: A parameter of each layer that is looked at, and its layer as the paper's text counts: stem 0, last block n.
DEPTH = {VIT: 12, CONVNEXT: 36}
LAYERS = {
    VIT: {
        'cls_token': 0,
        'pos_embed': 0,
        'patch_embed.projection.weight': 0,
        'layers.0.attn.qkv.weight': 1,
        'layers.5.ffn.layers.1.bias': 6,
        'layers.11.ln2.weight': 12,
        'ln1.weight': 12,
    },
    CONVNEXT: {
        'downsample_layers.0.0.weight': 0,
        'stages.0.0.gamma': 1,
        'stages.2.11.depthwise_conv.weight': 18,
        'stages.3.2.pointwise_conv2.bias': 36,
        'norm3.weight': 36,
    },
}


@cache
def _load(name: str) -> Config:
    """A config, which no test may change."""
    return Config.fromfile(olor_mm.cfg(f'classification/{name}.py'))


def _full(experiment: Experiment) -> str:
    """Name of the plain fine-tuning that an experiment is a variant of."""
    same = [
        other
        for other in EXPERIMENTS.values()
        if other.method == 'full'
        and (other.model, other.pretraining, other.data) == (experiment.model, experiment.pretraining, experiment.data)
    ]
    (full,) = same
    return full.name


@pytest.fixture(scope='module', params=EXPERIMENTS.values(), ids=EXPERIMENTS)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return request.param


@pytest.fixture(scope='module')
def cfg(experiment: Experiment) -> Config:
    return _load(experiment.name)


@pytest.fixture(autouse=True, scope='module')
def _scope() -> Iterator[None]:
    register_scope(Config(dict(default_scope='mmpretrain')))
    # The scope of another test's Runner may still be the current one.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='module')
def model(experiment: Experiment, cfg: Config) -> nn.Module:
    from mmpretrain.registry import MODELS

    # Names and shapes are all that matters. ConvNeXt reads numbers back while it is built, which meta has none of.
    with torch.device('meta' if experiment.model == VIT else 'cpu'):
        # A classifier writes defaults into the config that it is built from.
        return MODELS.build(copy.deepcopy(cfg.model)).train()


def test_every_cell_of_the_tables_has_its_config_and_nothing_else_is_there() -> None:
    # Those of other methods are held against their own papers, in tests/test_models.
    found = {path.stem for path in CLASSIFICATION.glob('*.py')}
    assert {name for name in found if name.split('_')[0] in METHODS} == set(EXPERIMENTS)


def test_levels_for_other_recipes_are_the_same() -> None:
    """``configs/_base_/rollback.py`` repeats the tables by data set and model."""
    shared = Config.fromfile(CONFIGS / '_base_' / 'rollback.py').to_dict()
    short = {VIT: 'vit', CONVNEXT: 'convnext'}
    wanted = {
        f'{data.replace("-", "_")}_{short[model]}': levels
        for model, rows in TABLE_6.items()
        for data, levels in rows.items()
    }
    wanted |= {f'pacs_vit_{pretraining.split("-")[0]}': levels for pretraining, levels in TABLE_7.items()}
    wanted |= {'coco_convnext': OTHER_TASKS['olor_maskrcnn_convnext'][0]}
    wanted |= {'ade20k_vit': OTHER_TASKS['olor_upernet_vit'][0]}
    assert {name: tuple(part['rollback'].values()) for name, part in shared.items()} == {
        f'rollback_{name}': levels for name, levels in wanted.items()
    }
    assert {tuple(part['rollback']) for part in shared.values()} == {('max_level', 'min_level', 'power')}


def test_is_short(experiment: Experiment) -> None:
    assert len((CLASSIFICATION / f'{experiment.name}.py').read_text().splitlines()) <= MAX_LINES


def test_optimizer_is_the_papers(experiment: Experiment, cfg: Config, model: nn.Module) -> None:
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    wanted = experiment.optimizer
    assert type(optimizer).__name__ == wanted.pop('type')
    for group in optimizer.param_groups:
        assert {option: group[option] for option in wanted} == wanted
        # The authors' script leaves these at torch's defaults.
        assert not any(group.get(option) for option in ('dampening', 'nesterov', 'amsgrad'))
    trained = {id(p) for group in optimizer.param_groups for p in group['params'] if p.requires_grad}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_batch_epochs_and_classes_are_the_papers(experiment: Experiment, cfg: Config, model: nn.Module) -> None:
    _, classes, epochs = DATA[experiment.data]
    assert cfg.train_dataloader.batch_size * GPUS == experiment.batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=experiment.batch_size)
    assert cfg.train_cfg.max_epochs == epochs
    assert model.head.fc.out_features == classes


def test_learning_rate_warms_up_and_falls_to_zero_by_iteration(experiment: Experiment, cfg: Config) -> None:
    length, (_, _, epochs) = 7, DATA[experiment.data]
    settings = experiment.optimizer
    peak = settings['lr']
    optimizer = getattr(torch.optim, settings.pop('type'))([nn.Parameter(torch.zeros(1))], **settings)
    schedulers = [
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer, epoch_length=length))
        for scheduler in cfg.param_scheduler
    ]
    rates = []
    for _ in range(epochs * length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    warm_up = WARM_UP * length
    rise = [WARM_UP_FROM + (1 - WARM_UP_FROM) * step / (warm_up - 1) for step in range(warm_up)]
    steps = epochs * length - warm_up
    fall = [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert rates == pytest.approx([peak * share for share in rise + fall], rel=1e-6)
    assert (rates[0], max(rates), rates[warm_up]) == pytest.approx((0.01 * peak, peak, peak))
    assert rates[-1] < 1e-3 * peak
    # And after the last iteration nothing is left, but for the rounding that steps on steps gather.
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0, abs=1e-4 * peak)


def test_levels_are_the_papers(experiment: Experiment, cfg: Config, model: nn.Module) -> None:
    if experiment.levels is None:
        assert 'rollback' not in cfg.optim_wrapper
        return
    iota_1, iota_2, gamma = experiment.levels
    session = build_optim_wrapper(model, cfg.optim_wrapper).rollback_session
    found = {name: session.levels[p] for name, p in model.named_parameters() if p in session.levels}
    assert set(found) == {name for name, _ in model.named_parameters() if name.startswith('backbone.')}
    layers = dict(LAYERS[experiment.model], **({'pre_norm.weight': 0} if 'clip' in experiment.pretraining else {}))
    n = DEPTH[experiment.model]
    wanted = {f'backbone.{k}': iota_2 + (1 - i / n) ** gamma * (iota_1 - iota_2) for k, i in layers.items()}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)


def test_differs_from_full_in_its_method_alone(experiment: Experiment, cfg: Config) -> None:
    own, full = cfg.to_dict(), _load(_full(experiment)).to_dict()
    if experiment.method == 'olor':
        assert own['optim_wrapper'].pop('constructor') == CONSTRUCTOR
        assert set(own['optim_wrapper'].pop('rollback')) == {'max_level', 'min_level', 'power'}
    if experiment.method == 'linear':
        # Their values are tested by what is built from them.
        for tree in (own, full):
            for key in ('frozen_stages', 'norm_cfg'):
                tree['model']['backbone'].pop(key, None)
            del tree['train_dataloader']['batch_size'], tree['optim_wrapper']['optimizer']['lr'], tree['auto_scale_lr']
    assert own == full


def test_trains_everything_or_the_head_alone(experiment: Experiment, model: nn.Module) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    everything = {name for name, _ in model.named_parameters()}
    assert trained == ({'head.fc.weight', 'head.fc.bias'} if experiment.method == 'linear' else everything)


def test_nothing_is_dropped_at_random(model: nn.Module) -> None:
    """So that training and evaluation see the same network, frozen or not."""
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    rates += [module.drop_prob for module in model.modules() if type(module).__name__ == 'DropPath']
    assert not any(rates)
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _statistics(experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of the pre-training, in 0..255, as timm has them."""
    from timm.data import constants

    if experiment.pretraining == 'openclip-laion2b':
        both = constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD
    elif experiment.model == VIT and experiment.pretraining == 'in21k':
        both = constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD
    else:
        both = constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD
    mean, std = (torch.tensor(value) * 255 for value in both)
    return mean, std


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_images_reach_the_model_in_size_colour_and_scale(
    experiment: Experiment, cfg: Config, split: str, tmp_path: Path
) -> None:
    from mmpretrain.registry import MODELS

    colour = (200, 100, 10)  # red, green, blue
    image = np.empty((90, 70, 3) if experiment.data not in ('cifar100', 'svhn') else (32, 32, 3), np.uint8)
    image[:] = colour
    sample: dict[str, Any] = dict(img=image, gt_label=1)
    if experiment.data not in ('cifar100', 'svhn'):
        file = tmp_path / 'image.png'
        cv2.imwrite(str(file), image[..., ::-1])
        sample = dict(img_path=str(file), gt_label=1)
    packed = Compose(cfg[f'{split}_dataloader'].dataset.pipeline)(sample)
    preprocessor = MODELS.build(dict(cfg.model.data_preprocessor, type='ClsDataPreprocessor'))
    batch = preprocessor(dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']]))['inputs']
    mean, std = _statistics(experiment)
    wanted = ((torch.tensor(colour) - mean) / std).reshape(1, 3, 1, 1).expand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    torch.testing.assert_close(batch, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize('data', DATA)
def test_flips_photographs_but_no_digits(data: str) -> None:
    cfg = _load(next(name for name in EXPERIMENTS if name.endswith(f'_{data}')))
    kinds = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert ('RandomFlip' in kinds) == (data != 'svhn')
    for split in ('val', 'test'):
        assert not any('Random' in step['type'] for step in cfg[f'{split}_dataloader'].dataset.pipeline)


def test_validation_never_sees_training_images_nor_testing_validation_where_both_exist(
    experiment: Experiment, cfg: Config
) -> None:
    loaders = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')]
    own_val = experiment.data in ('places-lt', 'ip102')
    assert [loader.split for loader in loaders] == ['train', 'val' if own_val else 'test', 'test']
    # Folds and the like are the same in all three.
    assert len({str({**loader, 'split': None, 'pipeline': None}) for loader in loaders}) == 1


def test_can_be_resumed_exactly(cfg: Config) -> None:
    assert 'olor_mm.ResumableRandomnessHook' in [hook['type'] for hook in cfg.custom_hooks]
    assert cfg.randomness.seed is not None
    assert not any(cfg[f'{split}_dataloader'].persistent_workers for split in ('train', 'val', 'test'))


def _zoo(family: str, name: str) -> str:
    import mmpretrain

    file = Path(mmpretrain.__file__).parent / '.mim' / 'configs' / family / 'metafile.yml'
    if not file.is_file():
        pytest.skip('this installation of mmpretrain carries no configs')
    (address,) = [entry['Weights'] for entry in load(file)['Models'] if entry['Name'] == name]
    # The fork has the same files at a place of its own.
    return address.replace('https://mmassets.onedl.ai/', 'https://download.openmmlab.com/')


def test_weights_are_those_that_mmpretrain_publishes() -> None:
    convnext = _load('olor_convnext-base_8xb16_pacs').model.backbone.init_cfg
    detection = Config.fromfile(olor_mm.cfg('olor_maskrcnn_convnext')).model.backbone.init_cfg
    assert convnext == detection
    assert convnext.checkpoint == _zoo('convnext', 'convnext-base_3rdparty_in21k')
    mae = _load('olor_vit-base-p16_mae-pre_8xb16_pacs').model.backbone.init_cfg
    wanted = _zoo('mae', 'mae_vit-base-p16_8xb512-amp-coslr-1600e_in1k')
    assert mae == dict(type='Pretrained', checkpoint=wanted, prefix='backbone.')
