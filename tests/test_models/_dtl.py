"""Small ViTs and Swins of the three toolboxes with DTL, and what DTL computes, written out with their sub-modules."""

import torch
from mmengine.registry import MODELS
from torch import nn

M = 3
#: A backbone's name -> its config.
VIT = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': {'embed_dims': 16, 'num_layers': 4, 'num_heads': 2, 'feedforward_channels': 32},
    'img_size': (32, 24),
    'patch_size': 8,
    'out_type': 'avg_featmap',
    'final_norm': False,
}
SWIN = {
    'type': 'mmpretrain.SwinTransformer',
    'arch': {'embed_dims': 8, 'depths': [2, 2, 2], 'num_heads': [1, 2, 2]},
    'img_size': 32,
    'patch_size': 2,
    'window_size': 4,
    'out_indices': (2,),
    'drop_path_rate': 0.3,
}
#: Of mmdet and mmseg.
DENSE_SWIN = {
    'embed_dims': 8,
    'depths': (2, 2, 2),
    'num_heads': (1, 2, 2),
    'patch_size': 2,
    'strides': (2, 2, 2),
    'window_size': 4,
    'out_indices': (0, 1, 2),
}
DENSE_VIT = {
    'type': 'mmseg.VisionTransformer',
    'img_size': (32, 24),
    'patch_size': 8,
    'embed_dims': 16,
    'num_layers': 4,
    'num_heads': 2,
    'mlp_ratio': 2,
    'out_indices': (1, 3),
    'final_norm': True,
}


@MODELS.register_module(force=True)
class OneOutput(nn.Module):
    """A backbone and a number for each of its output's channels, of which the mean over the places is taken."""

    def __init__(self, backbone, channels=16, outputs=1):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.ModuleList([nn.Linear(channels, 3) for _ in range(outputs)])

    def forward(self, x):
        feats = self.backbone(x)
        feats = [feat.flatten(2).mean(-1) if feat.dim() == 4 else feat for feat in feats[-len(self.head) :]]
        return sum(head(feat) for head, feat in zip(self.head, feats, strict=True))


def build(backbone, method, seed=0, channels=None, **changes):
    """OneOutput, in double precision, with random values in all that starts at 0 or 1; in training mode."""
    torch.manual_seed(seed)
    channels = channels or (16 if 'Vision' in backbone['type'] else 32)
    config = {'backbone': {**backbone, **changes}, 'channels': channels}
    model = MODELS.build({'type': 'olor_mm.Tuned', 'of': 'OneOutput', 'method': method, **config}).double()
    # The same for all methods, whatever they have drawn.
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if '.dtl.' not in name:
                p.add_(torch.randn_like(p) * 0.2)
    return model.train()


def shake(model, seed=1):
    """Give B random values, with which the side network does something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for side in model.backbone.dtl.sides.values():
            side.up.copy_(torch.randn_like(side.up) * 0.3)
    return model


def images(*size, batch=2, seed=2):
    return torch.randn(batch, 3, *size, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def written_out(model, x, start_block=M, beta=100.0):
    """The outputs of a model of :func:`build`, without its blocks' forward and so without their hooks."""
    for module in model.backbone.modules():
        # What is frozen is as at inference, in training too.
        module.eval()
    run = _vit if hasattr(model.backbone, 'layers') else _swin
    feats = run(model.backbone, x, start_block, beta)
    return sum(head(feat) for head, feat in zip(model.head, feats[-len(model.head) :], strict=True))


def _side(backbone, i, x, h):
    side = backbone.dtl.sides[str(i)]
    return h + torch.einsum('dr,rc,bnc->bnd', side.up, side.down, x)


def _injected(backbone, stage, h, grid, beta):
    change = h / (1 + torch.exp((-beta * h).clamp(max=600)))
    if str(stage) not in backbone.dtl.convs:
        return change
    weight, extra = backbone.dtl.convs[str(stage)].weight[:, 0], h.shape[1] - grid[0] * grid[1]
    size, out = weight.shape[-1], torch.zeros_like(change)
    out[:, :extra] = change[:, :extra]
    for row in range(grid[0]):
        for column in range(grid[1]):
            for a in range(size):
                for b in range(size):
                    y, z = row + a - size // 2, column + b - size // 2
                    if 0 <= y < grid[0] and 0 <= z < grid[1]:
                        out[:, extra + row * grid[1] + column] += weight[:, a, b] * change[:, extra + y * grid[1] + z]
    return out


def _attend_and_feed(block, x, *hw):
    x = (
        x + block.attn(block.norm1(x), *hw)
        if not hasattr(block.attn, 'attn')
        else block.attn(block.norm1(x), identity=x)
    )
    return block.ffn(block.norm2(x), identity=x)


def _vit(backbone, x, start_block, beta):
    x, grid = backbone.patch_embed(x)
    x = torch.cat([backbone.cls_token.expand(len(x), -1, -1), x], dim=1) + backbone.pos_embed
    if not backbone.with_cls_token:
        x = x[:, 1:]
    extra, h, feats = int(backbone.with_cls_token), torch.zeros_like(x), []
    for i, block in enumerate(backbone.layers):
        h = _side(backbone, i, x, h)
        x = _attend_and_feed(block, x)
        if i >= start_block - 1:
            x = x + _injected(backbone, 0, h, grid, beta)
        if i in backbone.out_indices:
            feats.append(_read(backbone, x, extra, i == len(backbone.layers) - 1))
    return feats


def _read(backbone, x, extra, last):
    out_type = getattr(backbone, 'out_type', 'featmap')
    if out_type == 'avg_featmap':
        return backbone.ln2(x[:, extra:].mean(1))
    x = backbone.norm1(x) if last else x
    return x[:, 0] if out_type == 'cls_token' else x[:, extra:].mean(1)


def _swin(backbone, x, start_block, beta):
    x, hw = backbone.patch_embed(x)
    i, feats = 0, []
    for number, stage in enumerate(backbone.stages):
        h = torch.zeros_like(x)
        for block in stage.blocks:
            beside = str(i) in backbone.dtl.sides
            h = _side(backbone, i, x, h) if beside else h
            x = _attend_and_feed(block, x, hw)
            if i >= start_block - 1:
                x = x + _injected(backbone, number, h, hw, beta)
            i += 1
        if number in backbone.out_indices:
            feats.append(getattr(backbone, f'norm{number}')(x).mean(1))
        if stage.downsample is not None:
            x, hw = stage.downsample(x, hw)
    return feats
