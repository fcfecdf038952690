"""One place for the names of ViT checkpoints: timm's, OpenCLIP's, mmpretrain's and mmseg's.

The four name the same tensors differently, and a checkpoint under foreign names loads *nothing*, without an error. Here
the names are translated while the file is read, so that one published file serves mmpretrain's VisionTransformer and
mmseg's. A checkpoint is asked for in the names of the backbone that takes it, in ``init_cfg`` and in
``optim_wrapper.rollback.anchor`` (not in ``load_from``, which is for whole models)::

    init_cfg=dict(type='Pretrained', checkpoint='vit2mmseg:deit_tiny.pth')
    init_cfg=dict(type='Pretrained', checkpoint='vit2mmpretrain:https://...')

What stands before the backbone's names in the file (``backbone.``, ``module.``, ``visual.``, ...) is dropped, and so is
what is no part of a backbone: heads, decoders, text towers. Position embeddings of another image size are resized by
the models themselves, as for files of their own; they expect one for the class token and then the patches', so those of
other tokens (DeiT's distillation token, registers) are left out, and where the class token has none it gets zeros.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, cat

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
_PREFIXES = (
    *('backbone.', 'visual.', '', 'module.backbone.', 'module.visual.', 'module.', 'model.', 'encoder.'),
    # Of a self-distilled pair the teacher is what is published and used.
    *('teacher.backbone.', 'teacher.', 'student.backbone.', 'student.'),
)
# Tokens beside the class token and the patches, which have positions of their own right behind the class token's.
_EXTRA_TOKENS = ('dist_token', 'reg_token', 'register_tokens')


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
        names = ', '.join(list(tensors)[:3] or [f'no tensor, but {", ".join(map(str, list(state)[:5]))}'])
        raise ValueError(
            f'{source} holds no ViT that could be translated: it was looked for {marks}, with anything in front; it '
            f'has {names}, ...; give the checkpoint of a ViT, or leave the vit2...: away to load it under its own names'
        )
    kind, prefix = found
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    _refuse_other_kinds(own, source)
    translated = {
        new: _shaped(new, value) for name, value in own.items() if (new := _rename(name, _FROM[kind][1])) is not None
    }
    translated['pos_embed'] = _positions(translated, own, source)
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
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}


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


def _refuse_other_kinds(own: Mapping[str, Tensor], source: str) -> None:
    """Relatives with blocks of the same names, of which a ViT could take a part only."""
    for mark in ('attn.q_bias', 'relative_position_bias_table', 'attn.rope'):
        name = next((name for name in own if mark in name), None)
        if name is not None:
            raise ValueError(f'{source} is no plain ViT: it has {name}, which VisionTransformer has no place for')
    for needed in ('cls_token', 'class_embedding'), ('pos_embed', 'positional_embedding'):
        if not any(name in own for name in needed):
            raise ValueError(
                f'{source} is a ViT without {needed[0]}, so it cannot be translated: mmpretrain and mmseg would fill '
                'the gap with random values'
            )


def _positions(translated: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> Tensor:
    """Position embeddings (1, 1 + patches, d): the class token's, then those of a square of patches."""
    positions = translated['pos_embed']
    total = positions.shape[1]
    extra = sum(own[name].shape[1] for name in _EXTRA_TOKENS if name in own)
    if extra and math.isqrt(total - 1 - extra) ** 2 == total - 1 - extra:
        return cat([positions[:, :1], positions[:, 1 + extra :]], dim=1)
    if math.isqrt(total - 1) ** 2 == total - 1:
        return positions
    if math.isqrt(total) ** 2 == total:
        return cat([positions.new_zeros(1, 1, positions.shape[2]), positions], dim=1)
    raise ValueError(
        f'{source} has {total} position embeddings, not those of a class token and a square of patches: it cannot be '
        'resized, nor translated'
    )


def _shaped(name: str, value: Tensor) -> Tensor:
    """OpenCLIP keeps the class token as (d,) and the position embeddings as (1 + patches, d)."""
    if name == 'cls_token':
        return value.reshape(1, 1, -1)
    if name == 'pos_embed' and value.dim() == 2:
        return value.unsqueeze(0)
    return value
