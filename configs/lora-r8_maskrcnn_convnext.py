# LoRA of rank 8 on the linear layers of the blocks of Mask R-CNN's ConvNeXt-B, COCO 2017, to compare
# olor_maskrcnn_convnext.py with. Neck and heads are trained as a whole.
_base_ = ['./baseline_maskrcnn_convnext.py']

model = dict(
    type='olor_mm.Tuned',
    of='MaskRCNN',
    method=dict(type='LoRA', rank=8, alpha=8, targets=r'stages\.\d+\.\d+\.pointwise_conv'),
)
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='olor_mm.SaveTrainedHook')]
