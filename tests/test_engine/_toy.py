"""A small detector-like model and MMEngine runs of it: backbone with a stem and blocks, a head, random data."""

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn


@MODELS.register_module(force=True)
class ToyBackbone(BaseModule):
    """A stem and three blocks."""

    def __init__(self, width=8, init_cfg=None):
        super().__init__(init_cfg)
        self.patch_embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.norm(x)


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """A backbone and a new head, with dropout so that random numbers matter."""

    def __init__(self, init_cfg=None, backbone=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build({'type': 'ToyBackbone', **(backbone or {})})
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, target, mode='tensor'):
        out = self.head(self.dropout(self.backbone(torch.stack(list(inputs)))))
        return {'loss': (out - torch.stack(list(target))).square().mean()} if mode == 'loss' else out


@DATASETS.register_module(force=True)
class ToyDataset(BaseDataset):
    """24 pairs of random vectors."""

    def load_data_list(self):
        generator = torch.Generator().manual_seed(7)
        return [
            {'inputs': torch.randn(4, generator=generator), 'target': torch.randn(2, generator=generator)}
            for _ in range(24)
        ]

    def prepare_data(self, idx):
        data = self.get_data_info(idx)
        # Augmentation: random numbers of the process that loads the data.
        return {'inputs': data['inputs'] + 0.01 * torch.randn(4), 'target': data['target']}


def toy_config(work_dir, *, by_epoch=True, optimizer=None, rollback=None, workers=0, **overrides):
    """A config of 3 epochs of 6 iterations, or of 18 iterations."""
    wrapper = {'optimizer': optimizer or {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}}
    if rollback is not None:
        wrapper.update(constructor='olor_mm.OLOROptimWrapperConstructor', rollback=rollback)
    config = {
        'default_scope': 'mmengine',
        'model': {'type': 'ToyModel'},
        'train_dataloader': {
            'dataset': {'type': 'ToyDataset'},
            'sampler': {'type': 'DefaultSampler' if by_epoch else 'InfiniteSampler', 'shuffle': True},
            'batch_size': 4,
            'num_workers': workers,
            'collate_fn': {'type': 'pseudo_collate'},
        },
        'train_cfg': {'by_epoch': True, 'max_epochs': 3} if by_epoch else {'by_epoch': False, 'max_iters': 18},
        'optim_wrapper': wrapper,
        'param_scheduler': [
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 8},
            {'type': 'CosineAnnealingLR', 'T_max': 10, 'by_epoch': False, 'begin': 8, 'end': 18},
        ],
        'default_hooks': {
            'checkpoint': {'type': 'CheckpointHook', 'interval': 1 if by_epoch else 6, 'by_epoch': by_epoch},
            'logger': {'type': 'LoggerHook', 'interval': 2},
        },
        'custom_hooks': [{'type': 'olor_mm.ResumableRandomnessHook'}],
        'randomness': {'seed': 3},
        'work_dir': str(work_dir),
        'log_level': 'INFO',
        'vis_backends': [{'type': 'LocalVisBackend'}],
        'visualizer': {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]},
    }
    for key, value in overrides.items():
        if value is None:
            config.pop(key, None)
        elif isinstance(value, dict) and isinstance(config.get(key), dict):
            config[key] = {**config[key], **value}
        else:
            config[key] = value
    return Config(config)


_runs = iter(range(10**6))


def make_runner(config, **changes):
    """A Runner of its own name, so that runs of one process share no message hub."""
    config = config.copy()
    for key, value in changes.items():
        config[key] = value
    # Names of its own: MMEngine keeps message hubs and visualizers by name.
    config.experiment_name = f'toy_{next(_runs)}'
    config.visualizer.name = f'visualizer of {config.experiment_name}'
    torch.manual_seed(0)
    return Runner.from_cfg(config)


def weights(runner):
    return {k: v.clone() for k, v in runner.model.state_dict().items()}
