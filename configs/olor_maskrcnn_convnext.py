# OLOR on Mask R-CNN with a ConvNeXt-B, COCO 2017: the last but one row of the paper's Table 6.
_base_ = ['./baseline_maskrcnn_convnext.py']

# Per step at the peak learning rate: the stem goes back by 1% of its way from the pre-trained weights, the last block
# by nothing, the layers between by (1 - i/n)**2 of that. The layers are counted as the paper's text does;
# rollback.index='tensor' counts them as the authors' code did, with which the table was made.
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-2, min_level=0.0, power=2),
)
