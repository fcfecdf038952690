# The last 3 of 36 blocks are trained, and the neck and the heads: Mask R-CNN with a ConvNeXt-B, COCO 2017.
_base_ = ['./baseline_maskrcnn_convnext.py']

# Detection puts a norm behind each stage, which no checkpoint has.
model = dict(type='olor_mm.Tuned', of='MaskRCNN', method=dict(type='TopK', k=3, train=r'^backbone\.norm\d'))
