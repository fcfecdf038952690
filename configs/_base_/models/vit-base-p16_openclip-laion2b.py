# OpenCLIP's ViT-B/16, trained on LAION-2B: a norm before the blocks, and torch's eps in all of them.
_base_ = ['./vit-base-p16_in21k.py']

model = dict(
    data_preprocessor=dict(
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
    ),
    backbone=dict(
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        init_cfg=dict(
            checkpoint='vit2mmpretrain:https://huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K/resolve/main/'
            'open_clip_pytorch_model.bin',
        ),
    ),
)
