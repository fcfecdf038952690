# Block Expansion of Mask R-CNN's Swin-B, COCO 2017: behind every sixth of its 24 blocks a new one.
_base_ = ['./baseline_maskrcnn_swin.py']

model = dict(type='olor_mm.Tuned', of='MaskRCNN', method=dict(type='BlockExpansion', blocks=4))
