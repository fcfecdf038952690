# SLCA in minutes on a CPU: DeiT-tiny, 50 classes of Tiny-ImageNet in 5 tasks. It compares with no paper.
_base_ = [
    '../_base_/datasets/tiny-imagenet_112.py',
    '../_base_/slca.py',
]

incremental = dict(num_classes=50, num_tasks=5)

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    # Its last norm is left out: the head has a new one.
    backbone=dict(
        type='VisionTransformer',
        arch='deit-tiny',
        img_size=112,
        final_norm=False,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/deit/'
            'deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth',
            prefix='backbone.',
        ),
    ),
    head=dict(type='olor_mm.IncrementalClsHead', in_channels=192, norm_eps=1e-6),
)

# The slow learner: the backbone, and the norm that stands for its last one, at a hundredth of the head's rate.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.01), 'head.norm': dict(lr_mult=0.01)}),
)
train_cfg = dict(by_epoch=True, max_epochs=5)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[4], gamma=0.1)]
