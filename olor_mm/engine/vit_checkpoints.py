"""One place for the names of ViT checkpoints: timm's, OpenCLIP's, mmpretrain's and mmseg's.

The four name the same tensors differently, and a checkpoint under foreign names loads *nothing*, without an error. Here
the names are translated while the file is read, so that one published file serves mmpretrain's VisionTransformer and
mmseg's. A checkpoint is asked for in the names of the model that takes it, wherever MMEngine takes a file
(``init_cfg``, ``load_from``, ``optim_wrapper.rollback.anchor``)::

    init_cfg=dict(type='Pretrained', checkpoint='vit2mmseg:deit_tiny.pth')
    init_cfg=dict(type='Pretrained', checkpoint='vit2mmpretrain:https://...')

What stands before the backbone's names in the file (``backbone.``, ``module.``, ``visual.``, ...) is dropped, and so is
what is no part of a backbone: heads, decoders, text towers. Position embeddings of another image size are resized by
the models themselves, as for files of their own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

__all__ = ['VIT_SCHEMES', 'plain_address', 'register_vit_schemes', 'scheme_for', 'to_mmpretrain', 'to_mmseg']

#: What stands before the file's own path or address.
VIT_SCHEMES = ('vit2mmpretrain:', 'vit2mmseg:')

# Source of a checkpoint -> what it calls the patch embedding and the first block's attention, by which it is known (by
# both: a Swin has blocks of the same names), and what its names become in mmpretrain's VisionTransformer. The first
# pattern that matches a whole name wins; a name that none matches is not part of a backbone.
_FROM = {
    'timm': (
        ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
        {
            r'(cls_token|pos_embed)': r'\1',
            r'patch_embed\.proj\.(.+)': r'patch_embed.projection.\1',
            r'norm_pre\.(.+)': r'pre_norm.\1',
            r'blocks\.(\d+)\.norm([12])\.(.+)': r'layers.\1.ln\2.\3',
            r'blocks\.(\d+)\.attn\.(qkv|proj)\.(.+)': r'layers.\1.attn.\2.\3',
            r'blocks\.(\d+)\.mlp\.fc1\.(.+)': r'layers.\1.ffn.layers.0.0.\2',
            r'blocks\.(\d+)\.mlp\.fc2\.(.+)': r'layers.\1.ffn.layers.1.\2',
            r'blocks\.(\d+)\.ls1\.gamma': r'layers.\1.attn.gamma1.weight',
            r'blocks\.(\d+)\.ls2\.gamma': r'layers.\1.ffn.gamma2.weight',
            r'norm\.(.+)': r'ln1.\1',
            r'fc_norm\.(.+)': r'ln2.\1',
        },
    ),
    'OpenCLIP': (
        ('conv1.weight', 'transformer.resblocks.0.attn.in_proj_weight'),
        {
            r'class_embedding': 'cls_token',
            r'positional_embedding': 'pos_embed',
            r'conv1\.(.+)': r'patch_embed.projection.\1',
            r'ln_pre\.(.+)': r'pre_norm.\1',
            r'transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)': r'layers.\1.ln\2.\3',
            r'transformer\.resblocks\.(\d+)\.attn\.in_proj_(.+)': r'layers.\1.attn.qkv.\2',
            r'transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)': r'layers.\1.attn.proj.\2',
            r'transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)': r'layers.\1.ffn.layers.0.0.\2',
            r'transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)': r'layers.\1.ffn.layers.1.\2',
            r'ln_post\.(.+)': r'ln1.\1',
        },
    ),
    'mmseg': (
        ('patch_embed.projection.weight', 'layers.0.attn.attn.in_proj_weight'),
        {
            r'(cls_token|pos_embed)': r'\1',
            r'patch_embed\.projection\.(.+)': r'patch_embed.projection.\1',
            r'ln_pre\.(.+)': r'pre_norm.\1',
            r'layers\.(\d+)\.(ln[12]|ffn)\.(.+)': r'layers.\1.\2.\3',
            r'layers\.(\d+)\.attn\.attn\.in_proj_(.+)': r'layers.\1.attn.qkv.\2',
            r'layers\.(\d+)\.attn\.attn\.out_proj\.(.+)': r'layers.\1.attn.proj.\2',
            r'ln1\.(.+)': r'ln1.\1',
        },
    ),
    'mmpretrain': (
        ('patch_embed.projection.weight', 'layers.0.attn.qkv.weight'),
        {
            r'(cls_token|pos_embed)': r'\1',
            r'((?:patch_embed|pre_norm|ln[12])\..+)': r'\1',
            r'layers\.(\d+)\.(ln[12]|attn|ffn)\.(.+)': r'layers.\1.\2.\3',
        },
    ),
}

# What mmseg's VisionTransformer names otherwise than mmpretrain's.
_TO_MMSEG = {
    r'pre_norm\.(.+)': r'ln_pre.\1',
    r'layers\.(\d+)\.attn\.qkv\.(.+)': r'layers.\1.attn.attn.in_proj_\2',
    r'layers\.(\d+)\.attn\.proj\.(.+)': r'layers.\1.attn.attn.out_proj.\2',
}

# Where a file holds several ViTs, as CLIP's two towers, the first of these is the backbone.
_PREFIXES = ('backbone.', 'visual.', '', 'module.backbone.', 'module.visual.', 'module.', 'model.', 'encoder.')


def to_mmpretrain(state: Mapping[str, Any], source: str = 'the checkpoint') -> dict[str, Tensor]:
    """The backbone of a ViT checkpoint in the names of mmpretrain's VisionTransformer.

    Args:
        state: Name to tensor, in the names of timm (DeiT, MAE, ...), OpenCLIP, mmpretrain or mmseg; or a checkpoint
            that holds such a mapping as ``state_dict`` or ``model``. It is not changed.
        source: What to call it in an error. Defaults to 'the checkpoint'.

    Returns:
        Name to tensor: ``cls_token`` (1, 1, d), ``pos_embed`` (1, 1 + patches, d), and the rest in its own shapes.

    Raises:
        ValueError: If it holds no ViT under any of these names.
    """
    tensors = _tensors(state)
    found = _recognise(tensors)
    if found is None:
        marks = ', '.join(f'{block} ({kind})' for kind, ((_, block), _) in _FROM.items())
        names = ', '.join(list(tensors)[:3]) or 'no tensor'
        raise ValueError(
            f'{source} holds no ViT that could be translated: it was looked for {marks}, with anything in front; it '
            f'has {names}, ...; give the checkpoint of a ViT, or leave the vit2...: away to load it under its own names'
        )
    kind, prefix = found
    translated = {
        new: _shaped(new, value)
        for name, value in tensors.items()
        if name.startswith(prefix) and (new := _rename(name[len(prefix) :], _FROM[kind][1])) is not None
    }
    print_log(
        f'{source}: a ViT in the names of {kind}, prefix {prefix!r}: {len(translated)} of {len(tensors)} tensors '
        'belong to the backbone',
        logger='current',
    )
    return translated


def to_mmseg(state: Mapping[str, Any], source: str = 'the checkpoint') -> dict[str, Tensor]:
    """The same in the names of mmseg's VisionTransformer; see :func:`to_mmpretrain`."""
    return {_rename(name, _TO_MMSEG) or name: value for name, value in to_mmpretrain(state, source).items()}


