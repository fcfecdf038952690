"""Pictures of fruit, made from nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from mmengine.dataset import BaseDataset

from .registry import DATASETS


@DATASETS.register_module()
class Fruit(BaseDataset):
    """Eight squares of noise; the brightness tells the fruit."""

    METAINFO: ClassVar = dict(classes=('apple', 'pear'))

    def load_data_list(self) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(1)
        return [dict(inputs=torch.rand(3, 16, 16, generator=generator) + i % 2, fruit=i % 2) for i in range(8)]
