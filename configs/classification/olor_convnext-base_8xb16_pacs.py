# OLOR on ConvNeXt-B with SGD, PACS: the paper's Table 6.
_base_ = ['./full_convnext-base_8xb16_pacs.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=5e-2, min_level=0.0, power=4),
)
