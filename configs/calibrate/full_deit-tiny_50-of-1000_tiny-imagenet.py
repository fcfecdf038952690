# A classifier of ImageNet-1K's 1000 classes, fine-tuned on 50 of them, for tools/calibrate.py: DeiT-tiny on
# Tiny-ImageNet, minutes on a CPU. The head is the pre-trained one. It compares with no paper.
_base_ = [
    '../_base_/datasets/tiny-imagenet_112.py',
    '../_base_/classification_runtime.py',
]

# Every fourth of Tiny-ImageNet's 200 classes; the test has images of all.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='olor_mm.ClassSubset',
        dataset=dict(
            type='olor_mm.SynsetFolders',
            data_root='data/tiny_imagenet',
            data_prefix='train',
            pipeline={{_base_.train_pipeline}},
        ),
        # fmt: off
        classes=[
            1,
            50,
            75,
            105,
            114,
            128,
            151,
            235,
            285,
            301,
            313,
            323,
            341,
            353,
            372,
            400,
            421,
            430,
            438,
            448,
            463,
            471,
            488,
            508,
            525,
            543,
            567,
            576,
            614,
            627,
            655,
            682,
            707,
            733,
            739,
            760,
            774,
            801,
            815,
            837,
            849,
            866,
            879,
            899,
            917,
            929,
            945,
            954,
            964,
            973,
        ],
        # fmt: on
    )
)
test_dataloader = dict(dataset=dict(type='olor_mm.SynsetFolders'))

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=112),
    head=dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=192),
)
# All of the model is pre-trained, so the head too.
load_from = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth'

optim_wrapper = dict(optimizer=dict(type='SGD', lr=2e-3, momentum=0.9, weight_decay=5e-4))
train_cfg = dict(by_epoch=True, max_epochs=4)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, convert_to_iter_based=True)]
test_cfg = dict()

# The last epoch counts: the images of the test choose nothing.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None, rule=None))
