"""A classifier of fruit: a backbone of convolutions and a linear head."""

from __future__ import annotations

import torch
from mmengine.model import BaseModel, BaseModule
from torch import Tensor, nn

from .registry import MODELS


@MODELS.register_module()
class Trunk(BaseModule):
    """A stem and two blocks."""

    def __init__(self, width: int = 8, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x).relu()
        return x.mean(dim=(2, 3))


@MODELS.register_module()
class FruitClassifier(BaseModel):
    """Names the fruit."""

    def __init__(self, backbone: dict, num_classes: int) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(8, num_classes)

    def forward(
        self, inputs: list[Tensor], fruit: list[int], sample_idx: list[int], mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor]:
        scores = self.head(self.backbone(torch.stack(list(inputs))))
        if mode == 'loss':
            return {'loss': nn.functional.cross_entropy(scores, torch.as_tensor(fruit))}
        return scores
