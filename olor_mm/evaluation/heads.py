"""The head that a model was pre-trained with, out of the file of its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..engine.vit_checkpoints import plain_address
from ._checks import check_labels, is_count

__all__ = ['OriginalHead', 'head_weights', 'original_head', 'read_file']

_ROWS = 1 << 12

#: Where the last layer is: in mmpretrain's files (ViT, others), in those of timm and torchvision.
_LAST = ('head.layers.head', 'head.fc', 'head.head', 'head.l', 'head', 'fc', 'classifier', 'heads.head')
#: The hidden layer of mmpretrain's ViT heads, which a tanh follows.
_HIDDEN = 'head.layers.pre_logits'


class OriginalHead(nn.Module):
    """Logits from the features (N, d) that the head of a model is given.

    Args:
        layers: What is called with them.
        in_features: d.
        num_classes: How many logits there are.
        packed: Whether ``layers`` takes them as mmpretrain's heads do, in a tuple. Defaults to False.
    """

    def __init__(self, layers: nn.Module, in_features: int, num_classes: int, packed: bool = False) -> None:
        super().__init__()
        self.layers, self.packed = layers.eval(), packed
        self.in_features, self.num_classes = in_features, num_classes

    def forward(self, features: Tensor) -> Tensor:
        """(N, C) from (N, d)."""
        logits: Tensor = self.layers((features,) if self.packed else features)
        return logits

    @torch.no_grad()
    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """How many classes come before the right one, (N,): 0 where the prediction is right.

        Of equal logits the lower class comes first.

        Args:
            features: (N, d), on the CPU.
            labels: (N,), the right outputs.

        Raises:
            ValueError: If features or labels do not fit the head.
        """
        if features.size(1) != self.in_features:
            raise ValueError(
                f'the model gives {features.size(1)} features, but the original head takes {self.in_features}: name '
                'its file with checkpoint=..., or set head=False'
            )
        labels = check_labels('labels for the original head', labels, len(features), self.num_classes)
        classes, found = torch.arange(self.num_classes), [labels[:0]]
        for part, label in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            logits = self(part)
            own = logits.gather(1, label[:, None])
            found.append(((logits > own) | ((classes < label[:, None]) & (logits == own))).sum(dim=1))
        return torch.cat(found)


def read_file(source: str) -> dict[str, Tensor]:
    """All tensors of a file of pre-trained weights, under its own names.

    Args:
        source: What MMEngine loads: a path or an address, with or without a scheme that translates names.
    """
    found: Any = CheckpointLoader.load_checkpoint(plain_address(source), map_location='cpu', logger='silent')
    for key in ('state_dict', 'model'):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    return {str(name).removeprefix('module.'): value for name, value in found.items() if isinstance(value, Tensor)}


def head_weights(weights: Mapping[str, Tensor], cfg: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Those of a file's weights that its head is made of.

    Args:
        weights: Of the whole model, in the names of mmpretrain, timm or torchvision.
        cfg: As of :func:`original_head`.

    Raises:
        ValueError: If there are none.
    """
    names = (_HIDDEN, *_LAST)
    own = [name for name in weights if (name.startswith('head.') if cfg else name.rpartition('.')[0] in names)]
    if not own or (cfg is None and _last(weights) is None):
        raise ValueError(
            f'no head is among the {len(weights)} tensors of the pre-trained file: name a file that has one with '
            'checkpoint=..., or give its config with head=dict(type=...), or set head=False'
        )
    return {name: weights[name].clone() for name in own}


def original_head(weights: Mapping[str, Tensor], cfg: Mapping[str, Any] | None = None) -> OriginalHead:
    """The head in a file's weights.

    Args:
        weights: Of the whole model, in the names of mmpretrain, timm or torchvision.
        cfg: Config of the head, whose weights are below 'head.' in the file. Defaults to None: a linear layer, after
            the hidden one of a ViT where there is one.

    Raises:
        ValueError: If there is none, or it does not fit ``cfg``.
    """
    own = head_weights(weights, cfg)
    if cfg is not None:
        return _from_config(own, cfg)
    last = str(_last(own))
    layers = [_linear(own, last)]
    if last == _LAST[0] and f'{_HIDDEN}.weight' in own:
        layers.insert(0, _linear(own, _HIDDEN))
    between = [part for layer in layers for part in (layer, nn.Tanh())][:-1]
    return OriginalHead(nn.Sequential(*between), layers[0].in_features, layers[-1].out_features)


def _from_config(weights: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> OriginalHead:
    head = MODELS.build(copy.deepcopy(dict(cfg)))
    try:
        head.load_state_dict({name.removeprefix('head.'): value for name, value in weights.items()})
    except RuntimeError as error:
        raise ValueError(f'head={dict(cfg)!r:.200} does not fit the pre-trained file: {error}') from None
    if not all(is_count(cfg.get(key)) for key in ('in_channels', 'num_classes')):
        raise ValueError(f'head={dict(cfg)!r:.200} must say in_channels and num_classes')
    return OriginalHead(head, cfg['in_channels'], cfg['num_classes'], packed=True)


def _last(weights: Mapping[str, Tensor]) -> str | None:
    return next((name for name in _LAST if _is_linear(weights.get(f'{name}.weight'))), None)


def _is_linear(weight: Tensor | None) -> bool:
    # A head of timm's may be a convolution of one pixel.
    return weight is not None and weight.dim() in (2, 4) and weight[0].numel() == weight.size(1)


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight = weights[f'{name}.weight'].flatten(1).float()
    bias = weights.get(f'{name}.bias')
    layer = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None)
    layer.load_state_dict({'weight': weight} if bias is None else {'weight': weight, 'bias': bias.float()})
    return layer
