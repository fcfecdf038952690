# OLOR on UperNet with a ViT-B/16, ADE20K: the last row of the paper's Table 6.
_base_ = ['./baseline_upernet_vit.py']

# Per step at the peak learning rate: the patch embedding goes back by 0.01% of its way from the pre-trained weights,
# the last block by nothing, the layers between by (1 - i/n) of that.
optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-4, min_level=0.0, power=1),
)