def load_from_vit2mmpretrain(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of ``vit2mmpretrain:<path or address>``."""
    file = plain_address(filename)
    return {'state_dict': to_mmpretrain(_load(file, map_location), file)}


def load_from_vit2mmseg(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of ``vit2mmseg:<path or address>``."""
    file = plain_address(filename)
    return {'state_dict': to_mmseg(_load(file, map_location), file)}


def register_vit_schemes() -> None:
    """Make both loaders MMEngine's, by its public extension point."""
    for scheme, loader in zip(VIT_SCHEMES, (load_from_vit2mmpretrain, load_from_vit2mmseg), strict=True):
        CheckpointLoader.register_scheme(scheme, loader, force=True)


def plain_address(address: str) -> str:
    """A path or address without the ``vit2...:`` that may stand before it."""
    for scheme in VIT_SCHEMES:
        address = address.removeprefix(scheme)
    return address


def scheme_for(names: Iterable[str]) -> str | None:
    """What to put before a foreign checkpoint for a backbone with these parameter names; None if it is no such ViT."""
    found = _recognise(dict.fromkeys(names))
    return f'vit2{found[0]}:' if found in (('mmseg', ''), ('mmpretrain', '')) else None


def _load(file: str, map_location: Any) -> Mapping[str, Any]:
    checkpoint = CheckpointLoader.load_checkpoint(file, map_location=map_location, logger='silent')
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f'{file} holds a {type(checkpoint).__name__}, no weights by name')
    return checkpoint


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    for key in ('state_dict', 'model'):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _recognise(tensors: Mapping[str, Any]) -> tuple[str, str] | None:
    """Source and prefix of the ViT; of several, the one whose prefix is likelier, then shorter."""
    found = [
        (kind, name.removesuffix(block))
        for kind, ((patch, block), _) in _FROM.items()
        for name in tensors
        if (name == block or name.endswith(f'.{block}')) and name.removesuffix(block) + patch in tensors
    ]
    rank = {prefix: i for i, prefix in enumerate(_PREFIXES)}
    return min(found, key=lambda one: (rank.get(one[1], len(rank)), len(one[1])), default=None)


def _rename(name: str, rules: Mapping[str, str]) -> str | None:
    for pattern, new in rules.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new)
    return None


def _shaped(name: str, value: Tensor) -> Tensor:
    """OpenCLIP keeps the class token as (d,) and the position embeddings as (1 + patches, d)."""
    if name == 'cls_token':
        return value.reshape(1, 1, -1)
    if name == 'pos_embed' and value.dim() == 2:
        return value.unsqueeze(0)
    return value
