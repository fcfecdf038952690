# OLOR on Mask R-CNN with a Swin-B, COCO 2017. The paper has no Swin: these are its levels for Mask R-CNN with a
# ConvNeXt-B, untuned here.
_base_ = ['./baseline_maskrcnn_swin.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-2, min_level=0.0, power=2),
)
