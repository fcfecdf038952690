# timm's first release of the ViT-B/16 that was trained with labels on ImageNet-21K; names are converted on loading.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='VisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.0,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='vit2mmpretrain:https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/'
            'jx_vit_base_patch16_224_in21k-e5005f0a.pth',
        ),
    ),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
