"""A small real job for MMEngine's Runner: images that can be learned, a network with batch norm and dropout, faults."""

import hashlib
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional as F

EPOCHS, ITERATIONS = 4, 6
BEFORE = 'before_the_fault.json'

CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['olor_mm', '_faults.job'], allow_failed_imports=False)
model = dict(type='FaultsNet')
train_dataloader = dict(
    dataset=dict(type='FaultsImages'), sampler=dict(type='DefaultSampler', shuffle=True), batch_size=8, num_workers=0,
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(by_epoch=True, max_epochs=4)
val_dataloader = dict(
    dataset=dict(type='FaultsImages'), sampler=dict(type='DefaultSampler', shuffle=False), batch_size=24,
    collate_fn=dict(type='default_collate'),
)
val_cfg = dict()
val_evaluator = dict(type='FaultsAccuracy')
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
    rollback=dict(max_level=0.1, min_level=0.01, power=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=18, by_epoch=False, begin=6, end=24),
]
default_hooks = dict(
    checkpoint=dict(
        type='olor_mm.DurableCheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy', rule='greater'
    ),
    logger=dict(type='LoggerHook', interval=1),
)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='Fault')]
randomness = dict(seed=0)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


class Backbone(BaseModule):
    """A stem and three residual blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


@MODELS.register_module(force=True)
class FaultsNet(BaseModel):
    """A classifier of small images."""

    def __init__(self, width: int = 24, classes: int = 4) -> None:
        super().__init__()
        self.backbone = Backbone(width)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor, label: Tensor, mode: str = 'tensor') -> Any:
        scores = self.head(self.dropout(self.backbone(image).mean((2, 3))))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(scores, label))
        return list(scores.argmax(1) == label) if mode == 'predict' else scores


@DATASETS.register_module(force=True)
class FaultsImages(BaseDataset):
    """48 images of noise with a bright corner, which is the class.

    Args:
        fails_at: The loading that fails, counted from 1 in each process; None for none.
    """

    def __init__(self, fails_at: int | None = None, **options: Any) -> None:
        self.fails_at, self.loaded = fails_at, 0
        super().__init__(**options)

    def load_data_list(self) -> list[dict]:
        return [dict(index=index) for index in range(48)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        self.loaded += 1
        if self.loaded == self.fails_at:
            raise OSError(5, 'Input/output error', f'image_{idx}.jpg')
        generator = torch.Generator().manual_seed(idx)
        image, label = torch.randn(3, 12, 12, generator=generator), idx % 4
        image[:, 6 * (label // 2) :, 6 * (label % 2) :] += 1
        return dict(image=image + 0.1 * torch.randn(3, 12, 12), label=label)


@METRICS.register_module(force=True)
class FaultsAccuracy(BaseMetric):
    """Share of right answers."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(right) for right in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(accuracy=sum(results) / len(results))


@HOOKS.register_module(force=True)
class Fault(Hook):
    """Breaks the run at a given point, after noting which checkpoints are complete.

    Args:
        kind: 'SIGKILL', 'SIGTERM', 'SIGINT': the signal, after an iteration; 'image of nan', 'image of inf': in an
            iteration; 'killed write', 'short write': a limit on the size of files (RLIMIT_FSIZE) ends the process, or
            the write, in the middle of a checkpoint; 'full': the file system of the checkpoints is filled; 'read-only':
            it is remounted so; 'no folder': a file takes the place of the checkpoints' folder. None for no fault.
        at: The iteration, or the number of the save, from 1.
        size: Bytes that can still be written. Defaults to 0.
        rank: The process that breaks. Defaults to 0.
        folder: Where the checkpoints are, if not in the work dir.
    """

    priority = 'LOWEST'

    def __init__(
        self, kind: str | None = None, at: int = 0, size: int = 0, rank: int = 0, folder: str | None = None
    ) -> None:
        self.kind, self.at, self.size, self.rank, self.folder = kind, at, size, rank, folder
        self.saves = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if str(self.kind).startswith('image') and runner.iter + 1 == self.at:
            self._note(runner)
            data_batch['image'][0].fill_(float(str(self.kind).split()[-1]))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if str(self.kind).startswith('SIG') and runner.iter + 1 == self.at and runner.rank == self.rank:
            self._note(runner)
            os.kill(os.getpid(), getattr(signal, str(self.kind)))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.saves += 1
        if self.saves != self.at or str(self.kind).startswith(('None', 'image', 'SIG')):
            return
        self._note(runner)
        folder = Path(self.folder or runner.work_dir)
        if self.kind in ('killed write', 'short write'):
            # The default action of the signal is to end the process: a kill inside write(2). Python ignores it, and
            # then write(2) fails once the limit is reached.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.kind == 'killed write' else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
        elif self.kind == 'full':
            state = os.statvfs(folder)
            (folder / 'filler').write_bytes(bytes(max(state.f_bavail * state.f_frsize - self.size, 0)))
        elif self.kind == 'read-only':
            from _faults.mounts import make_read_only

            make_read_only(folder)
        elif self.kind == 'no folder':
            folder.rename(folder.with_name(folder.name + '_moved_away'))
            folder.write_text('a file')

    def _note(self, runner: Runner) -> None:
        folder = Path(self.folder or runner.work_dir)
        text = json.dumps(digests(folder))
        Path(runner.work_dir, BEFORE).write_text(text)


@HOOKS.register_module(force=True)
class Slow(Hook):
    """Gives whoever waits for a line of the log the time to read it; weights do not depend on it."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        time.sleep(0.1)


def digests(folder: Path) -> dict[str, str]:
    """Name to SHA-256 of every checkpoint under its final name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob('*.pth'))}
