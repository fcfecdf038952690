"""The parameters that are stepped: those of three models, with the levels that the shipped configs give them."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[2]
CONFIGS = {
    'ViT-B classifier': 'classification/olor_vit-base-p16_8xb16_pacs.py',
    'Mask R-CNN, ConvNeXt-B': 'olor_maskrcnn_convnext.py',
    'UperNet, ViT-B': 'olor_upernet_vit.py',
}
#: Widths of the stand-ins that show that the benchmark works.
SMALL = {'ViT-B classifier': 64, 'Mask R-CNN, ConvNeXt-B': 48, 'UperNet, ViT-B': 32}


@dataclass
class ParameterSet:
    """Trained parameters with gradients, and what all variants of a step share.

    Attributes:
        name: Of the model.
        params: All that are trained, in one list: an optimizer gets them as one group.
        levels: Those that are pulled, to the level above 0 that the config gives them.
        anchors: theta_0 of those.
        shared: Moments of the optimizers by their key and parameter. How long a step takes does not depend on their
            values, and so all variants work on the same memory.
    """

    name: str
    params: list[nn.Parameter]
    levels: dict[Tensor, float]
    anchors: dict[Tensor, Tensor]
    shared: dict[str, dict[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def pulled(self) -> list[Tensor]:
        return list(self.levels)

    def about(self) -> dict[str, int]:
        """Counts."""
        return {
            'parameters': sum(p.numel() for p in self.params),
            'tensors': len(self.params),
            'pulled': sum(p.numel() for p in self.levels),
            'pulled tensors': len(self.levels),
            'distinct levels': len(set(self.levels.values())),
        }


def load(name: str, small: bool, device: str) -> ParameterSet:
    """The parameters of a model with random weights and gradients."""
    torch.manual_seed(0)
    params, levels = _small(SMALL[name]) if small else _real(CONFIGS[name])
    moved = {p: nn.Parameter(p.detach().to(device)) for p in params}
    for p in moved.values():
        p.grad = torch.randn_like(p).mul_(1e-3)
    levels = {moved[p]: level for p, level in levels.items()}
    return ParameterSet(name, list(moved.values()), levels, {p: p.detach().clone() for p in levels})


def _real(config: str) -> tuple[list[nn.Parameter], dict[Tensor, float]]:
    cfg = Config.fromfile(REPO / 'configs' / config)
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return _levels(MODELS.build(cfg.model), cfg.optim_wrapper)


def _small(width: int) -> tuple[list[nn.Parameter], dict[Tensor, float]]:
    model: nn.Module = nn.Module()
    model.backbone = nn.Sequential(*[nn.Linear(width, width) for _ in range(4)])
    model.head = nn.Linear(width, 8)
    rollback = {'max_level': 0.1, 'power': 2}
    wrapper = {'constructor': 'olor_mm.OLOROptimWrapperConstructor', 'optimizer': {'type': 'SGD', 'lr': 0.1}}
    return _levels(model, {**wrapper, 'rollback': rollback})


def _levels(model: nn.Module, wrapper: dict) -> tuple[list[nn.Parameter], dict[Tensor, float]]:
    rollback = build_optim_wrapper(model, wrapper).rollback_session.rollback
    levels = dict(rollback.levels)
    rollback.detach()
    return [p for p in model.parameters() if p.requires_grad], levels


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take that do not share their memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
