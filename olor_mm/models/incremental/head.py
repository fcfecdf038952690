"""A classification head that grows with the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from olor_mm.registry import MODELS

from .split import TaskSplit, is_count

__all__ = ['IncrementalClsHead']


@MODELS.register_module()
class IncrementalClsHead(BaseModule):
    """A linear head for each task so far, in a classifier of mmpretrain's.

    Those of former tasks are frozen. The loss is that of the current task's logits alone; a prediction is over all
    classes seen. Checkpoints of the task before load into it: the new head keeps its initial values.

    Args:
        in_channels: The number of features.
        tasks: The labels of all tasks, in the order of the outputs, such as [[0, 2], [3, 1]]; ``tools/slca.py`` gives
            them. Labels are those of the data set, from 0 on, each once.
        task: Which one is the current, from 0 on. Defaults to None: the last.
        loss: Config of the loss. Defaults to the symmetric cross-entropy.
        norm_eps: The epsilon of a layer norm in front of the heads, which is new: for a backbone without its own last
            norm. Defaults to None: no norm.
        feature_scale: Once the heads are aligned, that of task t is given (1 + feature_scale (T - t)) f, T being the
            current task; SLCA++ has 0.02. Defaults to 0.
        init_cfg: Defaults to a truncated normal distribution of std 0.02, and biases of 0.

    Raises:
        ValueError: If an option cannot be right.

    Example:
        >>> head = dict(type='olor_mm.IncrementalClsHead', in_channels=768, norm_eps=1e-6)
    """

    aligned: Tensor
    order: Tensor
    sizes: Tensor
    seen: Tensor
    place: Tensor

    def __init__(
        self,
        in_channels: int,
        tasks: Sequence[Sequence[int]] | None = None,
        task: int | None = None,
        loss: Any = None,
        norm_eps: float | None = None,
        feature_scale: float = 0.0,
        init_cfg: Any = None,
    ) -> None:
        default = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)
        super().__init__(init_cfg=default if init_cfg is None else init_cfg)
        if tasks is None:
            raise ValueError(
                'model.head.tasks is not set: run the config with tools/slca.py, which sets it for each task, or give '
                'the labels of the tasks, such as tasks=[[0, 2], [3, 1]]'
            )
        if not is_count(in_channels):
            raise ValueError(f'model.head.in_channels={in_channels!r} must be the number of features')
        if not isinstance(feature_scale, (int, float)) or not 0 <= feature_scale < float('inf'):
            raise ValueError(f'model.head.feature_scale={feature_scale!r} must be a number of 0 or more, such as 0.02')
        if norm_eps is not None and (not isinstance(norm_eps, float) or not 0 < norm_eps < 1):
            raise ValueError(f'model.head.norm_eps={norm_eps!r} must be in (0, 1), such as 1e-6, or None for no norm')
        self.split = TaskSplit(tasks)
        self.task = self.split.num_tasks - 1 if task is None else task
        if not is_count(self.task, 0) or self.task >= self.split.num_tasks:
            raise ValueError(f'model.head.task={task!r} must be one of the tasks 0 to {self.split.num_tasks - 1}')
        self.in_channels, self.num_classes = in_channels, self.split.num_classes
        self.feature_scale = feature_scale
        self.loss_module = MMENGINE_MODELS.build(
            dict(type='olor_mm.SymmetricCrossEntropyLoss') if loss is None else loss
        )
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(in_channels, eps=norm_eps)
        labels = self.split.tasks[: self.task + 1]
        self.heads = nn.ModuleList([nn.Linear(in_channels, len(part)) for part in labels])
        self.heads[:-1].requires_grad_(False)
        self._make_tables()
        self._lacks_new: set[str] = set()
        self.register_load_state_dict_post_hook(_forgive_new_head)

    def _make_tables(self) -> None:
        seen, current = self.split.seen(self.task), self.split.tasks[self.task]
        #: Whether the heads are aligned; they are not while a task is learnt.
        self.register_buffer('aligned', torch.zeros((), dtype=torch.bool))
        # The split, so that a checkpoint of another one is refused.
        self.register_buffer('order', torch.tensor(self.split.seen(self.split.num_tasks - 1)))
        self.register_buffer('sizes', torch.tensor([len(task) for task in self.split.tasks]))
        self.register_buffer('seen', torch.tensor(seen), persistent=False)
        place = torch.full((self.num_classes,), -1)
        place[list(current)] = torch.arange(len(current))
        #: From label to output of the current task; -1 for those of other tasks.
        self.register_buffer('place', place, persistent=False)

    # ---------------------------------------------------------------- what mmpretrain's classifiers call

    def pre_logits(self, feats: Any) -> Tensor:
        """The features that the heads are given, (N, in_channels), from what the backbone or the neck gives."""
        features = feats[-1] if isinstance(feats, (tuple, list)) else feats
        if not isinstance(features, Tensor) or features.dim() != 2 or features.size(1) != self.in_channels:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f'model.head.in_channels={self.in_channels}: features (N, {self.in_channels}) are expected, but they '
                f'are {shape}; set in_channels, or a neck such as GlobalAveragePooling'
            )
        return self.norm(features)

    def forward(self, feats: Any) -> Tensor:
        """Logits of all classes, (N, num_classes), by label; -inf for those not seen yet."""
        return self.classify(self.pre_logits(feats))

    def classify(self, features: Tensor) -> Tensor:
        """Logits as :meth:`forward` gives them, from features."""
        parts = []
        for task, head in enumerate(self.heads):
            gap = self.feature_scale * (self.task - task)
            parts.append(head(features * (1 + gap * self.aligned.to(features.dtype)) if gap else features))
        seen = torch.cat(parts, dim=1)
        logits = seen.new_full((len(seen), self.num_classes), float('-inf'))
        logits[:, self.seen] = seen
        return logits

    def loss(self, feats: Any, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """The loss of the current task's logits.

        Raises:
            ValueError: If an image is of another task.
        """
        logits = self.heads[-1](self.pre_logits(feats))
        if 'gt_score' in data_samples[0]:
            # Soft labels, as mixup makes them.
            scores = torch.stack([sample.gt_score for sample in data_samples])
            target = scores[:, list(self.split.tasks[self.task])]
            foreign = (scores.sum(dim=1) - target.sum(dim=1)).abs() > 1e-4
        else:
            labels = torch.cat([sample.gt_label for sample in data_samples])
            target = self.place[labels]
            foreign = target < 0
        if bool(foreign.any()):
            raise ValueError(
                f'{int(foreign.sum())} of {len(foreign)} images of a batch are not of task {self.task}: give the data '
                'set its classes, as tools/slca.py does, with olor_mm.ClassSubset'
            )
        return {'loss': self.loss_module(logits, target, avg_factor=len(logits), **kwargs)}

    def predict(self, feats: Any, data_samples: Sequence[Any] | None = None) -> list[Any]:
        """Scores over all classes, and labels, put into the data samples."""
        scores = F.softmax(self(feats), dim=1)
        labels = scores.argmax(dim=1, keepdim=True).detach()
        if data_samples is None:
            from mmpretrain.structures import DataSample

            data_samples = [DataSample() for _ in range(len(scores))]
        for sample, score, label in zip(data_samples, scores, labels, strict=True):
            sample.set_pred_score(score).set_pred_label(label)
        return list(data_samples)

    # ---------------------------------------------------------------- weights

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it the heads may be changed: at its end they have their weights again."""
        before = {name: value.clone() for name, value in self.heads.state_dict().items()}
        aligned = self.aligned.clone()
        try:
            yield
        finally:
            self.heads.load_state_dict(before)
            self.aligned.copy_(aligned)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in ('order', 'sizes'):
            other, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(other, Tensor) and other.tolist() != own.tolist():
                raise ValueError(
                    f'the checkpoint is of another split of the classes into tasks: {name} is {other.tolist()}, here '
                    f'{own.tolist()}; take the seed and the sizes that it was made with'
                )
        new = {f'{prefix}heads.{self.task}.{name}' for name in ('weight', 'bias')}
        before = f'{prefix}heads.{self.task - 1}.weight' in state_dict
        self._lacks_new = new if before and not new & set(state_dict) else set()
        super()._load_from_state_dict(state_dict, prefix, *args)


def _forgive_new_head(head: nn.Module, incompatible_keys: Any) -> None:
    if isinstance(head, IncrementalClsHead):
        missing = incompatible_keys.missing_keys
        missing[:] = [key for key in missing if key not in head._lacks_new]
