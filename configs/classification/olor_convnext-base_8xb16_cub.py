# OLOR on ConvNeXt-B with SGD, CUB-200-2011: the paper's Table 6.
_base_ = ['./full_convnext-base_8xb16_cub.py']

optim_wrapper = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    rollback=dict(max_level=1e-2, min_level=0.0, power=2),
)
