# SLCA with ViT-B/16, CIFAR-100 in 10 tasks of 10 classes: the recipe of its authors.
_base_ = [
    '../_base_/models/vit-base-p16_in21k.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/slca.py',
]

incremental = dict(num_classes=100, num_tasks=10)

# The backbone's last norm is left out: the head has a new one.
model = dict(
    data_preprocessor=dict(to_rgb=False),
    backbone=dict(final_norm=False),
    head=dict(
        _delete_=True,
        type='olor_mm.IncrementalClsHead',
        in_channels=768,
        norm_eps=1e-6,
        loss=dict(type='olor_mm.SymmetricCrossEntropyLoss', alpha=1.0, beta=0.1),
    ),
)

train_dataloader = dict(batch_size=128)
val_dataloader = None
val_evaluator = None

# The slow learner: the backbone, and the norm that stands for its last one, at a hundredth of the head's rate.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.01), 'head.norm': dict(lr_mult=0.01)}),
)
train_cfg = dict(by_epoch=True, max_epochs=20)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[18], gamma=0.1)]
