# mmpretrain's MAE, 1600 epochs on ImageNet-1K (its model zoo: mae_vit-base-p16_8xb512-amp-coslr-1600e_in1k).
_base_ = ['./vit-base-p16_in21k.py']

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmselfsup/1.x/mae/'
            'mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k/'
            'mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth',
            prefix='backbone.',
        ),
    ),
)
