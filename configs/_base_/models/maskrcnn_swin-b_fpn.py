_base_ = ['./maskrcnn_convnext-b_fpn.py']

# mmpretrain's published Swin-B, pre-trained on ImageNet-21K and fine-tuned on ImageNet-1K.
checkpoint_file = (
    'https://download.openmmlab.com/mmclassification/v0/swin-transformer/convert/'
    'swin_base_patch4_window7_224_22kto1k-f967f799.pth'
)

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch='base',
        out_indices=[0, 1, 2, 3],
        # mmdet's Mask R-CNN with a Swin uses 0.2.
        drop_path_rate=0.2,
        # Maps of any size get whole windows.
        pad_small_map=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint_file, prefix='backbone.'),
    ),
)
