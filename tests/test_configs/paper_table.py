"""The paper's numbers (arXiv 2401.10962), typed from it once: the configs and metafiles are held against them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# (iota_1, iota_2, gamma)
Levels = tuple[float, float, float]

VIT, CONVNEXT = 'vit-base-p16', 'convnext-base'
METHODS = ('full', 'linear', 'olor')

#: Data set, as file names have it -> its name, classes, epochs.
DATA = {
    'cifar100': ('CIFAR-100', 100, 50),
    'svhn': ('SVHN', 10, 50),
    'cub': ('CUB-200-2011', 200, 50),
    'stanford-cars': ('Stanford Cars', 196, 50),
    'places-lt': ('Places-LT', 365, 50),
    'ip102': ('IP102', 102, 50),
    'office-home': ('OfficeHome', 65, 30),
    'pacs': ('PACS', 7, 30),
}

#: Table 6: the levels.
TABLE_6: dict[str, dict[str, Levels]] = {
    VIT: {
        'cifar100': (5e-3, 0, 2),
        'svhn': (5e-3, 0, 2),
        'cub': (5e-2, 0, 2),
        'stanford-cars': (1e-2, 0, 4),
        'places-lt': (1e-1, 0, 4),
        'ip102': (1e-1, 0, 1),
        'office-home': (1e-2, 0, 1),
        'pacs': (1e-1, 0, 4),
    },
    CONVNEXT: {
        'cifar100': (5e-3, 0, 2),
        'svhn': (1e-4, 0, 2),
        'cub': (1e-2, 0, 2),
        'stanford-cars': (1e-4, 0, 2),
        'places-lt': (1e-2, 0, 4),
        'ip102': (5e-3, 0, 1),
        'office-home': (1, 0, 1),
        'pacs': (5e-2, 0, 4),
    },
}

#: Table 7: the levels for PACS by the pre-training of the ViT.
TABLE_7: dict[str, Levels] = {
    'in21k': (1e-2, 0, 2),
    'openclip-laion2b': (1e-2, 0, 2),
    'mae': (1e-2, 0, 2),
}

#: Table 2: top-1 accuracy of Full, Linear and OLOR, in percent.
TABLE_2: dict[str, dict[str, tuple[float, float, float]]] = {
    VIT: {
        'cifar100': (87.76, 72.50, 92.89),
        'svhn': (97.27, 58.79, 97.35),
        'cub': (81.34, 75.01, 84.84),
        'stanford-cars': (75.55, 38.03, 82.02),
        'places-lt': (31.59, 31.95, 38.07),
        'ip102': (74.09, 64.93, 75.34),
        'office-home': (84.39, 79.96, 89.05),
        'pacs': (87.79, 71.88, 94.38),
    },
    CONVNEXT: {
        'cifar100': (92.72, 81.70, 92.86),
        'svhn': (96.97, 69.21, 97.12),
        'cub': (88.59, 87.85, 89.47),
        'stanford-cars': (88.67, 50.21, 88.99),
        'places-lt': (38.61, 36.41, 39.36),
        'ip102': (75.01, 70.77, 75.44),
        'office-home': (91.78, 92.40, 92.59),
        'pacs': (95.51, 93.46, 96.63),
    },
}

#: Table 5: the same for PACS by pre-training.
TABLE_5: dict[str, tuple[float, float, float]] = {
    'in21k': (87.79, 71.88, 92.87),
    'openclip-laion2b': (47.17, 95.61, 98.10),
    'mae': (84.18, 36.72, 89.26),
}

#: Tables 3, 4 and 6, detection and segmentation: config -> levels, and the results by metric.
OTHER_TASKS: dict[str, tuple[Levels | None, dict[str, float]]] = {
    'baseline_maskrcnn_convnext': (None, {'box AP': 40.20, 'mask AP': 36.00}),
    'olor_maskrcnn_convnext': ((1e-2, 0, 2), {'box AP': 41.10, 'mask AP': 36.90}),
    'baseline_upernet_vit': (None, {'mIoU': 43.65}),
    'olor_upernet_vit': ((1e-4, 0, 1), {'mIoU': 44.62}),
}

#: Optimizer, its options, and the learning rates of full unfreezing and of a frozen backbone.
OPTIMIZERS = {
    VIT: (dict(type='Adam', betas=(0.9, 0.999), weight_decay=0.0), {'full': 1e-4, 'linear': 4e-4}),
    CONVNEXT: (dict(type='SGD', momentum=0.9, weight_decay=0.0), {'full': 1e-2, 'linear': 4e-2}),
}
BATCH_SIZE = {'full': 128, 'linear': 512}

IMAGE_SIZE = 224  # pixels
WARM_UP = 5  # epochs
WARM_UP_FROM = 0.01  # of the learning rate


@dataclass(frozen=True)
class Experiment:
    """One cell of Table 2 or 5, with all that the paper says of its settings."""

    method: str
    model: str
    pretraining: str
    data: str
    levels: Levels | None
    accuracy: float
    named: bool

    @property
    def regime(self) -> str:
        """OLOR trains everything, so that it has the batch and the learning rate of full unfreezing."""
        return 'linear' if self.method == 'linear' else 'full'

    @property
    def batch_size(self) -> int:
        return BATCH_SIZE[self.regime]

    @property
    def optimizer(self) -> dict:
        options, rates = OPTIMIZERS[self.model]
        return dict(options, lr=rates[self.regime])

    @property
    def name(self) -> str:
        """Name of the config, by mmpretrain's convention: 8 GPUs share the batch."""
        pretraining = f'_{self.pretraining}-pre' if self.named else ''
        return f'{self.method}_{self.model}{pretraining}_8xb{self.batch_size // 8}_{self.data}'


def _experiments() -> Iterator[Experiment]:
    for model, rows in TABLE_2.items():
        for data, accuracies in rows.items():
            for method, accuracy in zip(METHODS, accuracies, strict=True):
                levels = TABLE_6[model][data] if method == 'olor' else None
                yield Experiment(method, model, 'in21k', data, levels, accuracy, named=False)
    for pretraining, accuracies in TABLE_5.items():
        for method, accuracy in zip(METHODS, accuracies, strict=True):
            # Without OLOR, the two tables have the same supervised runs.
            if pretraining != 'in21k' or method == 'olor':
                levels = TABLE_7[pretraining] if method == 'olor' else None
                yield Experiment(method, VIT, pretraining, 'pacs', levels, accuracy, named=True)


#: Name of the config -> what the paper has for it.
EXPERIMENTS = {experiment.name: experiment for experiment in _experiments()}
