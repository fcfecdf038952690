"""A small UperNet on the shared CamVid scenes, made of configs/olor_upernet_vit.py by inheriting alone."""

from __future__ import annotations

from pathlib import Path

CLASSES = (*('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist'),)
#: CamVid's label for what is not to be learned.
VOID = 11

# Not in 224 px, so that the position embeddings of pre-training have to be resized.
CONFIG = """
_base_ = [__import__('olor_mm').cfg({base!r})]

crop = (192, 192)
model = dict(
    data_preprocessor=dict(size=crop, seg_pad_val={void}),
    backbone=dict({backbone}),
    neck=dict(in_channels=[192] * 4, out_channels=64),
    decode_head=dict(in_channels=[64] * 4, channels=64, num_classes={classes}, ignore_index={void}),
    auxiliary_head=dict(in_channels=64, channels=64, num_classes={classes}, ignore_index={void}),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75, ignore_index={void}),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
camvid = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root={root!r},
    metainfo=dict(classes={names}, palette=[[20 * i] * 3 for i in range({classes})]),
    ignore_index={void},
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        **camvid,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    dataset=dict(
        **camvid,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index={void})
test_evaluator = val_evaluator

train_cfg = dict(max_iters={iters}, val_interval={iters})
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end={warmup}),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin={warmup}, end={iters}, by_epoch=False),
]
optim_wrapper = dict(optimizer=dict(lr=3e-4))
default_hooks = dict(checkpoint=dict(interval={iters}), logger=dict(interval=10))
"""

BACKBONES = {
    'mmseg': "img_size=crop, embed_dims=192, num_heads=3, init_cfg=dict(checkpoint='vit2mmseg:{file}')",
    'mmpretrain': (
        "_delete_=True, type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=crop, "
        "out_indices=[2, 5, 8, 11], out_type='featmap', "
        "init_cfg=dict(type='Pretrained', checkpoint='vit2mmpretrain:{file}')"
    ),
}


def write_camvid(folder: Path, shared: Path, backbone: str, iters: int, olor: bool = True, extra: str = '') -> Path:
    """Write the config.

    Args:
        folder: Where it goes.
        shared: Folder of the shared data.
        backbone: 'mmseg' or 'mmpretrain': whose VisionTransformer.
        iters: Iterations to train, and then validate and save.
        olor: Whether it inherits the OLOR config or the baseline. Defaults to True.
        extra: Python to add at the end. Defaults to ''.
    """
    weights = shared / 'weights' / 'deit_tiny_in1k_mmpretrain.pth'
    text = CONFIG.format(
        base=f'{"olor" if olor else "baseline"}_upernet_vit.py',
        backbone=BACKBONES[backbone].format(file=weights),
        root=str(shared / 'camvid'),
        names=CLASSES,
        classes=len(CLASSES),
        void=VOID,
        iters=iters,
        warmup=min(20, iters // 2),
    )
    file = folder / 'camvid.py'
    file.write_text(text + extra)
    return file
