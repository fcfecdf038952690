# The demo's "pre-training": the shipped Mask R-CNN with a ConvNeXt, made small, from scratch on domain A.
_base_ = ['../../configs/baseline_maskrcnn_convnext.py']

# Small enough for two CPU cores: a ConvNeXt of five blocks, 64 channels where the base has 256, 96 pixel images.
channels = [32, 64, 96, 128]
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[64.0, 64.0, 64.0]),
    backbone=dict(
        arch=dict(_delete_=True, depths=[1, 1, 2, 1], channels=channels),
        drop_path_rate=0.0,
        # 1e-6 would leave the blocks idle for most of so short a training from scratch.
        layer_scale_init_value=1.0,
        init_cfg=None,
    ),
    neck=dict(in_channels=channels, out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=128, num_classes=3),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=3),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=20)),
)

data_root = 'work_dirs/demo/data/'
metainfo = dict(classes=('circle', 'square', 'triangle'), palette=[(220, 60, 60), (60, 160, 60), (60, 90, 220)])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Changes nothing: the images have this size. It is here for the scale factor that the evaluation asks for.
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='A/annotations/train.json',
        data_prefix=dict(img='A/train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)

domain_a = dict(
    type='CocoDataset',
    data_root=data_root,
    metainfo=metainfo,
    ann_file='A/annotations/val.json',
    data_prefix=dict(img='A/val/'),
    test_mode=True,
    pipeline=test_pipeline,
)
domain_b = dict(
    type='CocoDataset',
    data_root=data_root,
    metainfo=metainfo,
    ann_file='B/annotations/val.json',
    data_prefix=dict(img='B/val/'),
    test_mode=True,
    pipeline=test_pipeline,
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(_delete_=True, type='ConcatDataset', datasets=[domain_a, domain_b]),
)
val_evaluator = dict(
    _delete_=True,
    type='MultiDatasetsEvaluator',
    dataset_prefixes=['A', 'B'],
    metrics=[
        dict(type='CocoMetric', ann_file=data_root + 'A/annotations/val.json', metric=['bbox', 'segm']),
        dict(type='CocoMetric', ann_file=data_root + 'B/annotations/val.json', metric=['bbox', 'segm']),
    ],
)
# The table comes from images that no curve has seen.
test_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(domain_a, ann_file='A/annotations/test.json', data_prefix=dict(img='A/test/')),
            dict(domain_b, ann_file='B/annotations/test.json', data_prefix=dict(img='B/test/')),
        ],
    ),
)
test_evaluator = dict(
    _delete_=True,
    type='MultiDatasetsEvaluator',
    dataset_prefixes=['A', 'B'],
    metrics=[
        dict(type='CocoMetric', ann_file=data_root + 'A/annotations/test.json', metric=['bbox', 'segm']),
        dict(type='CocoMetric', ann_file=data_root + 'B/annotations/test.json', metric=['bbox', 'segm']),
    ],
)

# AdamW where the base has SGD: training from scratch has minutes here, not hours.
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=500, val_interval=500)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=500, eta_min=0.0),
]

default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=50, max_keep_ckpts=2),
)
log_processor = dict(window_size=10, by_epoch=False)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
