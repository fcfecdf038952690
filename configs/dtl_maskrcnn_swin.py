# DTL on Mask R-CNN's Swin-B, COCO 2017, with the paper's numbers for a Swin-B: rank 4, M = 15. The maps of the first
# two stages are the pre-trained ones. Neck and heads are trained as a whole.
_base_ = ['./baseline_maskrcnn_swin.py']

model = dict(type='olor_mm.Tuned', of='MaskRCNN', method=dict(type='DTL', rank=4, start_block=15))
custom_hooks = [dict(type='olor_mm.ResumableRandomnessHook'), dict(type='olor_mm.SaveTrainedHook')]
